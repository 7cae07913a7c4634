"""Transformer Engine's GroupedLinear as shipped: one module for w13, one for w2, no bias, its recipes' defaults.

By row counts on the host (its default: a GEMM for each expert over several streams, and a wait for the counts) or on
the device (`use_grouped_tensor`: one grouped GEMM, where cuBLASLt has it). Its weight cache holds quantised weights
from the first micro-batch of a step on; with it, what is timed is a later one.
"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tests.bench.gpu.clock import Arm, Skipped, tolerance_of
from tests.bench.gpu.gemms import NAMES, Operands, counts_of
from trainer.config.checks.precision import TRANSFORMER_ENGINE
from trainer.model.experts.te import support
from trainer.model.experts.te.support import INSTALL, NATIVE_ROWS, RECIPES


@dataclass(frozen=True)
class Variant:
    """recipe: a key of RECIPES, None for bf16. on_device: the row counts stay there. cached: quantised weights too."""

    recipe: str | None
    on_device: bool = False
    cached: bool = False

    @property
    def align(self) -> int:
        """The number that an expert's rows must be a multiple of."""
        if self.recipe is None:
            return 1
        return NATIVE_ROWS if self.on_device else TRANSFORMER_ENGINE[self.recipe]

    @property
    def name(self) -> str:
        counts = "device counts" if self.on_device else "host counts"
        return f"TE {self.recipe or 'bf16'}, {counts}{', cached' if self.cached else ''}"

    def unavailable(self, device: torch.device) -> str | None:
        if device.type != "cuda":
            return "Transformer Engine needs a CUDA device"
        if importlib.util.find_spec("transformer_engine") is None:
            return f"Transformer Engine is not installed ({INSTALL})"
        if self.recipe is not None and (reason := support.unavailable(self.recipe, device)):
            return reason
        if self.on_device:
            module = importlib.import_module("transformer_engine.pytorch.module.grouped_linear")
            supported = getattr(module, "is_module_grouped_tensor_path_supported", None)
            if supported is None or not supported(self.recipe_object(), torch.bfloat16):
                return "this Transformer Engine and cuBLASLt would read the counts on the host all the same"
        return None

    def recipe_object(self) -> Any:
        if self.recipe is None:
            return None
        return getattr(importlib.import_module("transformer_engine.common.recipe"), RECIPES[self.recipe].name)()


VARIANTS = (
    Variant(None),
    Variant(None, on_device=True),
    *(Variant(recipe, cached=cached) for recipe in RECIPES for cached in (False, True)),
    *(Variant(recipe, on_device=True, cached=True) for recipe in RECIPES),
)


class GroupedPair:
    """Two GroupedLinear whose weights are w13 [E, 2I, H] and w2 [E, H, I], in their memory."""

    def __init__(self, variant: Variant, w13: Tensor, w2: Tensor) -> None:
        self.te = importlib.import_module("transformer_engine.pytorch")
        self.variant, self.recipe = variant, variant.recipe_object()
        self.into, self.out_of = self._linear(w13), self._linear(w2)
        self._filled = False

    def _linear(self, weights: Tensor) -> Any:
        experts, out_features, in_features = weights.shape
        native = {"use_grouped_tensor": True} if self.variant.on_device else {}
        module = self.te.GroupedLinear(
            experts, in_features, out_features, bias=False, params_dtype=weights.dtype, device=weights.device, **native
        )
        for number, weight in enumerate(weights.unbind(0)):
            getattr(module, f"weight{number}").data = weight
        return module

    def splits(self, offsets: Tensor) -> Any:
        """Rows of each expert, as the variant wants them."""
        counts = counts_of(offsets)
        return counts.long() if self.variant.on_device else counts.tolist()

    def precision(self) -> Any:
        return self.te.autocast(enabled=self.recipe is not None, recipe=self.recipe)

    def first_microbatch(self) -> bool | None:
        """The flag for GroupedLinear: None keeps no quantised weights, True fills its cache, False reads it."""
        if not self.variant.cached:
            return None
        first, self._filled = not self._filled, True
        return first

    def parameters(self) -> list[Tensor]:
        return [
            getattr(module, f"weight{number}")
            for module in (self.into, self.out_of)
            for number in range(module.num_gemms)
        ]


def gemms(variant: Variant, given: Operands) -> Arm | Skipped:
    """The six products, quantising what it multiplies as it goes."""
    reason = variant.unavailable(given.x.device)
    return Skipped(reason) if reason else gemms_arm(variant, given)


def gemms_arm(variant: Variant, given: Operands) -> Arm:
    padded, pair = given.pad_operands(variant.align), GroupedPair(variant, given.w13, given.w2)
    used = padded.rows if variant.on_device else int(padded.offsets[-1])  # counts on the host must add up to the rows
    x, act = (rows[:used].detach().requires_grad_() for rows in (padded.x, padded.act))
    dy, d_hidden = padded.dy[:used], padded.d_hidden[:used]

    def forward() -> tuple[Tensor, ...]:
        splits, first = pair.splits(padded.offsets), pair.first_microbatch()
        with pair.precision():
            hidden = pair.into(x, splits, is_first_microbatch=first)
            y = pair.out_of(act, splits, is_first_microbatch=first)
        return hidden, y

    def both() -> tuple[Any, ...]:
        made = forward()
        return made, torch.autograd.grad(made, [x, act, *pair.parameters()], [d_hidden, dy])

    def results() -> dict[str, Tensor]:
        (hidden, y), (dx, d_act, *d_weights) = both()
        experts = pair.into.num_gemms
        d_w13, d_w2 = torch.stack(d_weights[:experts]), torch.stack(d_weights[experts:])
        return padded.unpad(dict(zip(NAMES, (hidden, y, d_act, dx, d_w2, d_w13), strict=True)))

    return Arm(forward, both, results, tolerance_of(variant.recipe or "bf16"))
