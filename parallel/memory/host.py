"""Copies in the host's memory, made by an operator of their own: a dispatch mode recognises them by it even where the
device has the same memory, on a CPU and on fake tensors."""

from __future__ import annotations

import torch
from torch import Tensor

_LIBRARY = torch.library.Library("octavo", "FRAGMENT")
_LIBRARY.define("to_host(Tensor x) -> Tensor")


def _to_host(x: Tensor) -> Tensor:
    copy = torch.empty_like(x, device="cpu", pin_memory=x.is_cuda)
    return copy.copy_(x, non_blocking=True)


_LIBRARY.impl("to_host", _to_host, "CompositeExplicitAutograd")
torch.library.register_fake("octavo::to_host", lambda x: torch.empty_like(x, device="cpu"), lib=_LIBRARY)

TO_HOST = torch.ops.octavo.to_host.default


def to_host(x: Tensor) -> Tensor:
    """A copy of `x` in the host's memory, outside autograd. From a GPU it is pinned, and made in the order of the
    current stream, without waiting."""
    return TO_HOST(x.detach())
