"""The dtypes that tensors of a text model are written in, FP8 and its scales included."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from parallel.errors import UserError, one_of
from parallel.fp8 import E4M3_MAX, quantize_tiles
from trainer.config.model import ModelConfig
from trainer.storage.boxes import StoredTensor
from trainer.weights.hf_config import BLOCK
from trainer.weights.hf_read import DTYPES
from trainer.weights.hf_survey import FP8, scale_shape
from trainer.weights.hf_write import OutputTensor
from trainer.weights.map import SCALE_SUFFIX, Piece

KEPT_SCALES = ("F32", "BF16", "F8_E8M0")  # dtypes of scales that hold every power of two, as new scales are
DtypeName = Literal["source", "bf16", "fp32", "fp8"]
FULL = {"F32": "float32", "F16": "float16", "F64": "float64"}  # as config.json spells them; bfloat16 where not listed


def dtypes(asked: DtypeName, kinds: Mapping[str, str]) -> Callable[[Piece], str]:
    """Return the dtype of each piece. kinds: as `SourceModel.kinds`, of the directory that the model comes from, where
    it comes from one. Tables (FoPE's, and of positions in
    a patch) are as there, or fp32. Raises `UserError` for a dtype that does not exist."""
    if asked not in get_args(DtypeName):
        names = get_args(DtypeName)
        raise UserError(f"--dtype={asked}: use {one_of(names)}", where="--dtype", value=asked, allowed=names)

    def choose(piece: Piece) -> str:
        if piece.parameter.startswith("rotary.") or piece.parameter == "signals.patches.positions":
            return kinds.get(piece.kind, "F32")
        if asked == "source" and kinds:
            return kinds[piece.kind]
        if asked == "fp8" and piece.matrix:
            return FP8
        return "F32" if asked == "fp32" else "BF16"

    return choose


def outputs_of(name: str, dtype: str, shape: tuple[int, ...], scales: str = "F32") -> tuple[OutputTensor, ...]:
    """A weight, and in FP8 its scales, of the dtype `scales`."""
    weight = OutputTensor(name, dtype, shape)
    return (weight, OutputTensor(name + SCALE_SUFFIX, scales, scale_shape(shape))) if dtype == FP8 else (weight,)


def scales_as(stored: StoredTensor | None) -> str:
    """The dtype of scales that are written where `stored` were read."""
    return stored.dtype if stored is not None and stored.dtype in KEPT_SCALES else "F32"


def stored_as(values: Tensor, dtype: str, scales: str = "F32", before: Tensor | None = None) -> Sequence[Tensor]:
    """The tensors of `outputs_of` for a weight's values. FP8 is made from their bf16 values, as in training, unless the
    scales `before` still give all values: then these and the codes for them are what was read once."""
    if dtype != FP8:
        return [values.to(DTYPES[dtype])]
    if before is not None and (codes := _codes(values, before)) is not None:
        return codes, before.to(DTYPES[scales])
    codes, scale = quantize_tiles(values.to(torch.bfloat16), (BLOCK[0], BLOCK[1]))
    return codes, scale.reciprocal().to(DTYPES[scales])


def _codes(values: Tensor, scales: Tensor) -> Tensor | None:
    """The codes that give exactly these values with these scales; None if there are none."""
    rows, columns = values.shape[-2:]
    factors = scales.float().repeat_interleave(BLOCK[0], -2)[..., :rows, :].repeat_interleave(BLOCK[1], -1)
    factors = factors[..., :columns]
    codes = (values.float() / factors).clamp_(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)
    return codes if torch.equal((codes.float() * factors).to(values.dtype), values) else None


def width_warnings(model: ModelConfig, dtypes: Collection[str], *, pad: bool) -> list[str]:
    """A line for each width that programs read wrong in FP8. dtypes: of the tensors written. pad: there is `--pad`."""
    widths = {
        "hidden_size": model.hidden_size,
        "expert_width": model.expert_width,
        "num_heads x head_dim": model.num_heads * model.head_dim,
        "num_kv_heads x head_dim": model.num_kv_heads * model.head_dim,
    }
    return [
        f"model.{key}={size} is not a multiple of {BLOCK[0]}: "
        + (
            "transformers 5.23 misreads it, as it divides a width evenly by the number of its scales; "
            if size > BLOCK[0]
            else ""
        )
        + "programs that join matrices (gate and up; q, k and v) refuse it or misread it; use --dtype bf16"
        + (", or --pad, which widens the experts" if pad and key == "expert_width" else "")
        for key, size in widths.items()
        if FP8 in dtypes and size % BLOCK[0]
    ]


def full_dtype(outputs: Iterable[OutputTensor]) -> str:
    """As config.json spells it, the dtype of what is not FP8."""
    embedding = next(output.dtype for output in outputs if output.name.endswith("embed_tokens.weight"))
    return FULL.get(embedding, "bfloat16")


def unconverted(outputs: Sequence[OutputTensor]) -> set[str] | None:
    """The modules that are not FP8, where others are."""
    if not any(output.dtype == FP8 for output in outputs):
        return None
    others = (output.name for output in outputs if output.dtype != FP8 and not output.name.endswith(SCALE_SUFFIX))
    return {name.rpartition(".")[0] for name in others}
