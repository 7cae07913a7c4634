"""The experts' frozen matrices in Transformer Engine's block-scaled GEMMs on Hopper, which read codes and scales.

The codes are given as they are stored: a scale for each 128 x 128 block is what the GEMM takes of a weight. Activations
are rounded to e4m3 in tiles of 1 x 128, as `precision.experts=fp8_block` does. Hopper multiplies FP8 only along rows of
both operands, so gradients of inputs need the transpose. Blocks of 128 x 128 transpose exactly, codes and scales apart:
the transpose is made of a few experts at a time and dropped again, and one orientation is stored.

Legend: P rows, sorted by expert · M inputs · N outputs · n experts that have rows · r, c blocks of a matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from parallel.errors import Fault
from parallel.fp8 import TILE
from trainer.config.checks.precision import TRANSFORMER_ENGINE
from trainer.config.keys import LoraConfig
from trainer.model.experts.te import private
from trainer.model.frozen import experts as frozen
from trainer.model.frozen.experts import Experts, ScaledProducts, consecutive
from trainer.model.lora.gemm import Products, Rows

PRECISION = "fp8_block"  # of `precision.experts`
SCALE_COLUMNS = 4  # the GEMM reads the scales of a matrix in rows of a multiple of it
HOPPER = (9, 0)

# (x [P, M], the rows of each of n experts, codes [n, N, M], scales [n, r, c], out [P, N]) writes x times the matrices'
# transposes. transposed: these are of the matrices' transposes, [n, M, N].
BlockGemm = Callable[[Tensor, Sequence[int], Tensor, Tensor, Tensor, bool], None]


def unavailable(lora: LoraConfig, precision: str, device: torch.device) -> Fault | None:
    """The reason why the experts of a base in FP8 cannot be multiplied as `precision.experts` says; None where they
    can. Newer GPUs take scales that are powers of two alone, and published ones are any fp32."""
    if lora.base != "fp8" or precision != PRECISION or device.type != "cuda":
        return None
    if (found := torch.cuda.get_device_capability(device)) == HOPPER:
        return None
    allowed = ("bf16", "fp8_reference")
    text = f"precision.experts={PRECISION} multiplies a base in FP8 on Hopper (compute capability 9.0) alone, and this "
    text = f"{text}GPU has {found[0]}.{found[1]}; use precision=bf16"
    return Fault(text, where="precision.experts", value=PRECISION, allowed=allowed)


def describe(precision: str) -> str:
    """Words for the log about the products of a base in FP8. precision: as `precision.experts`."""
    if precision == PRECISION:
        return f"codes as they are stored, by Transformer Engine {private.installed()}: two host syncs a layer"
    rounded = ", activations in tiles of 1x128" if precision == "fp8_reference" else ""
    return f"codes as they are stored, dequantised a few experts at a time{rounded}"


class BlockProducts(ScaledProducts):
    """`ScaledProducts` without values. Sides of the matrices are multiples of 128. gemm: `multiply` or, for simulated
    ranks, `only_allocate`."""

    align = TRANSFORMER_ENGINE[PRECISION]
    gemm: BlockGemm | None = None  # None: `multiply`

    def forward(self, x: Tensor, weight: Tensor, rows: Rows, products: Products) -> Tensor:
        out = x.new_empty(len(x), weight.shape[1])
        for some in consecutive(rows, len(weight), self.align):
            here = slice(some.experts.start, some.experts.stop)
            self._run(x, weight[here], padded(self.scales[here]), some, out, transposed=False)
        return rows.padded.zero_tail(out)

    def input_gradient(self, dy: Tensor, weight: Tensor, rows: Rows, products: Products) -> Tensor:
        out = dy.new_empty(len(dy), weight.shape[2])
        for some in consecutive(rows, frozen.TILE_BYTES // weight[0].nbytes, self.align):
            codes, scales = transpose(weight[some.experts], self.scales[some.experts])
            self._run(dy, codes, padded(scales), some, out, transposed=True)
        return rows.padded.zero_tail(out)

    def _run(self, x: Tensor, codes: Tensor, scales: Tensor, some: Experts, out: Tensor, *, transposed: bool) -> None:
        here = slice(some.bounds[0], some.bounds[-1])
        splits = [stop - start for start, stop in pairwise(some.bounds)]
        (self.gemm or multiply)(x[here], splits, codes, scales, out[here], transposed)


def transpose(codes: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]:
    """Codes [n, N, M] and scales [n, r, c] of the transposes of n matrices, copied."""
    return codes.mT.contiguous(), scales.mT.contiguous()


def padded(scales: Tensor) -> Tensor:
    """[n, r, c] with rows of a length that the GEMM takes; not copied where it is one already."""
    missing = -scales.shape[-1] % SCALE_COLUMNS
    return F.pad(scales, (0, missing)) if missing else scales


def multiply(x: Tensor, splits: Sequence[int], codes: Tensor, scales: Tensor, out: Tensor, transposed: bool) -> None:
    """`BlockGemm` by Transformer Engine, for experts that have rows."""
    found = [number for number, rows in enumerate(splits) if rows]
    weights = [private.block_weight(codes[number], scales[number], transposed=transposed) for number in found]
    private.multiply_blocks(x, [splits[number] for number in found], weights, out, transposed=transposed)


def only_allocate(
    x: Tensor, splits: Sequence[int], codes: Tensor, scales: Tensor, out: Tensor, transposed: bool
) -> None:
    """`BlockGemm` on fake tensors: what exists while it runs is the rows' codes and scales."""
    x.new_empty(x.shape, dtype=torch.uint8), x.new_empty(-(-x.shape[1] // TILE), len(x), dtype=torch.float32)
