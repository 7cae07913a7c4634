"""The one place that chooses the back end of the experts."""

from __future__ import annotations

from collections.abc import Callable

import torch

from trainer.model.experts.base import Backend
from trainer.model.experts.fp8_reference import Fp8Reference
from trainer.model.experts.fused_grouped_mm import FusedGroupedMM
from trainer.model.experts.grouped_mm import grouped_mm
from trainer.model.experts.loop import loop
from trainer.model.experts.te.linear import TransformerEngine
from trainer.model.ops import TORCH, Ops

UNQUANTISED: dict[str, Backend] = {"grouped_mm": grouped_mm, "loop": loop}


def choose_backend(
    experts: str, backend: str, ops: Ops = TORCH, *, rounding: torch.dtype | None = None
) -> Callable[[], Backend]:
    """A function that makes the back end of one layer, called once for each layer as quantised ones have state.

    experts: as `precision.experts`. backend: as `model.expert_backend`, for experts that are not quantised. ops: for
    what is between the GEMMs. rounding: as of `Fp8Reference`.
    """
    if experts == "fp8_reference":
        return lambda: Fp8Reference(ops, rounding)
    if experts not in ("fp32", "bf16"):
        return lambda: TransformerEngine(experts, ops)
    if backend == "grouped_mm" and ops is not TORCH:
        return lambda: FusedGroupedMM(ops)
    return lambda: UNQUANTISED[backend]


def describe_backend(experts: str, backend: str, device: torch.device, experts_on_a_rank: int) -> str:
    """The back end on this machine, and why, for the log. Arguments as for `choose_backend`."""
    if experts == "fp8_reference":
        return "1x128 and 128x128 tiles in e4m3, multiplied in fp32 arithmetic: no speed is gained"
    if experts not in ("fp32", "bf16"):
        return TransformerEngine(experts).describe(experts_on_a_rank)
    if backend == "grouped_mm" and device.type != "cuda":
        return "grouped_mm, as a blocked loop: a CPU has no grouped kernel"
    return f"{backend}, as set by model.expert_backend"
