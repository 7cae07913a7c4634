"""A rank's part of a parameter: which one it is, and its storage."""

from __future__ import annotations

from torch import Tensor
from torch.distributed.tensor import DTensor

from parallel.torch_private import local_region


def local(weight: Tensor) -> Tensor:
    """This rank's part of a spread parameter, through autograd; a plain tensor is its own."""
    return weight.to_local() if isinstance(weight, DTensor) else weight


def region(weight: Tensor) -> tuple[slice, ...]:
    """Where this rank's part lies in the whole tensor, one slice for each dimension."""
    if not isinstance(weight, DTensor):
        return tuple(slice(0, size) for size in weight.shape)
    return local_region(weight)
