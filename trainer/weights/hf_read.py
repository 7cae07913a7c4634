"""Values of a Hugging Face directory, whole tensors or the slices that a rank holds, into a `Decoder`.

Bytes are read where they are wanted; no file is mapped, so that memory is what was asked for and a file that shrinks
is an error, not the end of the process.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import product
from math import prod
from pathlib import Path

import torch
from torch import Tensor, nn

from parallel.sharding.local import local_part, local_region
from trainer.model.decoder import Decoder
from trainer.weights.hf_config import BLOCK
from trainer.weights.hf_files import HuggingFaceError, StoredTensor, open_directory
from trainer.weights.hf_survey import Source, look_at
from trainer.weights.map import Box, Piece, overlap

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F8_E8M0": torch.float8_e8m0fnu,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U64": torch.uint64,
    "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip

# A part of a tensor is many runs of bytes in its file. Runs shorter than this are cut out of the rows that they lie in,
# which are read in full: a call for each would cost more. At most this many bytes of rows are in memory at one time.
SHORT_RUN, BLOCK_BYTES = 64 << 10, 32 << 20


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
        held, part = local_region(weight), local_part(weight)
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
    try:
        with open(stored.file, "rb", buffering=0) as file:
            return _read(file.fileno(), stored, box)
    except (OSError, EOFError) as error:
        raise HuggingFaceError(f"{stored.file}: {stored.name} cannot be read: {error}") from error


def _read(file: int, stored: StoredTensor, box: Box) -> Tensor:
    lengths = [part.stop - part.start for part in box]
    values = torch.empty(lengths, dtype=DTYPES[stored.dtype])
    # What is taken in full behind dimension d lies together, in one run for each index before d.
    d = max((d for d, size in enumerate(stored.shape) if lengths[d] != size), default=0)
    behind = prod(stored.shape[d + 1 :]) * values.itemsize
    if d and prod(lengths[:d]) > 1 and lengths[d] * behind < SHORT_RUN:
        rows = max(1, BLOCK_BYTES // max(1, prod(lengths[: d - 1]) * stored.shape[d] * behind))
        for first in range(0, lengths[d - 1], rows):
            block = slice(box[d - 1].start + first, min(box[d - 1].start + first + rows, box[d - 1].stop))
            whole_rows = _read(file, stored, (*box[: d - 1], block, slice(0, stored.shape[d]), *box[d + 1 :]))
            values.narrow(d - 1, first, block.stop - block.start).copy_(whole_rows[(slice(None),) * d + (box[d],)])
        return values
    strides = [prod(stored.shape[i + 1 :]) * values.itemsize for i in range(len(box))]
    runs = values.view(prod(lengths[:d]), -1)
    for run, index in zip(runs, product(*(range(part.start, part.stop) for part in box[:d])), strict=True):
        place = (*index, *(part.start for part in box[d : d + 1]))
        read_into(file, run, stored.start + sum(i * stride for i, stride in zip(place, strides, strict=False)))
    return values


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
