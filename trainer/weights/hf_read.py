"""Values of a Hugging Face directory, whole tensors or the slices that a rank holds, into a `Decoder`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from warnings import warn

import torch
from torch import Tensor, nn

from parallel.sharding.local import local_part, local_region
from trainer.model.decoder import Decoder
from trainer.model.frozen.blocks import CODES
from trainer.model.lora.adapt import adapters
from trainer.storage.boxes import Box, StoredTensor, UnreadableError, overlap, read_box, relative_to
from trainer.weights.hf_config import BLOCK
from trainer.weights.hf_files import HuggingFaceError, open_directory
from trainer.weights.hf_survey import SourceModel, survey_directory
from trainer.weights.map import Piece

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F8_E8M0": torch.float8_e8m0fnu,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U64": torch.uint64,
    "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


def from_huggingface(directory: str | Path, dtype: torch.dtype = torch.float32) -> Decoder:
    """The plain text model with the weights of a Hugging Face directory, on the CPU.

    Args:
        directory: holds config.json and safetensors files; towers for other modalities are passed over.
        dtype: of the parameters and of the computation (FoPE's matrices stay fp32, or fp64 when dtype is).
    Returns: a `Decoder` whose parameters are all read, none left at random.
    Raises: HuggingFaceError naming the key, file or tensor that is missing or does not fit.
    Warns: of keys of config.json that are unknown.
    """
    source = survey_directory(open_directory(Path(directory)))
    source.require(towers=False)
    for warning in source.warnings:
        warn(warning, stacklevel=2)
    with torch.device("meta"):
        model = Decoder(source.model)
    model = model.to(dtype).to_empty(device="cpu")
    model.rotary.to(torch.promote_types(dtype, torch.float32))
    fill(model, source)
    return model


@torch.no_grad()
def fill(
    model: nn.Module,
    source: SourceModel,
    tick: Callable[[], None] = lambda: None,
    pieces: Iterable[Piece] | None = None,
) -> int:
    """Read what this rank holds of every parameter and buffer of `model`, but for adapters, on any layout and device.

    `tick` is called after each tensor. `pieces`: of the parameters of `model`; None for a `Decoder`. Returns the bytes
    read. Raises HuggingFaceError; the directory should have passed `source.require`.
    """
    parts: dict[str, list[Piece]] = {}
    for piece in source.pieces if pieces is None else pieces:
        parts.setdefault(piece.parameter, []).append(piece)
    nbytes = 0
    beside = adapters(model)
    for name, weight in model.state_dict(keep_vars=True).items():
        if name in beside:
            continue
        held, part = local_region(weight), local_part(weight)
        for piece in parts[name]:
            box = overlap(held, piece.box)
            if box is None:
                continue
            if part.dtype == CODES:
                values = read_codes(source, piece, box)
                count = values.nbytes
            else:
                values, count = read_piece(source, piece, box)
            if values.dtype != CODES and torch.finfo(values.dtype).max > torch.finfo(part.dtype).max:
                require_finite(values.to(part.dtype), source.stored(piece))
            part[relative_to(box, held)] = values
            nbytes += count
            tick()
    return nbytes


def read_piece(source: SourceModel, piece: Piece, box: Box) -> tuple[Tensor, int]:
    """`box` of the piece's parameter, which is inside the piece, and the bytes that were read for it.

    FP8 comes back in fp32, other dtypes as they are stored. Raises HuggingFaceError where a number is not finite.
    """
    where = piece.stored_box(box)
    stored, scales = source.stored(piece), source.scales(piece)
    values = read_tensor(stored, where)
    count = values.nbytes
    if scales is not None:
        blocks = tuple(
            slice(part.start // size, -(-part.stop // size)) for part, size in zip(where[-2:], BLOCK, strict=True)
        )
        factors = read_tensor(scales, (*where[:-2], *blocks))
        count += factors.nbytes
        values = values.float() * _spread(factors.float(), where[-2:])
    require_finite(values, stored)
    return upright(values, piece), count


def read_codes(source: SourceModel, piece: Piece, box: Box) -> Tensor:
    """The bytes of `box` of an FP8 piece's parameter, which is inside the piece, as they are stored: uint8. Raises
    HuggingFaceError where a number is NaN."""
    stored = source.stored(piece)
    values = read_tensor(stored, piece.stored_box(box))
    require_finite(values, stored)
    return upright(values.view(CODES), piece)


def upright(values: Tensor, piece: Piece) -> Tensor:
    """Turn what is stored of a piece into what its parameter has."""
    if piece.transposed:
        values = values.transpose(-1, -2)
    for dimension in piece.dropped:
        values = values.unsqueeze(dimension)
    return values


def require_finite(values: Tensor, stored: StoredTensor) -> None:
    """Raises HuggingFaceError where a number of `values`, read from `stored`, is NaN or infinite.

    A sum, which takes less time than a copy; where it overflows, the values are looked at again.
    """
    if values.dtype == torch.float8_e4m3fn:  # has no sum; NaN is 0x7f, and there is no infinity
        finite = not bool((values.view(torch.uint8) & 0x7F == 0x7F).any())
    elif values.dtype == torch.float8_e8m0fnu:
        finite = not bool((values.view(torch.uint8) == 0xFF).any())
    else:
        finite = (
            bool(values.sum().isfinite())
            or values.numel() == 0
            or all(bool(end.isfinite()) for end in torch.aminmax(values))
        )
    if not finite:
        raise HuggingFaceError(
            f"{stored.file}: {stored.name} has NaN or infinite values; use weights that are finite",
            where=str(stored.file),
            value=stored.name,
            allowed="finite numbers",
        )


def _spread(factors: Tensor, where: Box) -> Tensor:
    """The scales [..., r, c] of the blocks that `where` touches -> one for each of its rows and columns."""
    for dimension, part, size in zip((-2, -1), where, BLOCK, strict=True):
        index = torch.arange(part.start, part.stop) // size - part.start // size
        factors = factors.index_select(dimension, index)
    return factors


def read_tensor(stored: StoredTensor, box: Box) -> Tensor:
    """A copy of a part of a tensor in a file, in its dtype. Raises HuggingFaceError where the file cannot be read."""
    dtype = DTYPES[stored.dtype]
    try:
        return torch.from_numpy(read_box(stored, box, dtype.itemsize)).view(dtype)
    except UnreadableError as error:
        raise HuggingFaceError(
            str(error), where=str(error.file), value=error.reason, allowed="a complete, readable file"
        ) from error


def bytes_of(values: Tensor) -> memoryview:
    """The memory of a contiguous tensor on the CPU."""
    return memoryview(values.view(-1).view(torch.uint8).numpy().data)
