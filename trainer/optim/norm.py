"""Sums of squares that are right to 1e-6 however many numbers they are over."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from parallel.torch_private import foreach_norm
from trainer.model.numerics import wide

# Numbers that a CPU adds in their own dtype before the sums continue in fp64. torch's norm adds one after another in
# each lane of a vector: with equal numbers a row of 512 is off by 4e-7, one of 4096 by 4e-6, 10^8 numbers by 1e-2.
ROW = 512


def sum_of_squares(tensors: Sequence[Tensor], device: torch.device) -> Tensor:
    """The sum of the squares of all elements, 0-dim in fp64 on `device`, where the tensors are.

    Relative error below 1e-6 for fp32 and better. Does not wait for the device. On a CPU the square of a number must be
    within the range of fp32, as for torch's own norm.
    """
    tensors = [tensor for tensor in tensors if tensor.numel()]  # a rank may hold an empty shard
    if not tensors:
        return torch.zeros((), dtype=torch.float64, device=device)
    if device.type != "cpu":  # bound by memory: fp64 costs nothing there
        return torch.stack(foreach_norm(tensors, torch.float64)).square().sum()
    return torch.cat([rows for tensor in tensors for rows in _row_norms(tensor)]).double().square().sum()


def _row_norms(tensor: Tensor) -> list[Tensor]:
    """The norms of rows of at most ROW numbers that together hold all of `tensor`."""
    flat = tensor.reshape(-1)
    dtype, whole = wide(flat.dtype), len(flat) // ROW * ROW
    parts = (flat[:whole].view(-1, ROW), flat[whole:].view(1, -1))
    return [torch.linalg.vector_norm(part, dim=-1, dtype=dtype) for part in parts if part.numel()]
