"""The dtypes that tensors of a text model are written in, FP8 and its scales included."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from parallel.errors import UserError, one_of
from parallel.fp8 import quantize_tiles
from trainer.weights.hf_config import BLOCK
from trainer.weights.hf_read import DTYPES
from trainer.weights.hf_survey import FP8, scale_shape
from trainer.weights.hf_write import OutputTensor
from trainer.weights.map import SCALE_SUFFIX, Piece

DtypeName = Literal["source", "bf16", "fp32", "fp8"]
FULL = {"F32": "float32", "F16": "float16", "F64": "float64"}  # as config.json spells them; bfloat16 where not listed


def dtypes(asked: DtypeName, kinds: Mapping[str, str]) -> Callable[[Piece], str]:
    """Return the dtype of each piece. kinds: as `SourceModel.kinds`, of the directory that the model comes from, where
    it comes from one. FoPE's tables are as there, or fp32. Raises `UserError` for a dtype that does not exist."""
    if asked not in get_args(DtypeName):
        names = get_args(DtypeName)
        raise UserError(f"--dtype={asked}: use {one_of(names)}", where="--dtype", value=asked, allowed=names)

    def choose(piece: Piece) -> str:
        if piece.parameter.startswith("rotary."):
            return kinds.get(piece.kind, "F32")
        if asked == "source" and kinds:
            return kinds[piece.kind]
        if asked == "fp8" and piece.matrix:
            return FP8
        return "F32" if asked == "fp32" else "BF16"

    return choose


def outputs_of(name: str, dtype: str, shape: tuple[int, ...]) -> tuple[OutputTensor, ...]:
    """A weight, and in FP8 its scales."""
    weight = OutputTensor(name, dtype, shape)
    return (weight, OutputTensor(name + SCALE_SUFFIX, "F32", scale_shape(shape))) if dtype == FP8 else (weight,)


def stored_as(values: Tensor, dtype: str) -> Sequence[Tensor]:
    """The tensors of `outputs_of` for a weight's values. FP8 is made from their bf16 values, as in training."""
    if dtype != FP8:
        return [values.to(DTYPES[dtype])]
    codes, scale = quantize_tiles(values.to(torch.bfloat16), (BLOCK[0], BLOCK[1]))
    return codes, scale.reciprocal()


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
