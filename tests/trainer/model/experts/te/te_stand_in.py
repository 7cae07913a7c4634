"""A stand-in for Transformer Engine that runs on a CPU, with the signatures and the behaviour of 2.20.2.

What a caller can get wrong is the same: the arguments, what `is_first_microbatch` does with kept weights, `main_grad`
and accumulation, gradients of all experts in one piece, rows without an owner (they are NaN here), scales that a
process shares. What it computes is plain arithmetic, but under delayed scaling, whose codes are rounded for the sake of
the scales.
"""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.trainer.model.experts.te import te_blocks

PACKAGE = "transformer_engine"
BLOCKS = (te_blocks.Float8BlockQuantizer, te_blocks.Float8BlockwiseQTensorStorage)


class Recipe:
    def __init__(self) -> None:
        self.backward_override: str | None = "high_precision"  # an environment variable says so


class Float8BlockScaling(Recipe): ...


class Float8CurrentScaling(Recipe): ...


class MXFP8BlockScaling(Recipe): ...


class DelayedScaling(Recipe):
    def __init__(self, amax_history_len: int = 1024, reduce_amax: bool = True) -> None:
        super().__init__()
        assert not reduce_amax, "an all-reduce of each layer, which ranks do not reach together"
        self.amax_history_len = amax_history_len


STATE = SimpleNamespace(recipe=None, depth=0, shared=[])


class autocast:
    """The end of an outermost one moves the delayed scales of every layer of the process; with `_graph`, of none."""

    def __init__(
        self,
        enabled: bool = True,
        calibrating: bool = False,
        recipe: Any = None,
        amax_reduction_group: Any = None,
        _graph: bool = False,
    ) -> None:
        assert enabled
        assert recipe.backward_override is None, "the backward pass would be in high precision"
        self.recipe, self.graph = recipe, _graph

    def __enter__(self) -> None:
        self.before = STATE.recipe, getattr(STATE, "graph", False)
        STATE.recipe, STATE.graph, STATE.depth = self.recipe, self.graph, STATE.depth + 1

    def __exit__(self, *_: object) -> None:
        (STATE.recipe, STATE.graph), STATE.depth = self.before, STATE.depth - 1
        if STATE.depth == 0 and not self.graph and torch.is_grad_enabled():
            for state in STATE.shared:
                state.scale.mul_(2.0)


def quantise(x: Tensor, state: Any, slot: int, fp8: torch.dtype) -> Tensor:
    """Under delayed scaling: rounds by the slot's scale and records the largest number; else nothing."""
    if state is None:
        return x.clone()
    scale, largest = state.scale[slot], torch.finfo(fp8).max
    if x.numel():
        state.amax_history[0, slot] = torch.maximum(state.amax_history[0, slot], x.detach().abs().amax().float())
    return ((x.float() * scale).clamp(-largest, largest).to(fp8).float() / scale).to(x.dtype)


class _GroupedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: GroupedLinear, splits: list[int], first: Any, *weights: Tensor) -> Tensor:
        experts = len(weights)
        state = layer.fp8_meta.get("scaling_fwd")
        for e, weight in enumerate(weights):
            kept = layer._fp8_workspaces.get(f"weight{e}") if first is not None else None
            if kept is None or first in (None, True):
                kept = quantise(weight.detach(), state, 3 * e + 1, torch.float8_e4m3fn)
                layer.quantised_weights += 1
            if first is not None:
                layer._fp8_workspaces[f"weight{e}"] = kept
            layer.used[e] = kept
        parts = [
            quantise(part, state, 3 * e, torch.float8_e4m3fn) for e, part in enumerate(x[: sum(splits)].split(splits))
        ]
        y = x.new_full((len(x), weights[0].shape[0]), torch.nan)  # rows behind the last expert's are not written
        y[: sum(splits)] = torch.cat([part @ w.t() for part, w in zip(parts, layer.used, strict=True)])
        ctx.save_for_backward(*parts, *layer.used)
        ctx.splits, ctx.experts, ctx.state = splits, experts, layer.fp8_meta.get("scaling_bwd")
        ctx.fuse = layer.fuse_wgrad_accumulation
        ctx.accumulate = ctx.fuse and not first and not getattr(weights[0], "overwrite_main_grad", False)
        ctx.weights = weights if ctx.fuse else None  # kept for their main_grad, which is read in backward
        ctx.wants_weights, ctx.written_to = weights[0].requires_grad, layer.written_to
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        parts, weights = saved[: ctx.experts], saved[ctx.experts :]
        dy = grads[0]
        assert dy.dtype == parts[0].dtype
        pieces = [
            quantise(part, ctx.state, 2 * e, torch.float8_e5m2)
            for e, part in enumerate(dy[: sum(ctx.splits)].split(ctx.splits))
        ]
        dx = torch.full((len(dy), weights[0].shape[1]), torch.nan, dtype=dy.dtype)
        dx[: sum(ctx.splits)] = torch.cat([piece @ w for piece, w in zip(pieces, weights, strict=True)])
        if not ctx.wants_weights:
            return dx, None, None, None, *[None] * ctx.experts
        if ctx.fuse:
            main_grads = [weight.main_grad for weight in ctx.weights]
            ctx.written_to.append(main_grads[0].data_ptr())
            for main_grad, piece, part in zip(main_grads, pieces, parts, strict=True):
                assert main_grad.dtype == torch.float32
                wgrad = (piece.t() @ part).float()
                main_grad.copy_(main_grad + wgrad if ctx.accumulate else wgrad)
            return dx, None, None, None, *[None] * ctx.experts
        packed = torch.empty(ctx.experts, *weights[0].shape, dtype=dy.dtype)
        for out, piece, part in zip(packed, pieces, parts, strict=True):
            out.copy_(piece.t() @ part)
        return dx, None, None, None, *(packed[e] for e in range(ctx.experts))


class GroupedLinear(nn.Module):
    # The arguments of 2.20.2, in their order; `test_te_stand_in` compares them where the package is installed.
    def __init__(
        self,
        num_gemms: int,
        in_features: int,
        out_features: int,
        sequence_parallel: bool = False,
        fuse_wgrad_accumulation: bool = False,
        tp_group: Any = None,
        tp_size: int = 1,
        get_rng_state_tracker: Any = None,
        rng_tracker_name: str | None = None,
        init_method: Any = None,
        bias: bool = True,
        return_bias: bool = False,
        params_dtype: torch.dtype | None = None,
        parallel_mode: str | None = None,
        device: Any = "cuda",
        ub_overlap_rs: bool = False,
        ub_overlap_ag: bool = False,
        ub_name: str | None = None,
        delay_wgrad_compute: bool = False,
        save_original_input: bool = False,
        single_grouped_weight: bool = False,
        single_grouped_bias: bool = False,
        name: str | None = None,
        use_grouped_tensor: bool | None = None,
    ) -> None:
        super().__init__()
        assert not bias
        assert isinstance(use_grouped_tensor, bool), "None leaves the choice to an environment variable"
        self.num_gemms, self.use_grouped_tensor = num_gemms, use_grouped_tensor
        self.fuse_wgrad_accumulation = fuse_wgrad_accumulation
        for e in range(num_gemms):
            weight = torch.empty(out_features, in_features, device=device, dtype=params_dtype)
            self.register_parameter(f"weight{e}", nn.Parameter(weight))
            setattr(self, f"bias{e}", torch.empty(0, device=device))
        self.dtype = params_dtype
        self.fp8_meta: dict[str, Any] = {}
        self._fp8_workspaces: dict[str, Tensor] = {}
        self.used: list[Any] = [None] * num_gemms
        self.quantised_weights = 0
        self.calls: list[SimpleNamespace] = []
        self.written_to: list[int] = []  # address of the first expert's weight gradient, at each backward pass

    def init_fp8_metadata(self, num_gemms: int = 1) -> None:
        assert STATE.recipe is not None, "outside autocast it would switch FP8 off"
        if not isinstance(STATE.recipe, DelayedScaling) or self.fp8_meta:
            return
        for direction, stride in (("scaling_fwd", 3), ("scaling_bwd", 2)):
            size = stride * num_gemms
            self.fp8_meta[direction] = SimpleNamespace(
                scale=torch.ones(size), amax_history=torch.zeros(STATE.recipe.amax_history_len, size)
            )

    def forward(
        self,
        inp: Tensor,
        m_splits: Any,
        is_first_microbatch: bool | None = None,
        out: Tensor | None = None,
        dgrad_out: Tensor | None = None,
    ) -> Tensor:
        assert inp.dtype == self.dtype
        assert inp.is_contiguous()
        self.init_fp8_metadata(self.num_gemms)
        if self.fp8_meta and not STATE.graph and self.fp8_meta["scaling_fwd"] not in STATE.shared:
            STATE.shared.extend(self.fp8_meta.values())
        assert isinstance(m_splits, Tensor) == self.use_grouped_tensor, "a CUDA tensor falls back through the host"
        if isinstance(m_splits, Tensor):
            assert m_splits.dtype == torch.int64
            assert not (m_splits % 128).any(), "the native path's tiles"
            splits = m_splits.tolist()
        else:
            splits = m_splits
            assert sum(splits) == len(inp), "the list path wants tight packing"
        assert len(splits) == self.num_gemms
        weights = [getattr(self, f"weight{e}") for e in range(self.num_gemms)]
        adds = self.fuse_wgrad_accumulation and not is_first_microbatch
        adds = adds and not getattr(weights[0], "overwrite_main_grad", False)
        self.calls.append(SimpleNamespace(splits=splits, first=is_first_microbatch, adds=adds, shown=weights))
        return _GroupedLinear.apply(inp, self, splits, is_first_microbatch, *weights)


def module_tree(
    *, capability: tuple[int, int] = (9, 0), cublaslt: int = 130600, native: bool = True
) -> dict[str, ModuleType]:
    """Entries of `sys.modules` once the package is imported. native: True if it reports that the native path works."""
    package, pytorch, common, recipe, module, extension = (
        ModuleType(name)
        for name in (
            PACKAGE, f"{PACKAGE}.pytorch", f"{PACKAGE}.common", f"{PACKAGE}.common.recipe", f"{PACKAGE}.pytorch.module",
            "transformer_engine_torch",
        )
    )  # fmt: skip
    vars(package).update(pytorch=pytorch, common=common)
    vars(common).update(recipe=recipe)
    vars(recipe).update(
        {cls.__name__: cls for cls in (Float8BlockScaling, Float8CurrentScaling, MXFP8BlockScaling, DelayedScaling)},
        QParams=lambda power_2_scale: SimpleNamespace(power_2_scale=power_2_scale),
    )
    vars(pytorch).update(GroupedLinear=GroupedLinear, autocast=autocast, module=module)
    vars(pytorch).update(get_device_compute_capability=lambda: capability)
    vars(module).update(is_module_grouped_tensor_path_supported=lambda recipe, dtype: native)
    vars(extension).update(get_cublasLt_version=lambda: cublaslt)
    vars(extension).update(DType=te_blocks.DTYPE, split_quantize=te_blocks.split_quantize)
    vars(pytorch).update({cls.__name__: cls for cls in BLOCKS})
    return {tree.__name__: tree for tree in (package, pytorch, common, recipe, module, extension)}


def install(monkeypatch: pytest.MonkeyPatch, version: str = "2.20.2", **what: Any) -> te_blocks.Gemms:
    """The stand-in, until the test ends, and the GEMMs that will have been called. what: as for `module_tree`."""
    from trainer.model.experts.te import private

    STATE.recipe, STATE.depth, STATE.shared, STATE.graph = None, 0, [], False
    for name, tree in module_tree(**what).items():
        monkeypatch.setitem(sys.modules, name, tree)
    monkeypatch.setattr(private, "installed", lambda: version)
    gemms, name = te_blocks.Gemms(), f"{PACKAGE}.pytorch.cpp_extensions"
    extensions = ModuleType(name)
    vars(extensions).update(general_grouped_gemm=gemms.general_grouped_gemm)
    monkeypatch.setitem(sys.modules, name, extensions)
    return gemms
