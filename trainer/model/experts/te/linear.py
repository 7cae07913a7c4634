"""Experts on Transformer Engine's grouped GEMMs, under one of its FP8 recipes.

Its `GroupedLinear` does quantisation, GEMMs and their gradients, and is given everything: w13 and w2 stay the only
parameters, so that FSDP, checkpoints and optimizers see nothing of FP8. Its own parameters are taken out when it is
made, and at each call its `weight0`, `weight1`, ... are views of ours. Between its two GEMMs stand our static-shape
padding and `weighted_swiglu`.

Written against the source of 2.20.2 (the list path: of 2.15 too). Used of it beyond what its documentation promises:
`weight{i}` may be any tensor; quantised weights lie in `_fp8_workspaces`; delayed scaling keeps `scale` and
`amax_history` in `fp8_meta`, and leaves them alone under `autocast(_graph=True)`.

Legend: T tokens · K experts per token · P padded rows · E experts of this rank · I expert width · H hidden size.
"""

from __future__ import annotations

import importlib.metadata
import inspect
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from parallel.dispatch.base import RowOrder
from trainer.kernels.rows import pad_order
from trainer.kernels.swiglu import weighted_swiglu
from trainer.model.experts.te import support as te_support
from trainer.model.experts.te.gradient import WeightGradient
from trainer.model.experts.te.support import RECIPES

GEMM_DTYPE = torch.bfloat16  # of what goes into and comes out of the quantised GEMMs, whatever x is
# Steps whose largest numbers set a delayed scale. Transformer Engine's 1024 counts forward passes, this steps.
AMAX_HISTORY = 16
# Of the two directions in `fp8_meta`: quantisers an expert has there, and the largest number of its format. The first
# is that of the input (of the output's gradient), the second that of the weight.
DIRECTIONS = {"scaling_fwd": (3, 448.0), "scaling_bwd": (2, 57344.0)}


def why_not(recipe: str, device: torch.device) -> str | None:
    """Why `recipe` (a key of RECIPES) cannot run on `device`: one clause with what would change that. None if it can.

    Does not import Transformer Engine where something else is in the way.
    """
    on_gpu = device.type == "cuda"
    asked = (recipe, torch.cuda.get_device_capability(device) if on_gpu else None, torch.version.cuda, _installed())
    if found := te_support.problem(*asked):
        return found
    try:
        import transformer_engine.pytorch  # noqa: F401
    except Exception as error:  # a library that is missing, or was built for another torch, ends in one of many kinds
        return te_support.problem(*asked, error=(str(error) or repr(error)).splitlines()[0])
    return None


def _installed() -> str | None:
    try:
        return importlib.metadata.version("transformer-engine")
    except importlib.metadata.PackageNotFoundError:
        return None


class TransformerEngine:
    """The experts of one layer: w13 [E, 2, I, H], w2 [E, H, I], fp32 or bf16, on a GPU that `why_not` has no word
    against.

    Weights are rounded to bf16, then quantised; activations are bf16, gradients of fp32 weights fp32. Between
    `hold_weights(True)` and `hold_weights(False)` the quantised weights are kept, and from the second micro-batch on
    the GEMM adds to the gradient that a parameter already has, where nobody else looks at what is added
    (`te_gradient`). So what is held must be a step of plain `backward()` calls: no `torch.autograd.grad`, no backward
    in two parts. And a CUDA graph is captured while nothing is held: what is kept is freed when the step ends.

    Delayed scaling quantises with scales that come from earlier numbers. Here they change once a step, at
    `hold_weights(False)`, from the largest numbers of the last steps: a forward pass that is repeated to save memory
    computes the same again. What is computed without gradients while nothing is held (evaluation, generation) uses
    them and leaves no trace. The first scales of a run come from the first numbers themselves. They are no part of a
    checkpoint, so that a run that is continued takes first scales again and is not the same to the last bit.
    """

    def __init__(self, recipe: str) -> None:
        if recipe not in RECIPES:
            raise ValueError(f"precision.experts={recipe} is no recipe of Transformer Engine: {', '.join(RECIPES)}")
        self.recipe = recipe
        self._held = False
        self._gemms: tuple[_Gemm, _Gemm] | None = None

    def describe(self, experts: int) -> str:
        """For the log: version, recipe, and the path with what it costs. experts: E, as the native path has a limit."""
        reason = self._why_list_path(experts)
        path = f"list path: one host sync a layer, as {reason}" if reason else "native grouped GEMM: no host sync"
        return f"Transformer Engine {_installed()}, {RECIPES[self.recipe].name}, {path}"

    def hold_weights(self, hold: bool) -> None:
        self._held = hold
        if not hold and self._gemms is not None:
            for gemm in self._gemms:
                gemm.end_step()

    def __call__(self, x: Tensor, weights: Tensor, w13: Tensor, w2: Tensor, order: RowOrder) -> Tensor:
        import transformer_engine.pytorch as te

        if self._gemms is None:
            self._build(w13, w2)
        assert self._gemms is not None
        into, out_of = self._gemms
        padded = pad_order(order, te_support.multiple_of_rows(self.recipe, native=into.native))
        counts = padded.offsets.diff(prepend=padded.offsets.new_zeros(1)).long()
        splits = counts if into.native else _on_host(counts, padded.rows)
        # _graph: else the end of an outermost autocast moves the delayed scales of every layer of the process.
        autocast = te.autocast(enabled=True, recipe=self._te_recipe, _graph=self.recipe == "fp8_delayed")
        with autocast, into.scaling(self._held), out_of.scaling(self._held):
            hidden = into(padded.gather(x.to(GEMM_DTYPE)), splits, w13, self._held)
            # On the native path what stands behind the last expert's rows is not written: it is nobody's, and what is
            # computed with it reaches nothing.
            act = weighted_swiglu(hidden, padded.gather_weights(weights))
            y = out_of(act, splits, w2, self._held)
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
        import transformer_engine.pytorch as te
        import transformer_engine_torch as tex

        found = te.get_device_compute_capability(), tex.get_cublasLt_version(), _installed() or "0.0"
        if reason := te_support.why_list_path(self.recipe, *found, experts):
            return reason
        if not te.module.is_module_grouped_tensor_path_supported(_te_recipe(self.recipe), GEMM_DTYPE):
            return f"Transformer Engine {_installed()} refuses the native one here"
        return None


class _Gemm:
    """rows [P, columns] of E experts -> [P, rows of a weight], through a `GroupedLinear` without parameters."""

    def __init__(
        self, experts: int, rows: int, columns: int, device: torch.device, *, native: bool, delayed: bool
    ) -> None:
        import transformer_engine.pytorch as te

        self.native, self.delayed = native, delayed
        # Said where there is a choice: an environment variable decides otherwise.
        choice = "use_grouped_tensor" in inspect.signature(te.GroupedLinear).parameters
        self.linear = te.GroupedLinear(
            experts, columns, rows, bias=False, params_dtype=GEMM_DTYPE, device="meta",
            **({"use_grouped_tensor": native} if choice else {}),
        )  # fmt: skip
        self.names = [f"weight{e}" for e in range(experts)]
        for e, name in enumerate(self.names):
            delattr(self.linear, name)
            setattr(self.linear, f"bias{e}", torch.empty(0, dtype=GEMM_DTYPE, device=device))
        # Shown in place of weights that are quantised already, of which only the shape is read. If a number of it were,
        # nobody could miss it.
        self.blank = torch.full((1, 1, 1), torch.nan, dtype=GEMM_DTYPE, device=device).expand(experts, rows, columns)
        self.quantised = False
        self.scaled = dict.fromkeys(DIRECTIONS, not delayed)

    def __call__(self, x: Tensor, splits: Tensor | list[int], weight: Tensor, held: bool) -> Tensor:
        kept = held and self.quantised
        whole = self.blank if kept else weight.detach().to(GEMM_DTYPE).contiguous().view(self.blank.shape)
        if not self.scaled["scaling_fwd"]:
            self.linear.init_fp8_metadata(num_gemms=len(whole))  # what it does itself, a little later
            self._first_scales("scaling_fwd", x.detach().abs().amax(), whole.abs().amax((1, 2)))
        gradient = WeightGradient(weight, add=kept and torch.is_grad_enabled())
        matrices = gradient.matrices(whole)
        self._show(matrices)
        self.linear.fuse_wgrad_accumulation = gradient.by_gemm
        try:  # recomputation leaves a forward pass by an exception once it has what it needs
            y = self.linear(x, splits, is_first_microbatch=not kept if held else None)
        finally:
            self._show([None] * len(self.names))  # else they would keep the graph
        self.quantised = kept or (held and torch.is_grad_enabled())  # without gradients it is done in one layout only
        if y.requires_grad:
            gradient.forget_values(matrices, self.blank)
            y.register_hook(lambda _: gradient.prepare(matrices))
            if not self.scaled["scaling_bwd"]:
                y.register_hook(lambda dy: self._first_scales("scaling_bwd", dy.abs().amax()))
        return y

    @contextmanager
    def scaling(self, held: bool) -> Iterator[None]:
        """Around a forward pass: one that is no part of training leaves delayed scales, and what moves them, alone."""
        if not self.delayed or held or torch.is_grad_enabled():
            yield
            return
        self.linear.init_fp8_metadata(num_gemms=len(self.names))  # what it does itself, a little later
        state, scaled = self.linear.fp8_meta["scaling_fwd"], self.scaled["scaling_fwd"]
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
        self.linear._fp8_workspaces.clear()
        for direction, (_, largest) in DIRECTIONS.items():
            if self.delayed and direction in self.linear.fp8_meta:
                state = self.linear.fp8_meta[direction]
                # A step with a number that is not finite is skipped; it must not stop the scales for as long as the
                # history remembers it.
                state.amax_history[0].nan_to_num_(0.0, 0.0, 0.0)
                _set_scale(state.scale, state.amax_history.amax(0), largest)
                state.amax_history.copy_(state.amax_history.roll(-1, 0))
                state.amax_history[0].zero_()

    def _show(self, matrices: Iterable[Tensor | None]) -> None:
        # Past nn.Module's own way to set an attribute, which takes 64 experts a tenth of a millisecond.
        self.linear.__dict__.update(zip(self.names, matrices, strict=True))

    def _first_scales(self, direction: str, *amax: Tensor) -> None:
        """Scales for delayed scaling before there is a history; with the initial 1 small gradients would all become
        zero. amax: of the quantisers that an expert has in this direction, in their order."""
        stride, largest = DIRECTIONS[direction]
        scale = self.linear.fp8_meta[direction].scale.view(-1, stride)
        for quantiser, found in enumerate(amax):
            _set_scale(scale[:, quantiser], found.float(), largest)
        self.scaled[direction] = True


def _set_scale(scale: Tensor, amax: Tensor, largest: float) -> None:
    """`largest` / amax, in place; where that is no number, it stays as it is. No host sync."""
    scale.copy_(torch.where((amax > 0) & amax.isfinite(), largest / amax, scale))


def _on_host(on_device: Tensor, rows: int) -> list[int]:
    """The rows of each expert, for which the host waits. What is nobody's goes to the last expert: zeros, which change
    nothing, as this path wants the rows to add up."""
    counts: list[int] = on_device.tolist()
    counts[-1] += rows - sum(counts)
    return counts


def _te_recipe(name: str) -> Any:
    """Transformer Engine's object. What it would take from environment variables is said."""
    from transformer_engine.common import recipe

    if name == "fp8_delayed":
        made = recipe.DelayedScaling(amax_history_len=AMAX_HISTORY, reduce_amax=False)
    else:
        made = getattr(recipe, RECIPES[name].name)()
    if name in ("fp8_block", "fp8_current"):
        for tensor in ("fwd_inp", "fwd_weight", "bwd_grad"):
            setattr(made, f"fp8_quant_{tensor}", recipe.QParams(power_2_scale=name == "fp8_block"))
    made.backward_override = None
    return made
