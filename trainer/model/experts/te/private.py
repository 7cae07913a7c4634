"""Every name of Transformer Engine that its documentation does not promise, each with the reason for its use.

Written against the source of 2.20.2; the list path also against 2.15. `test_private.py` holds a canary for each: it
fails where a version has changed what is used here.

Legend: P padded rows · E experts of this rank.
"""

from __future__ import annotations

import importlib.metadata
import inspect
from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import Tensor


def installed() -> str | None:
    """The version that is installed, without importing it."""
    try:
        return importlib.metadata.version("transformer-engine")
    except importlib.metadata.PackageNotFoundError:
        return None


class Machine(NamedTuple):
    """capability: of the GPU. cublaslt: as the library numbers itself, 130600 for 13.6."""

    capability: tuple[int, int]
    cublaslt: int


def machine() -> Machine:
    """Reason: no public function returns the version of cuBLASLt, on which the native path depends."""
    import transformer_engine.pytorch as te
    import transformer_engine_torch as extension

    return Machine(te.get_device_compute_capability(), extension.get_cublasLt_version())


def supports_native_path(recipe: Any, dtype: torch.dtype) -> bool:
    """Reason: GroupedLinear asks this itself and falls back to the list path without a warning."""
    import transformer_engine.pytorch as te

    return bool(te.module.is_module_grouped_tensor_path_supported(recipe, dtype))


def autocast(recipe: Any, *, delayed: bool) -> AbstractContextManager[Any]:
    """The context in which GEMMs are quantised under `recipe`.

    Reason for `_graph`: without it the end of an outermost autocast moves the delayed scales of every layer of the
    process.
    """
    import transformer_engine.pytorch as te

    return te.autocast(enabled=True, recipe=recipe, _graph=delayed)


def grouped_linear(
    experts: int, rows: int, columns: int, dtype: torch.dtype, device: torch.device, *, native: bool
) -> Any:
    """A `GroupedLinear` of E weights [rows, columns] that owns no parameters; `show_weights` gives it some.

    Reasons: it reads `weight{i}` as attributes, so they may be any tensors, and FSDP, checkpoints and optimizers never
    see them. `use_grouped_tensor` is set where it exists (since 2.19): an environment variable decides otherwise.
    """
    import transformer_engine.pytorch as te

    choice = "use_grouped_tensor" in inspect.signature(te.GroupedLinear).parameters
    linear = te.GroupedLinear(
        experts, columns, rows, bias=False, params_dtype=dtype, device="meta",
        **({"use_grouped_tensor": native} if choice else {}),
    )  # fmt: skip
    for e in range(experts):
        delattr(linear, f"weight{e}")
        setattr(linear, f"bias{e}", torch.empty(0, dtype=dtype, device=device))
    return linear


def show_weights(linear: Any, weights: Iterable[Tensor | None]) -> None:
    """Set what `linear` reads as its weights, or None for each to drop them.

    Reason: nn.Module's own way to set an attribute takes a tenth of a millisecond for 64 experts.
    """
    linear.__dict__.update((f"weight{e}", weight) for e, weight in enumerate(weights))


def forget_quantised_weights(linear: Any) -> None:
    """Free the quantised weights, which are kept in `_fp8_workspaces` until the next first micro-batch otherwise."""
    linear._fp8_workspaces.clear()


def make_scaling_state(linear: Any, experts: int) -> None:
    """Allocate what delayed scaling keeps, inside `autocast`. Reason: `linear` does so only in its forward pass, after
    we need it."""
    linear.init_fp8_metadata(num_gemms=experts)


def scaling_state(linear: Any, direction: str) -> Any:
    """The `scale` and `amax_history` that delayed scaling keeps for "scaling_fwd" or "scaling_bwd"; None before there
    are any. Reason: scales move once a step here, not once a forward pass."""
    return linear.fp8_meta.get(direction)


def make_recipe(name: str, options: dict[str, Any], *, power_of_two: bool | None) -> Any:
    """The recipe object of class `name`, with what it would take from environment variables set.

    power_of_two: round scales of all operands to powers of two; None for recipes without the choice.
    """
    from transformer_engine.common import recipe

    made = getattr(recipe, name)(**options)
    if power_of_two is not None:
        for tensor in ("fwd_inp", "fwd_weight", "bwd_grad"):
            setattr(made, f"fp8_quant_{tensor}", recipe.QParams(power_2_scale=power_of_two))
    made.backward_override = None
    return made


def write_gradient_to(matrix: Tensor, target: Tensor) -> None:
    """Let the weight-gradient GEMM write to, or add to, `target` [rows, columns] fp32 instead of making a gradient.
    Reason: `main_grad` and `fuse_wgrad_accumulation` are Megatron's interface, and no public one gives the place."""
    matrix.main_grad = target  # type: ignore[attr-defined]


def forget_target(matrix: Tensor) -> None:
    """Remove the tensor that the GEMM adds the gradient of `matrix` to."""
    del matrix.main_grad  # type: ignore[attr-defined]


def overwrite_target(matrix: Tensor) -> None:
    """Let the GEMM overwrite its target: otherwise it adds where is_first_microbatch is None. Read since 2.15, from the
    first expert's matrix alone."""
    matrix.overwrite_main_grad = True  # type: ignore[attr-defined]


def block_weight(codes: Tensor, scales: Tensor, *, transposed: bool) -> Any:
    """A matrix that is quantised already, e4m3 codes [N, M] uint8 and an fp32 scale for each 128 x 128 block, in rows
    of a multiple of 4; nothing is copied. transposed: both are of the matrix's transpose, [M, N]. Reason: what is
    public quantises, and makes both orientations."""
    import transformer_engine.pytorch as te
    import transformer_engine_torch as extension

    quantiser = _block_quantiser(2)
    return te.Float8BlockwiseQTensorStorage(
        rowwise_data=None if transposed else codes,
        rowwise_scale_inv=None if transposed else scales,
        columnwise_data=codes if transposed else None,
        columnwise_scale_inv=scales if transposed else None,
        fp8_dtype=extension.DType.kFloat8E4M3,
        quantizer=quantiser,
        is_2D_scaled=True,
        fake_dtype=torch.bfloat16,
    )


def multiply_blocks(x: Tensor, splits: list[int], weights: list[Any], out: Tensor, *, transposed: bool) -> None:
    """x [P, M], rows of consecutive experts, times the transposes of their `block_weight`s [N, M] -> out [P, N];
    transposed: times the weights [M, N] themselves, which have the transposed form. x is rounded to e4m3 in tiles of
    1 x 128. Reason: GroupedLinear quantises its weights in both orientations and keeps them for backward."""
    import transformer_engine_torch as extension
    from transformer_engine.pytorch.cpp_extensions import general_grouped_gemm

    parts = extension.split_quantize(x, splits, [_block_quantiser(1) for _ in splits])
    general_grouped_gemm(
        weights, parts, [out], [None] * len(splits), out.dtype, layout="NN" if transposed else "TN", m_splits=splits,
        grad=transposed, use_split_accumulator=True, single_output=True,
    )  # fmt: skip


def _block_quantiser(dimensions: int) -> Any:
    import transformer_engine.pytorch as te
    import transformer_engine_torch as extension

    made = te.Float8BlockQuantizer(
        extension.DType.kFloat8E4M3, rowwise=True, columnwise=False, amax_epsilon=0.0, force_pow_2_scales=True,
        block_scaling_dim=dimensions,
    )  # fmt: skip
    made.internal = made.optimize_for_gemm = True
    return made
