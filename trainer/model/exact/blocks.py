"""Matrix products whose rows do not depend on each other: compiled, or torch's by blocks of a fixed number of rows.

Legend: T rows · M inner dimension · N columns.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.model.exact.compiled import compiles, product

ROWS = 16  # of a block of activations
EXPERT_ROWS = 8  # of a block of an expert's rows
KEYS = 64  # of a block of keys
QUERY_ROWS = 8  # the fewest rows, queries x heads, that a block of keys is multiplied with


def block_mm(x: Tensor, matrix: Tensor, rows: int, out: Tensor | None = None) -> Tensor:
    """x [T, M] @ matrix [M, N] -> [T, N], in products of `rows` rows; outside autograd. out: contiguous [T, N], for a
    T that `rows` divides."""
    tokens, inner = x.shape
    if more := -tokens % rows:
        x = F.pad(x, (0, 0, 0, more))
    blocks = x.reshape(-1, rows, inner)
    into = None if out is None else out.view(-1, rows, out.shape[1])
    found = torch.bmm(blocks, matrix.expand(len(blocks), -1, -1), out=into)
    return found.flatten(0, 1)[:tokens]


def block_linear(x: Tensor, weight: Tensor) -> Tensor:
    """F.linear by compiled products, or by blocks of `ROWS` rows; outside autograd."""
    if compiles(x):
        return product(x.flatten(0, -2), weight.t()).view(*x.shape[:-1], len(weight))
    return block_mm(x.flatten(0, -2), weight.t(), ROWS).view(*x.shape[:-1], len(weight))


class BlockLinear(torch.autograd.Function):
    """`block_linear` with the usual gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return block_linear(x, weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        dy, needs = grads[0], ctx.needs_input_grad
        dx = dy @ weight if needs[0] else None
        return dx, dy.flatten(0, -2).t() @ x.flatten(0, -2) if needs[1] else None
