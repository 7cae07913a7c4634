"""The products of adapted experts: of rows with frozen matrices, and of rows with adapters.

Legend: P rows, sorted by expert · M inputs · N outputs · E experts.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from parallel.dispatch.base import RowOrder
from parallel.dispatch.padding import PaddedOrder
from trainer.model.ops import TORCH, Ops

ALIGN = 16  # bytes; torch's grouped GEMM takes no matrix whose rows are not a multiple of them


class Rows(NamedTuple):
    """The rows of the experts: as sorted, and as laid out with each expert's part padded."""

    order: RowOrder
    padded: PaddedOrder


class Products(Protocol):
    """Products of each expert's rows, outside autograd."""

    def times(self, x: Tensor, matrices: Tensor, rows: Rows) -> Tensor:
        """x: [P, M]; matrices: [E, M, N] -> [P, N], zero where no expert has a row."""

    def outer(self, x: Tensor, y: Tensor, rows: Rows) -> Tensor:
        """x: [P, M]; y: [P, N] -> [E, M, N]: for each expert the sum over its rows of x y^T; zero without rows."""


class LoopProducts:
    """One matmul after another, in any dtype; reads the numbers of rows on the host. For rows without padding."""

    def times(self, x: Tensor, matrices: Tensor, rows: Rows) -> Tensor:
        found = x.new_empty(len(x), matrices.shape[2])
        for expert, (start, end) in enumerate(pairwise([0, *rows.order.ends()])):
            if end > start:
                torch.mm(x[start:end], matrices[expert], out=found[start:end])
        return found

    def outer(self, x: Tensor, y: Tensor, rows: Rows) -> Tensor:
        found = x.new_zeros(matrices_of(rows), x.shape[1], y.shape[1])
        for expert, (start, end) in enumerate(pairwise([0, *rows.order.ends()])):
            if end > start:
                torch.mm(x[start:end].t(), y[start:end], out=found[expert])
        return found


class GroupedProducts:
    """torch's grouped GEMM, in bf16 on CUDA. Ranks whose rows are not a multiple of 16 bytes are padded with zeros."""

    def __init__(self, ops: Ops = TORCH) -> None:
        self.ops = ops

    def times(self, x: Tensor, matrices: Tensor, rows: Rows) -> Tensor:
        inputs, outputs = (_missing(size, x) for size in matrices.shape[1:])
        if inputs or outputs:
            x, matrices = F.pad(x, (0, inputs)), F.pad(matrices, (0, outputs, 0, inputs))
        found = rows.padded.zero_tail(self.ops.grouped_mm(x, matrices, rows.padded.offsets))
        return found[:, : found.shape[1] - outputs]

    def outer(self, x: Tensor, y: Tensor, rows: Rows) -> Tensor:
        left, right = _missing(x.shape[1], x), _missing(y.shape[1], y)
        found = F.grouped_mm(F.pad(x, (0, left)).t(), F.pad(y, (0, right)), offs=rows.padded.offsets)
        return found[:, : x.shape[1], : y.shape[1]]


def matrices_of(rows: Rows) -> int:
    """E, of this rank."""
    return rows.order.num_experts


def _missing(size: int, like: Tensor) -> int:
    return -size % max(1, ALIGN // like.element_size())


class FrozenProducts(Protocol):
    """The products with one frozen matrix of each expert. `align`: the number of each expert's rows is to be a multiple
    of it."""

    align: int

    def forward(self, x: Tensor, weight: Tensor, rows: Rows, products: Products) -> Tensor:
        """x: [P, M]; weight: [E, N, M] as it is stored -> [P, N]."""

    def input_gradient(self, dy: Tensor, weight: Tensor, rows: Rows, products: Products) -> Tensor:
        """dy: [P, N], the gradient of the result -> [P, M], that of x."""


class PlainProducts:
    """Frozen matrices as they are stored, cast to the dtype of the rows."""

    align = 1

    def forward(self, x: Tensor, weight: Tensor, rows: Rows, products: Products) -> Tensor:
        return products.times(x, weight.to(x.dtype).mT, rows)

    def input_gradient(self, dy: Tensor, weight: Tensor, rows: Rows, products: Products) -> Tensor:
        return products.times(dy, weight.to(dy.dtype), rows)
