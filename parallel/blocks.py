"""Compilation and recomputation of decoder blocks, applied in this order before parameters are sharded.

Both act in place and wrap no module, so that modules and parameters keep their names. The order matters: a compiled
block that is recomputed stays compiled, whereas the compiler cannot trace a block with recomputation inside.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from parallel.torch_private import MATMULS


def checkpoint_activations(
    blocks: Iterable[nn.Module], recompute: str, method: str = "forward", *, random: bool = False
) -> None:
    """Save memory at the cost of time: "none" keeps every activation, "full" only each block's input, "selective" also
    the results of matmuls and attention. method: the part of a block that is recomputed. random: blocks
    draw random numbers, and are to draw the same ones again.

    The recomputed forward repeats the same operations on the same numbers, so losses and gradients do not change. In a
    compiled block "selective" keeps only the attention, because the compiler's own matmuls are not visible to it. On a
    CPU it does not keep the experts' matmuls, which write into scratch memory.
    """
    if recompute == "none":
        return
    # Without random numbers there is no generator state to keep.
    options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": random}
    if recompute == "selective":
        options["context_fn"] = functools.partial(create_selective_checkpoint_contexts, _policy)
    for block in blocks:
        setattr(block, method, functools.partial(_recomputed, getattr(block, method), options))


def compile_blocks(blocks: Iterable[nn.Module]) -> None:
    """torch.compile each block separately: all have one shape, so that one compilation serves every layer.

    A different number of tokens (the last batch of an evaluation) compiles again: dynamic shapes failed in torch 2.13.
    """
    for block in blocks:
        block.forward = torch.compile(block.forward, dynamic=False)


def _recomputed(forward: Callable[..., Any], options: dict[str, Any], *args: Any) -> Any:
    return checkpoint(forward, *args, **options) if torch.is_grad_enabled() else forward(*args)


def _policy(_context: Any, op: Any, *_args: Any, **_kwargs: Any) -> CheckpointPolicy:
    # Matmuls are expensive to recompute; norms, rotary, activations and gathers are cheap passes over memory.
    # torch_attn is the namespace of variable-length attention, which exists only once that module is imported.
    saved = op in MATMULS or op.namespace == "torch_attn"
    return CheckpointPolicy.MUST_SAVE if saved else CheckpointPolicy.PREFER_RECOMPUTE
