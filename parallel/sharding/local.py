"""A rank's part of a parameter: its values, and where they are in the whole."""

from __future__ import annotations

from torch import Tensor
from torch.distributed.tensor import DTensor

from parallel.sharding.fragment import Fragment
from parallel.torch_private import dtensor_region


def local_part(weight: Tensor) -> Tensor:
    """This rank's part of a parameter, through autograd; all of it unless it is a DTensor or a Fragment."""
    if isinstance(weight, Fragment):
        return weight.part
    return weight.to_local() if isinstance(weight, DTensor) else weight


def local_region(weight: Tensor) -> tuple[slice, ...]:
    """The position of this rank's part in the whole tensor, one slice for each dimension."""
    if not isinstance(weight, DTensor):
        return tuple(slice(0, size) for size in weight.shape)
    return dtensor_region(weight)
