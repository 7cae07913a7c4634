"""The choice between plain torch and Triton, made once when a model is built."""

from __future__ import annotations

import importlib.util

import torch

from parallel.errors import Fault
from trainer.model.ops import TORCH, Ops

_INSTALL = "install a CUDA build of torch for Linux, which brings the package triton, or use train.kernels=torch"


def make_ops(name: str) -> Ops:
    """The implementation called `name`: "torch" or "triton". Raises ImportError where Triton is not installed."""
    if name == "torch":
        return TORCH
    from trainer.kernels.triton_ops import TritonOps

    return TritonOps()


def unavailable(name: str, payload: str, device: torch.device) -> Fault | None:
    """The reason why `train.kernels=name` cannot run on `device`, with a remedy; None where it can.

    payload: as `precision.payload`.
    """
    if name == "torch":
        return None
    if device.type != "cuda":
        reason = f"needs a CUDA device, and this run uses a {device.type}; use train.kernels=torch"
    elif importlib.util.find_spec("triton") is None:
        reason = f"needs the package triton; {_INSTALL}"
    elif payload == "fp8" and torch.cuda.get_device_capability(device) < (8, 9):
        reason = (
            "with precision.payload=fp8 needs compute capability 8.9 or newer, the first with FP8 numbers; "
            "use train.kernels=torch"
        )
    else:
        return None
    return Fault(f"train.kernels={name} {reason}", where="train.kernels", value=name, allowed=("torch",))
