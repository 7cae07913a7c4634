"""The back ends for simulated ranks: their operations on fake tensors, as on the machine that is simulated.

Legend: E experts of this rank.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from parallel.dispatch.base import RowOrder
from parallel.memory.known_rows import KnownOrder
from trainer.config.memory import ROUTERS
from trainer.config.model import ModelConfig
from trainer.model.decoder import Decoder
from trainer.model.experts.base import Backend
from trainer.model.experts.choose import choose_backend
from trainer.model.experts.fused_grouped_mm import FusedSwiGLU
from trainer.model.experts.grouped_mm import GroupedSwiGLU
from trainer.model.experts.te.shapes import TransformerEngineShapes
from trainer.model.frozen.blocks_gemm import BlockProducts, only_allocate
from trainer.model.frozen.experts import FrozenExperts
from trainer.model.lora.experts import AdaptedExperts
from trainer.model.lora.gemm import GroupedProducts, LoopProducts
from trainer.model.numerics import select_experts
from trainer.model.ops import TORCH, Ops


def choose_simulated(
    experts: str, backend: str, kernels: str, *, cpu: bool, shares: Sequence[int]
) -> Callable[[], Backend]:
    """A function that makes the back end of one layer, as `choose_backend` does for real tensors.

    experts, backend: as there. kernels: as `train.kernels`. cpu: as on a CPU; otherwise as on a GPU. shares: of the
    rows, for each expert of the rank.
    """
    ops = _FusedShapes() if kernels == "triton" and not cpu else TORCH
    if experts not in ("fp32", "bf16", "fp8_reference"):
        return lambda: TransformerEngineShapes(experts, ops)
    if experts == "fp8_reference" or backend == "loop" or cpu:
        genuine = choose_backend(experts, backend, ops)
    else:
        genuine = lambda: _grouped_mm_of_gpu if ops is TORCH else _FusedGroupedMM(ops)  # noqa: E731
    return lambda: _KnownRows(genuine(), shares)


def simulate_adapters(model: Decoder, *, cpu: bool, shares: Sequence[int]) -> None:
    """Let adapted experts compute on fake tensors, in place; the arguments as for `choose_simulated`."""
    for block in model.blocks:
        if isinstance(backend := block.moe.experts.backend, AdaptedExperts | FrozenExperts):
            backend.products = LoopProducts() if cpu else GroupedProducts()
            backend.known = lambda order: KnownOrder(order, shares)
            for products in (backend.up, backend.down):
                if isinstance(products, BlockProducts):
                    products.gemm = only_allocate


def assume_rows(cfg: ModelConfig, tokens: int, ranks: int, router: str) -> list[list[int]]:
    """The rows of each expert that the tokens of each rank have where logits are random, and the first experts favoured
    as `router` (a key of ROUTERS) says. tokens: of each rank."""
    generator = torch.Generator().manual_seed(0)
    favour = favoured_logits(cfg.num_experts, router)
    found = []
    for _ in range(ranks):
        logits = torch.randn(tokens, cfg.num_experts, generator=generator) + favour
        ids = select_experts(logits, cfg.router_groups, cfg.experts_per_token)
        found.append(torch.bincount(ids.flatten(), minlength=cfg.num_experts).tolist())
    return found


def favoured_logits(experts: int, router: str) -> Tensor:
    """[E], to be added to logits: from 0 for the first expert down to about minus `ROUTERS[router]` for the last."""
    return -ROUTERS[router] * torch.arange(experts) / experts


class _KnownRows:
    """`backend`, which finds the numbers of its experts' rows on the host."""

    def __init__(self, backend: Backend, shares: Sequence[int]) -> None:
        self.backend, self.shares = backend, shares

    def __call__(self, x: Tensor, weights: Tensor, w13: Tensor, w2: Tensor, order: RowOrder) -> Tensor:
        return self.backend(x, weights, w13, w2, KnownOrder(order, self.shares))

    def hold_weights(self, hold: bool) -> None:
        if (hold_weights := getattr(self.backend, "hold_weights", None)) is not None:
            hold_weights(hold)


def _grouped_mm_of_gpu(x: Tensor, weights: Tensor, w13: Tensor, w2: Tensor, order: RowOrder) -> Tensor:
    return GroupedSwiGLU.apply(x, weights, w13.to(x.dtype), w2.to(x.dtype), order)


class _FusedGroupedMM:
    def __init__(self, ops: Ops) -> None:
        self.ops = ops

    def __call__(self, x: Tensor, weights: Tensor, w13: Tensor, w2: Tensor, order: RowOrder) -> Tensor:
        return FusedSwiGLU.apply(x, weights, w13.to(x.dtype), w2.to(x.dtype), order, self.ops)


class _FusedShapes(Ops):
    """The results of the fused kernels, which have no temporaries."""

    def fuses(self, x: Tensor) -> bool:
        return True

    def _swiglu_forward(self, hidden: Tensor, weight: Tensor) -> Tensor:
        return hidden.new_empty(len(hidden), hidden.shape[1] // 2)

    def _swiglu_backward(
        self, hidden: Tensor, weight: Tensor, dy: Tensor, *, recompute: bool
    ) -> tuple[Tensor | None, Tensor, Tensor]:
        result = torch.empty_like(dy) if recompute else None
        return result, torch.empty_like(hidden), torch.empty_like(weight)
