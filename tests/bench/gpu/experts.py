"""The experts of one rank between the tokens and their sum: gather, two grouped GEMMs, the gated activation, combine.

Every arm is a function of the same x [T, H], routing weights [T, K], w13, w2 and rows sorted by expert: the contract
of `trainer.model.experts`. Ours stand beside what one writes with torch's grouped GEMM and autograd, and beside
Transformer Engine's GroupedLinear with the same torch around it.

Legend: T tokens · K experts per token · E experts · H hidden size · I expert width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from parallel.dispatch.base import RowOrder
from parallel.dispatch.padding import PaddedOrder
from tests.bench.gpu.clock import Arm, Skipped, tolerance_of
from tests.bench.gpu.gemms import Operands
from tests.bench.gpu.peer_te import GroupedPair, Variant
from trainer.model.experts.base import Backend, QuantizedBackend
from trainer.model.experts.choose import choose_backend
from trainer.model.ops import TORCH, Ops
from trainer.precision import experts_unavailable

Run = Callable[[Tensor, Tensor], Tensor]  # x [T, H], weights [T, K] -> [T, H]
RESULTS = ("y", "dx", "d_weights", "d_w13", "d_w2")


class Inputs:
    """x, dy [T, H], weights [T, K] that add up to 1 for a token, and the experts of `operands`."""

    def __init__(self, operands: Operands, ids: Tensor) -> None:
        generator = torch.Generator(ids.device).manual_seed(2)
        of, part = operands.x, operands.part
        self.x, self.dy = (
            torch.empty(len(ids), part.hidden, dtype=of.dtype, device=of.device).normal_(generator=generator)
            for _ in range(2)
        )
        drawn = torch.empty(ids.shape, device=of.device).normal_(generator=generator)
        self.weights = torch.softmax(drawn, -1).requires_grad_()
        self.x.requires_grad_()
        self.order: RowOrder = operands.order
        self.w13 = operands.w13.view(part.experts, 2, part.width, part.hidden).detach().requires_grad_()
        self.w2 = operands.w2.detach().requires_grad_()


def arm_of(run: Run, given: Inputs, w13: list[Tensor], w2: list[Tensor], precision: str = "bf16") -> Arm:
    """w13, w2: the leaves that hold the experts' weights, one tensor or one for each expert."""
    leaves = [given.x, given.weights, *w13, *w2]

    def forward() -> Tensor:
        return run(given.x, given.weights)

    def both() -> tuple[Tensor, ...]:
        y = forward()
        return y.detach(), *torch.autograd.grad(y, leaves, given.dy)

    def results() -> dict[str, Tensor]:
        y, dx, d_weights, *grads = both()
        d_w13, d_w2 = torch.cat(grads[: len(w13)]), torch.cat(grads[len(w13) :])
        made = (y, dx, d_weights, d_w13.view(given.w13.shape), d_w2.view(given.w2.shape))
        return dict(zip(RESULTS, made, strict=True))

    return Arm(forward, both, results, tolerance_of(precision))


def ours(precision: str, held: bool, given: Inputs, ops: Ops = TORCH) -> Arm | Skipped:
    """Our back end for a value of `precision.experts`; held: its quantised weights, as over the micro-batches of a
    step."""
    device = given.x.device
    if reason := experts_unavailable(precision, device):
        return Skipped(reason)
    run = choose_backend(precision, "grouped_mm", ops)()
    if isinstance(run, QuantizedBackend):
        run.hold_weights(held)
    return backend(run, given, precision)


def backend(run: Backend, given: Inputs, precision: str = "bf16") -> Arm:
    w13, w2 = given.w13, given.w2
    return arm_of(lambda x, weights: run(x, weights, w13, w2, given.order), given, [w13], [w2], precision)


def plain(given: Inputs) -> Arm:
    """The plain version: torch's grouped GEMM, with autograd for the rest."""
    order = given.order

    def run(x: Tensor, weights: Tensor) -> Tensor:
        rows = x[order.token_of_row]
        weight = weights.flatten()[order.slot_of_row].unsqueeze(1).to(x.dtype)
        gate, up = F.grouped_mm(rows, given.w13.flatten(1, 2).transpose(1, 2), offs=order.offsets).chunk(2, dim=-1)
        y = F.grouped_mm(F.silu(gate) * up * weight, given.w2.transpose(1, 2), offs=order.offsets)
        return torch.zeros_like(x).index_add_(0, order.token_of_row, y)

    return arm_of(run, given, [given.w13], [given.w2])


def transformer_engine(variant: Variant, given: Inputs) -> Arm | Skipped:
    reason = variant.unavailable(given.x.device)
    return Skipped(reason) if reason else transformer_engine_arm(variant, given)


def transformer_engine_arm(variant: Variant, given: Inputs) -> Arm:
    pair = GroupedPair(variant, given.w13.detach().flatten(1, 2), given.w2.detach())

    def run(x: Tensor, weights: Tensor) -> Tensor:
        order, first = PaddedOrder(given.order, variant.align), pair.first_microbatch()
        splits = pair.splits(order.offsets)
        if not variant.on_device:
            order.rows = sum(splits)  # the host knows them: no bound is needed, and none is taken
        with pair.precision():
            gate, up = pair.into(order.gather(x), splits, is_first_microbatch=first).chunk(2, dim=-1)
            act = F.silu(gate) * up * order.gather_weights(weights).unsqueeze(1).to(x.dtype)
            return order.combine(pair.out_of(act, splits, is_first_microbatch=first))

    parameters, experts = pair.parameters(), pair.into.num_gemms
    return arm_of(run, given, parameters[:experts], parameters[experts:], variant.recipe or "bf16")
