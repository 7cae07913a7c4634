"""Values of a Hugging Face directory, whole tensors or the slices that a rank holds, into a `Decoder`.

Bytes are read where they are wanted and copied: no file stays mapped, so that memory is what was asked for.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from parallel.shards import local, region
from trainer.checkpoint.huggingface.config import BLOCK
from trainer.checkpoint.huggingface.files import HuggingFaceError, StoredTensor, open_directory
from trainer.checkpoint.huggingface.names import Box, Piece, overlap, whole
from trainer.checkpoint.huggingface.survey import Source, look_at
from trainer.model.decoder import Decoder

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
    """
    source = look_at(open_directory(Path(directory)))
    source.require(towers=False)
    with torch.device("meta"):
        model = Decoder(source.model)
    model = model.to(dtype).to_empty(device="cpu")
    model.rotary.to(torch.promote_types(dtype, torch.float32))
    fill(model, source)
    return model


@torch.no_grad()
def fill(model: nn.Module, source: Source, tick: Callable[[], None] = lambda: None) -> int:
    """Read what this rank holds of every parameter and buffer of `model`, a `Decoder` on any layout and device.

    `tick` is called after each tensor. Returns the bytes read. Raises HuggingFaceError; the directory should have
    passed `source.require`.
    """
    pieces: dict[str, list[Piece]] = {}
    for piece in source.pieces:
        pieces.setdefault(piece.parameter, []).append(piece)
    nbytes = 0
    for name, weight in model.state_dict(keep_vars=True).items():
        held, part = region(weight), local(weight)
        for piece in pieces[name]:
            box = overlap(held, piece.box)
            if box is None:
                continue
            values, count = read_piece(source, piece, box)
            part[tuple(slice(b.start - h.start, b.stop - h.start) for b, h in zip(box, held, strict=True))] = values
            nbytes += count
            tick()
    return nbytes


def read_piece(source: Source, piece: Piece, box: Box) -> tuple[Tensor, int]:
    """`box` of the piece's parameter, which lies inside the piece, and the bytes that were read for it.

    FP8 comes back in fp32, other dtypes as they are stored.
    """
    where = piece.stored_box(box)
    stored, scales = source.stored(piece), source.scales(piece)
    values = read_box(stored, where)
    count = values.nbytes
    if scales is not None:
        blocks = tuple(
            slice(part.start // size, -(-part.stop // size)) for part, size in zip(where[-2:], BLOCK, strict=True)
        )
        factors = read_box(scales, (*where[:-2], *blocks))
        count += factors.nbytes
        values = values.float() * _spread(factors.float(), where[-2:])
    if piece.transposed:
        values = values.transpose(-1, -2)
    for dimension in piece.dropped:
        values = values.unsqueeze(dimension)
    return values, count


def _spread(factors: Tensor, where: Box) -> Tensor:
    """The scales [..., r, c] of the blocks that `where` touches -> one for each of its rows and columns."""
    for dimension, part, size in zip((-2, -1), where, BLOCK, strict=True):
        index = torch.arange(part.start, part.stop) // size - part.start // size
        factors = factors.index_select(dimension, index)
    return factors


def read_box(stored: StoredTensor, box: Box) -> Tensor:
    """A copy of a part of a tensor on disk, in its dtype. Raises HuggingFaceError where the file cannot be read."""
    dtype = DTYPES[stored.dtype]
    shape = tuple(part.stop - part.start for part in box)
    try:
        with open(stored.file, "rb", buffering=0) as file:
            if box[1:] == whole(stored.shape[1:]):  # rows in full lie in one piece
                values = torch.empty(shape, dtype=dtype)
                row = stored.nbytes // stored.shape[0] if box and stored.shape[0] else stored.nbytes
                read_into(file.fileno(), values, stored.start + (box[0].start * row if box else 0))
                return values
            if stored.start % dtype.itemsize:  # such numbers cannot be looked at where they are
                return read_box(stored, whole(stored.shape))[box].clone()
            return _mapped(file.fileno(), stored, dtype)[box].clone(memory_format=torch.contiguous_format)
    except (OSError, EOFError) as error:
        raise HuggingFaceError(f"{stored.file}: {stored.name} cannot be read: {error}") from error


def read_into(file: int, values: Tensor, start: int) -> None:
    """Fill a contiguous tensor with bytes of an open file. Raises OSError, or EOFError where the file ends before."""
    if not values.nbytes:
        return
    view = bytes_of(values)
    done = 0
    while done < len(view):
        count = os.preadv(file, [view[done:]], start + done)
        if not count:
            raise EOFError(f"the file ends {len(view) - done} bytes early")
        done += count


def bytes_of(values: Tensor) -> memoryview:
    """The memory of a contiguous tensor on the CPU."""
    return memoryview(values.view(-1).view(torch.uint8).numpy().data)


def _mapped(file: int, stored: StoredTensor, dtype: torch.dtype) -> Tensor:
    """The whole tensor without reading it; the pages that are touched are read. Unmapped with the last reference."""
    first = stored.start // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
    skipped = stored.start - first
    if os.fstat(file).st_size < stored.start + stored.nbytes:  # touching what is not there would end the process
        raise EOFError("the file was cut short since its header was read")
    # A private copy of what nobody writes: torch wants memory that could be written.
    pages = mmap.mmap(file, skipped + stored.nbytes, access=mmap.ACCESS_COPY, offset=first)
    return torch.frombuffer(pages, dtype=torch.uint8, offset=skipped).view(dtype).view(stored.shape)
