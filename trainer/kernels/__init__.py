"""Fused kernels for CUDA, each with a twin in plain torch that runs on any device.

`use` chooses which of the two CUDA tensors get; CPU tensors get the twin. Triton is imported when its kernels are
first used. The launchers stand in modules called `triton_*`, which nothing else imports.

| function | instead of | used by |
|---|---|---|
| `swiglu.weighted_swiglu`, `swiglu_gradients` | silu(gate) * up * weight and its gradients | the FP8 experts |
| `rows.pad_order` | `parallel.dispatch.padding.PaddedOrder`: sort, pad, gather, sum | the FP8 experts |
| `router.fused_routing` | `select_experts`, `router_weights` and its gradients | the router |
| `payload.FusedFp8` | `parallel.dispatch.payload.Fp8`: quantise 1 x 128, pack, and back | the dispatcher |
| `experts.fused_grouped_swiglu` | what stands between the matmuls of `grouped_mm` | the bf16 experts |

Quantising is fused only into what travels: Transformer Engine refuses operands that are in FP8 already, so it quantises
what `weighted_swiglu` and the gather make in passes of its own.

No profile has shown yet that they pay, so torch is the default; `make bench-gpu` times each under both, as
`tests/trainer/kernels/examples.py` calls it.
"""

from __future__ import annotations

import importlib.util
import os

import torch
from torch import Tensor

_chosen = "torch"
_MISSING = (
    "train.kernels=triton needs the package triton, which torch's CUDA builds for Linux bring along: "
    "install such a torch, or use train.kernels=torch"
)


def refusal(name: str, payload: str, device: torch.device) -> str | None:
    """Why the kernels called `name` cannot be used on `device`, and what can; None where they can. payload: as
    `precision.payload`."""
    if name == "torch":
        return None
    if device.type != "cuda":
        return f"train.kernels=triton needs a CUDA device, and this run has a {device.type}; use train.kernels=torch"
    if importlib.util.find_spec("triton") is None:
        return _MISSING
    if payload == "fp8" and torch.cuda.get_device_capability(device) < (8, 9):
        return (
            "train.kernels=triton has no FP8 numbers below compute capability 8.9, which precision.payload=fp8 needs; "
            "use train.kernels=torch"
        )
    return None


def use(name: str) -> None:
    """Choose what CUDA tensors get from now on, for the whole process: "torch" (the default) or "triton".

    Raises ValueError for another name, RuntimeError where Triton is asked for and not installed.
    """
    global _chosen
    if name not in ("torch", "triton"):
        raise ValueError(f"train.kernels={name} is not known; use torch or triton")
    if name == "triton" and importlib.util.find_spec("triton") is None:
        raise RuntimeError(_MISSING)
    _chosen = name


def chosen() -> str:
    """What `use` was last told."""
    return _chosen


def on_triton(x: Tensor) -> bool:
    """Whether Triton's kernels take `x`.

    Not in fp64, which they would narrow; nor inside torch.compile, which fuses the twins itself. On a CPU only in
    Triton's interpreter (its own switch, TRITON_INTERPRET=1), for tests.
    """
    if torch.compiler.is_compiling() or _chosen == "torch" or x.dtype == torch.float64:
        return False
    return x.is_cuda or os.environ.get("TRITON_INTERPRET") == "1"
