"""Forward and backward of one optimizer step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from parallel.sharding.fsdp import keep_gathered
from parallel.world import World
from trainer.config.keys import Config
from trainer.data.batch import Batch
from trainer.model.decoder import Decoder
from trainer.model.experts.module import Experts, QuantizedBackend
from trainer.objectives.next_token import loss_terms
from trainer.optim.native import Engine


def accumulate_gradients(
    model: Decoder, engine: Engine, batches: Sequence[Batch], tokens: int, cfg: Config, world: World, *, step: int
) -> Tensor:
    """This rank's micro-batches of a step, forward and backward. Nothing waits for the device.

    tokens: supervised tokens of the step over all ranks. step: its number, for the watch.
    Returns [4] on the device, each to be summed over ranks: cross-entropy, balance and z loss, and largest load.
    """
    sums = torch.zeros(4, device=world.device)
    experts = [layer.moe.experts for layer in model.blocks]
    with _held_weights(experts):
        for number, batch in enumerate(batches, 1):
            world.watch.at(f"step {step}: forward and backward")
            keep_gathered(experts, keep=number < len(batches) and not cfg.parallel.reshard_experts)
            terms = loss_terms(
                model,
                batch.to(world.device),
                token_count=max(tokens, 1),
                micro_batches=len(batches),
                chunk=cfg.train.loss_chunk,
                ranks=world.size,
                sum_over_ranks=(lambda counts: world.sum_tensor(counts.clone())) if world.size > 1 else None,
            )
            engine.backward(terms.total)
            largest = terms.max_load / (len(batches) * world.size)
            sums += torch.stack([terms.cross_entropy, terms.balance, terms.z, largest]).detach()
    return sums


@contextmanager
def _held_weights(experts: Iterable[Experts]) -> Iterator[None]:
    """Weights do not change inside, so that those of quantised experts are quantised once."""
    quantized = [layer.backend for layer in experts if isinstance(layer.backend, QuantizedBackend)]
    for backend in quantized:
        backend.hold_weights(True)
    try:
        yield
    finally:
        for backend in quantized:
            backend.hold_weights(False)
