"""Parts of tensors, as boxes of indices and as bytes in files. No torch here.

Bytes are read where they are wanted. No file is mapped (as safetensors' `get_slice` does), so that memory is what was
asked for, and a file that shrinks is an error, not the end of the process.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy.typing as npt

    Words = npt.NDArray[Any]  # elements as unsigned integers of their size, whatever they mean

Box = tuple[slice, ...]  # one slice for each dimension

# A part of a tensor is many runs of bytes in its file. Runs shorter than this are cut out of their rows, which are read
# in full: a call for each would cost more. At most this many bytes of rows are in memory at a time.
SHORT_RUN, BLOCK_BYTES = 64 << 10, 32 << 20


class UnreadableError(Exception):
    """Bytes of the tensor `name` cannot be read from `file`."""

    def __init__(self, file: Path, name: str, reason: str) -> None:
        super().__init__(file, name, reason)
        self.file, self.name, self.reason = file, name, reason

    def __str__(self) -> str:
        return f"{self.file}: {self.name} cannot be read: {self.reason}"


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file, in row-major order."""

    name: str
    dtype: str  # as the file's format spells it
    shape: tuple[int, ...]
    file: Path
    start: int  # offset of its first byte
    nbytes: int


def full_box(shape: Iterable[int]) -> Box:
    """The box of all of a tensor of this shape."""
    return tuple(slice(0, size) for size in shape)


def overlap(a: Box, b: Box) -> Box | None:
    """The indices that two boxes share, or None."""
    both = tuple(slice(max(x.start, y.start), min(x.stop, y.stop)) for x, y in zip(a, b, strict=True))
    return None if any(part.start >= part.stop for part in both) else both


def relative_to(part: Box, outer: Box) -> Box:
    """`part` of a tensor in the coordinates of `outer`."""
    return tuple(slice(p.start - o.start, p.stop - o.start) for p, o in zip(part, outer, strict=True))


def read_box(stored: StoredTensor, box: Box, itemsize: int) -> Words:
    """A copy of a part of a tensor of elements of `itemsize` bytes. Raises UnreadableError."""
    try:
        with open(stored.file, "rb", buffering=0) as file:
            return _read(file.fileno(), stored, box, itemsize)
    except (OSError, EOFError) as error:
        raise UnreadableError(stored.file, stored.name, str(error)) from error


def _read(file: int, stored: StoredTensor, box: Box, itemsize: int) -> Words:
    import numpy as np  # here, so that directories can be listed without it

    lengths = [part.stop - part.start for part in box]
    values: Words = np.empty(lengths, f"u{itemsize}")
    # What is taken in full behind dimension d is contiguous: one run for each index before d.
    d = max((d for d, size in enumerate(stored.shape) if lengths[d] != size), default=0)
    behind = prod(stored.shape[d + 1 :]) * itemsize
    if d and prod(lengths[:d]) > 1 and lengths[d] * behind < SHORT_RUN:
        rows = max(1, BLOCK_BYTES // max(1, prod(lengths[: d - 1]) * stored.shape[d] * behind))
        for first in range(0, lengths[d - 1], rows):
            block = slice(box[d - 1].start + first, min(box[d - 1].start + first + rows, box[d - 1].stop))
            full = _read(file, stored, (*box[: d - 1], block, slice(0, stored.shape[d]), *box[d + 1 :]), itemsize)
            part = slice(first, first + block.stop - block.start)
            values[(slice(None),) * (d - 1) + (part,)] = full[(slice(None),) * d + (box[d],)]
        return values
    strides = [prod(stored.shape[i + 1 :]) * itemsize for i in range(len(box))]
    if not values.size:
        return values
    runs = values.reshape(prod(lengths[:d]), -1)
    for run, index in zip(runs, product(*(range(part.start, part.stop) for part in box[:d])), strict=True):
        place = (*index, *(part.start for part in box[d : d + 1]))
        start = stored.start + sum(i * stride for i, stride in zip(place, strides, strict=False))
        read_into(file, run.data.cast("B"), start)
    return values


def read_into(file: int, memory: memoryview, start: int) -> None:
    """Fill `memory` with bytes of an open file. Raises OSError, or EOFError where the file ends before."""
    done = 0
    while done < len(memory):
        count = os.preadv(file, [memory[done:]], start + done)
        if not count:
            raise EOFError(f"the file ends {len(memory) - done} bytes early")
        done += count
