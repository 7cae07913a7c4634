"""The back end on Transformer Engine's `GroupedLinear`.

It does quantisation, GEMMs and their gradients, and owns nothing: w13 and w2 stay the only parameters, so that FSDP,
checkpoints and optimizers see nothing of FP8. At each call its weights are views of ours. Between its two GEMMs are our
static-shape padding and `Ops.weighted_swiglu`.

Legend: T tokens · K experts per token · P padded rows · E experts of this rank · I expert width · H hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from parallel.dispatch.base import RowOrder
from parallel.dispatch.padding import PaddedOrder
from trainer.model.experts.te import private, support
from trainer.model.experts.te.gradient import WeightGradient
from trainer.model.experts.te.support import RECIPES
from trainer.model.ops import TORCH, Ops

GEMM_DTYPE = torch.bfloat16  # of the inputs and results of the quantised GEMMs, whatever the dtype of x
# Steps whose largest numbers set a delayed scale. Transformer Engine's 1024 counts forward passes, this steps.
AMAX_HISTORY = 16
# For each of the two scaling states: its quantisers per expert, and the largest number of its format. The first
# quantiser is that of the input (of the output's gradient), the second that of the weight.
DIRECTIONS = {"scaling_fwd": (3, 448.0), "scaling_bwd": (2, 57344.0)}


class TransformerEngine:
    """The experts of one layer, w13 [E, 2, I, H] and w2 [E, H, I] in fp32 or bf16, on a GPU where
    `support.unavailable` returns None. Raises ValueError for a recipe that is not a key of RECIPES.

    Weights are rounded to bf16, then quantised; activations are bf16, gradients of fp32 weights fp32. Between
    `hold_weights(True)` and `hold_weights(False)` the quantised weights are kept, and from the second micro-batch on
    the GEMM adds to the gradient that a parameter already has, where nothing else reads that gradient (`gradient`).
    So the calls in between must be those of one step with plain `backward()` calls: no `torch.autograd.grad`, no
    backward in two parts. A CUDA graph is captured while weights are not held: what is kept is freed when the step
    ends.

    Delayed scaling quantises with scales that come from earlier numbers. Here they change once a step, at
    `hold_weights(False)`, from the largest numbers of the last steps, so that a forward pass repeated to save memory
    computes the same again. A pass without gradients while weights are not held (evaluation, generation) uses the
    scales and does not change them. The first scales of a run come from its first numbers. Scales are not
    checkpointed: a resumed run takes first scales again and is not bitwise the same.
    """

    def __init__(self, recipe: str, ops: Ops = TORCH) -> None:
        if recipe not in RECIPES:
            raise ValueError(f"precision.experts={recipe} is not a recipe of Transformer Engine: {', '.join(RECIPES)}")
        self.recipe, self.ops = recipe, ops
        self._held = False
        self._gemms: tuple[_Gemm, _Gemm] | None = None

    def describe(self, experts: int) -> str:
        """Version, recipe, and the path with its cost, for the log. experts: E, which the native path limits."""
        reason = self._why_list_path(experts)
        path = f"list path: one host sync a layer, as {reason}" if reason else "native grouped GEMM: no host sync"
        return f"Transformer Engine {private.installed()}, {RECIPES[self.recipe].name}, {path}"

    def hold_weights(self, hold: bool) -> None:
        self._held = hold
        if not hold and self._gemms is not None:
            for gemm in self._gemms:
                gemm.end_step()

    def __call__(self, x: Tensor, weights: Tensor, w13: Tensor, w2: Tensor, order: RowOrder) -> Tensor:
        if self._gemms is None:
            self._build(w13, w2)
        assert self._gemms is not None
        into, out_of = self._gemms
        padded = self.ops.pad_order(order, support.multiple_of_rows(self.recipe, native=into.native))
        counts = padded.offsets.diff(prepend=padded.offsets.new_zeros(1)).long()
        splits = counts if into.native else _counts_on_host(counts, padded.rows)
        autocast = private.autocast(self._te_recipe, delayed=self.recipe == "fp8_delayed")
        with autocast, into.scaling(self._held), out_of.scaling(self._held):
            hidden = into(padded.gather(x.to(GEMM_DTYPE)), splits, w13, padded, self._held)
            act = self.ops.weighted_swiglu(hidden, padded.gather_weights(weights))
            y = out_of(act, splits, w2, padded, self._held)
        return padded.combine(y).to(x.dtype)

    def _build(self, w13: Tensor, w2: Tensor) -> None:
        experts, _, width, hidden = w13.shape
        native = self._why_list_path(experts) is None
        self._te_recipe = _te_recipe(self.recipe)
        delayed = self.recipe == "fp8_delayed"
        self._gemms = (
            _Gemm(experts, 2 * width, hidden, w13.device, native=native, delayed=delayed),
            _Gemm(experts, hidden, width, w2.device, native=native, delayed=delayed),
        )

    def _why_list_path(self, experts: int) -> str | None:
        version = private.installed()
        if reason := support.why_list_path(self.recipe, *private.machine(), version or "0.0", experts):
            return reason
        if not private.supports_native_path(_te_recipe(self.recipe), GEMM_DTYPE):
            return f"Transformer Engine {version} refuses the native one here"
        return None


class _Gemm:
    """rows [P, columns] of E experts -> [P, rows of a weight], through a `GroupedLinear` without parameters."""

    def __init__(
        self, experts: int, rows: int, columns: int, device: torch.device, *, native: bool, delayed: bool
    ) -> None:
        self.native, self.delayed, self.experts = native, delayed, experts
        self.linear = private.grouped_linear(experts, rows, columns, GEMM_DTYPE, device, native=native)
        # Shown in place of weights that are quantised already, when only the shape is read. Filled with NaN, so any
        # read of its values shows.
        self.blank = torch.full((1, 1, 1), torch.nan, dtype=GEMM_DTYPE, device=device).expand(experts, rows, columns)
        self.quantised = False
        self.scaled = dict.fromkeys(DIRECTIONS, not delayed)

    def __call__(self, x: Tensor, splits: Tensor | list[int], weight: Tensor, order: PaddedOrder, held: bool) -> Tensor:
        """order: of the rows. The native path writes nothing behind the last expert's, forward or backward; a scale
        over all rows must not see what the memory held there."""
        kept = held and self.quantised
        whole = self.blank if kept else weight.detach().to(GEMM_DTYPE).contiguous().view(self.blank.shape)
        if not self.scaled["scaling_fwd"]:
            private.make_scaling_state(self.linear, self.experts)
            self._first_scales("scaling_fwd", x.detach().abs().amax(), whole.abs().amax((1, 2)))
        gradient = WeightGradient(weight, add=kept and torch.is_grad_enabled())
        matrices = gradient.matrices(whole)
        private.show_weights(self.linear, matrices)
        self.linear.fuse_wgrad_accumulation = gradient.by_gemm
        try:  # recomputation leaves a forward pass by an exception once it has what it needs
            y = self.linear(x, splits, is_first_microbatch=not kept if held else None)
        finally:
            private.show_weights(self.linear, [None] * self.experts)  # else they would keep the graph
        self.quantised = kept or (held and torch.is_grad_enabled())  # without gradients only one layout is made
        order.zero_tail(y)
        if x.requires_grad:
            x.register_hook(order.zero_tail)
        if y.requires_grad:
            gradient.forget_values(matrices, self.blank)
            y.register_hook(lambda _: gradient.prepare(matrices))
            if not self.scaled["scaling_bwd"]:
                y.register_hook(lambda dy: self._first_scales("scaling_bwd", dy.abs().amax()))
        return y

    @contextmanager
    def scaling(self, held: bool) -> Iterator[None]:
        """Around a forward pass: one that is not part of training leaves delayed scales, and their history, alone."""
        if not self.delayed or held or torch.is_grad_enabled():
            yield
            return
        private.make_scaling_state(self.linear, self.experts)
        state, scaled = private.scaling_state(self.linear, "scaling_fwd"), self.scaled["scaling_fwd"]
        moved = state.scale, state.amax_history[0]
        before = [tensor.clone() for tensor in moved]
        try:
            yield
        finally:
            for tensor, value in zip(moved, before, strict=True):
                tensor.copy_(value)
            self.scaled["scaling_fwd"] = scaled

    def end_step(self) -> None:
        """Forget the quantised weights; delayed scales follow the numbers of the step."""
        self.quantised = False
        private.forget_quantised_weights(self.linear)
        if not self.delayed:
            return
        for direction, (_, largest) in DIRECTIONS.items():
            if (state := private.scaling_state(self.linear, direction)) is not None:
                # A step with a number that is not finite is skipped; it must not freeze the scales for as long as the
                # history keeps it.
                state.amax_history[0].nan_to_num_(0.0, 0.0, 0.0)
                _set_scale(state.scale, state.amax_history.amax(0), largest)
                state.amax_history.copy_(state.amax_history.roll(-1, 0))
                state.amax_history[0].zero_()

    def _first_scales(self, direction: str, *amax: Tensor) -> None:
        """Scales for delayed scaling before there is a history: with the initial 1, small gradients would all become
        zero. amax: for the quantisers of an expert in this direction, in their order."""
        stride, largest = DIRECTIONS[direction]
        scale = private.scaling_state(self.linear, direction).scale.view(-1, stride)
        for quantiser, found in enumerate(amax):
            _set_scale(scale[:, quantiser], found.float(), largest)
        self.scaled[direction] = True


def _set_scale(scale: Tensor, amax: Tensor, largest: float) -> None:
    """`largest` / amax, in place; unchanged where amax is zero or not finite. No host sync."""
    scale.copy_(torch.where((amax > 0) & amax.isfinite(), largest / amax, scale))


def _counts_on_host(on_device: Tensor, rows: int) -> list[int]:
    """The rows of each expert, after a host sync. This path wants them to add up to `rows`, so the last expert also
    gets the rows behind its own: zeros, which change nothing."""
    counts: list[int] = on_device.tolist()
    counts[-1] += rows - sum(counts)
    return counts


def _te_recipe(name: str) -> Any:
    options = {"amax_history_len": AMAX_HISTORY, "reduce_amax": False} if name == "fp8_delayed" else {}
    power_of_two = {"fp8_block": True, "fp8_current": False}.get(name)
    return private.make_recipe(RECIPES[name].name, options, power_of_two=power_of_two)
