"""The six matrix products of the experts alone, on rows that are sorted already: what torch makes of them.

    forward     hidden = x w13^T     y = act w2^T
    backward    d_act = dy w2        dx = d_hidden w13
                d_w2 = dy^T act      d_w13 = d_hidden^T x

All six are made of given operands (x, act, dy and d_hidden are drawn each for itself), so that an arm has nothing to do
but multiply; every arm gets the same ones. `transformer_engine` has the arms that make the same of another library.

Legend: T tokens · R = T*K rows · P padded rows · E experts · H hidden size · I expert width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from parallel.dispatch.base import RowOrder
from parallel.dispatch.padding import PaddedOrder
from parallel.fp8 import E4M3_MAX
from tests.bench.gpu.clock import Arm, Skipped, tolerance_of
from tests.bench.gpu.routing import Slice

NAMES = ("hidden", "y", "d_act", "dx", "d_w2", "d_w13")
SCALED_ALIGN = 16  # rows of an expert come in multiples of it: in FP8 a weight gradient's operands start at 16 bytes

Products = tuple[Tensor, ...]


class Operands:
    """x, dy [R, H], act [R, I], d_hidden [R, 2I] of standard normal numbers, w13 [E, 2I, H] and w2 [E, H, I] scaled to
    keep their size; rows sorted by the experts `ids` [T, K]."""

    def __init__(self, part: Slice, ids: Tensor, dtype: torch.dtype) -> None:
        device, generator = ids.device, torch.Generator(ids.device).manual_seed(1)

        def random(*shape: int, std: float = 1.0) -> Tensor:
            return torch.empty(shape, dtype=dtype, device=device).normal_(std=std, generator=generator)

        self.part, self.order = part, RowOrder(ids, part.experts)
        rows, hidden, width = ids.numel(), part.hidden, part.width
        self.x, self.dy = random(rows, hidden), random(rows, hidden)
        self.act, self.d_hidden = random(rows, width), random(rows, 2 * width)
        self.w13 = random(part.experts, 2 * width, hidden, std=hidden**-0.5)
        self.w2 = random(part.experts, hidden, width, std=width**-0.5)
        self._padded: dict[int, PaddedOperands] = {}

    def pad_operands(self, align: int) -> PaddedOperands:
        """Made once for all arms that want the same: at 16k tokens they take 3.4 GB."""
        if align not in self._padded:
            self._padded[align] = PaddedOperands(self, align)
        return self._padded[align]


def counts_of(offsets: Tensor) -> Tensor:
    """Rows of each expert: [E] ends of their rows -> [E]."""
    return offsets.diff(prepend=offsets.new_zeros(1))


class PaddedOperands:
    """x, dy, act and d_hidden laid out anew, each expert's rows padded with zeros to a multiple of `align`."""

    def __init__(self, given: Operands, align: int) -> None:
        padded = PaddedOrder(given.order, align)
        self.offsets, self.rows = padded.offsets, padded.rows
        self._row = padded.row_of_slot.flatten()[given.order.slot_of_row]  # [R]: the place of each row
        self.x, self.dy, self.act, self.d_hidden = map(self._pad, (given.x, given.dy, given.act, given.d_hidden))

    def _pad(self, rows: Tensor) -> Tensor:
        """[R, N] -> [P, N]."""
        return rows.new_zeros(self.rows, rows.shape[1]).index_copy_(0, self._row, rows)

    def unpad(self, results: dict[str, Tensor]) -> dict[str, Tensor]:
        """Those that are rows without their padding."""
        return {name: t.detach()[self._row] if t.ndim == 2 else t for name, t in results.items()}


def arm_of(forward: Callable[[], Products], inputs: Callable[[], Products], weights: Callable[[], Products]) -> Arm:
    """forward makes hidden and y, inputs d_act and dx, weights d_w2 and d_w13."""
    return Arm(
        forward,
        lambda: (forward(), inputs(), weights()),
        lambda: dict(zip(NAMES, (*forward(), *inputs(), *weights()), strict=True)),
        weight_gradients=weights,
    )


def six_products(
    given: Operands,
    splits: Callable[[], object],
    by_weights: Callable[..., Tensor],
    by_rows: Callable[..., Tensor],
) -> Arm:
    """splits: how the rows fall to the experts, asked for in each forward pass. by_weights(rows [R, k], weights
    [E, k, n], splits) -> [R, n]; by_rows(left [R, m], right [R, n], splits) -> [E, m, n]."""
    cut = splits()

    def forward() -> Products:
        nonlocal cut
        cut = splits()
        return (
            by_weights(given.x, given.w13.transpose(1, 2), cut),
            by_weights(given.act, given.w2.transpose(1, 2), cut),
        )

    def inputs() -> Products:
        return by_weights(given.dy, given.w2, cut), by_weights(given.d_hidden, given.w13, cut)

    def weights() -> Products:
        return by_rows(given.dy, given.act, cut), by_rows(given.d_hidden, given.x, cut)

    return arm_of(forward, inputs, weights)


def loop(given: Operands) -> Arm:
    """One matmul after another. A forward pass first copies the row counts to the host, as it must."""

    def by_weights(rows: Tensor, weights: Tensor, counts: list[int]) -> Tensor:
        out = rows.new_empty(len(rows), weights.shape[2])
        for a, b, result in zip(rows.split(counts), weights.unbind(0), out.split(counts), strict=True):
            torch.mm(a, b, out=result)
        return out

    def by_rows(left: Tensor, right: Tensor, counts: list[int]) -> Tensor:
        out = left.new_empty(len(counts), left.shape[1], right.shape[1])
        for a, b, result in zip(left.split(counts), right.split(counts), out.unbind(0), strict=True):
            torch.mm(a.t(), b, out=result)
        return out

    return six_products(given, lambda: counts_of(given.order.offsets).tolist(), by_weights, by_rows)


def grouped_mm(given: Operands) -> Arm:
    """torch's grouped GEMM."""
    return six_products(
        given,
        lambda: given.order.offsets,
        lambda rows, weights, offsets: F.grouped_mm(rows, weights, offs=offsets),
        lambda left, right, offsets: F.grouped_mm(left.t(), right, offs=offsets),
    )


def equal_split(given: Operands) -> Arm:
    """The ceiling: batched matmuls as if every expert had as many rows, whatever the routing says. Its results are
    others' only where the routing is exactly even."""
    experts = given.part.experts
    return six_products(
        given,
        lambda: None,
        lambda rows, weights, _: torch.bmm(rows.unflatten(0, (experts, -1)), weights).flatten(0, 1),
        lambda left, right, _: torch.bmm(
            left.unflatten(0, (experts, -1)).transpose(1, 2), right.unflatten(0, (experts, -1))
        ),
    )


class Scaled(NamedTuple):
    """e4m3 numbers and what they are to be multiplied by, one fp32 factor for each row (column) of a matrix."""

    codes: Tensor
    scale: Tensor


def scaled_grouped_mm(left: Scaled, right: Scaled, offsets: Tensor) -> Tensor:
    """torch's FP8 grouped GEMM with row-wise scales; bf16 comes out.

    The private name has one signature in all torch that Octavo runs on; `torch.nn.functional.scaled_grouped_mm` with
    ScalingType.RowWise ends in the same kernel. Left wants its rows in a piece, right its columns.
    """
    return torch._scaled_grouped_mm(
        left.codes, right.codes, left.scale, right.scale,
        offs=offsets, out_dtype=torch.bfloat16, use_fast_accum=True,
    )  # fmt: skip


def scaled(given: Operands) -> Arm | Skipped:
    """torch's FP8 grouped GEMM on operands quantised beforehand, those of the weight gradients transposed too: the
    products alone, their preparation not counted."""
    device = given.x.device
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
    if capability not in ((9, 0), (10, 0)):
        here = f"compute capability {'.'.join(map(str, capability))}" if capability else f"a {device.type.upper()}"
        return Skipped(f"torch._scaled_grouped_mm runs on compute capability 9.0 and 10.0, and this is {here}")
    return scaled_arm(given)


def scaled_arm(given: Operands) -> Arm:
    padded = given.pad_operands(SCALED_ALIGN)
    offsets, x, act, dy, d_hidden = padded.offsets, padded.x, padded.act, padded.dy, padded.d_hidden
    x_8, act_8, dy_8, d_hidden_8 = map(per_row, (x, act, dy, d_hidden))
    x_c, act_c = (columns_of(per_column(rows, offsets)) for rows in (x, act))
    dy_c, d_hidden_c = (per_column(rows, offsets) for rows in (dy, d_hidden))
    into, out_of = (columns_of(per_row(w)) for w in (given.w13, given.w2))
    into_t, out_of_t = (columns_of(per_row(w.transpose(1, 2).contiguous())) for w in (given.w13, given.w2))

    def forward() -> Products:
        return scaled_grouped_mm(x_8, into, offsets), scaled_grouped_mm(act_8, out_of, offsets)

    def inputs() -> Products:
        return scaled_grouped_mm(dy_8, out_of_t, offsets), scaled_grouped_mm(d_hidden_8, into_t, offsets)

    def weights() -> Products:
        return scaled_grouped_mm(dy_c, act_c, offsets), scaled_grouped_mm(d_hidden_c, x_c, offsets)

    arm = arm_of(forward, inputs, weights)

    def results() -> dict[str, Tensor]:
        assert arm.results is not None
        return padded.unpad(arm.results())

    return arm._replace(results=results, tolerance=tolerance_of("fp8"))


def per_row(x: Tensor) -> Scaled:
    """One scale for each row of the last dimension, which the product sums over: [..., M, N] -> scale [..., M]."""
    scale = decode_scale(x.abs().amax(-1))
    return Scaled((x.float() / scale.unsqueeze(-1)).to(torch.float8_e4m3fn), scale)


def per_column(rows: Tensor, offsets: Tensor) -> Scaled:
    """The transpose, and one scale for each of its rows within each expert: [P, N] -> [N, P], scale [E * N]."""
    expert = torch.searchsorted(offsets, torch.arange(len(rows), device=rows.device), right=True)
    # Rows behind the last expert's are zeros that are never read: they go with the last.
    expert.clamp_(max=len(offsets) - 1)
    amax = torch.zeros(len(offsets), rows.shape[1], device=rows.device)
    amax.scatter_reduce_(0, expert.unsqueeze(1).expand_as(rows), rows.float().abs(), "amax")
    scale = decode_scale(amax)
    codes = (rows.float() / scale[expert]).t().contiguous().to(torch.float8_e4m3fn)
    return Scaled(codes, scale.flatten())


def columns_of(scaled: Scaled) -> Scaled:
    """For the right side of a product, whose columns are contiguous."""
    return Scaled(scaled.codes.transpose(-2, -1), scaled.scale)


def decode_scale(amax: Tensor) -> Tensor:
    scale = amax.float() / E4M3_MAX
    return torch.where(scale > 0, scale, 1.0)
