"""Reader of Megatron's token files: `<stem>.bin`, tokens laid end to end, and `<stem>.idx`, where sequences start.

The format is that of Megatron-core's IndexedDataset, and what is read is equal to what it reads. The index:

    "MMIDIDX\\0\\0" | version 1, uint64 | dtype code, uint8 | n sequences, uint64 | m document marks, uint64
    | length of every sequence, int32 [n] | its first byte in .bin, int64 [n]
    | the sequence at which every document starts, and n, int64 [m] | multimodal files only: modes, int8 [n]
"""

import os
import struct
from bisect import bisect_left
from pathlib import Path

import numpy as np
import numpy.typing as npt

from trainer.data.errors import DataError
from trainer.data.shards.files import REMEDY

MAGIC = b"MMIDIDX\x00\x00"
HEADER = struct.Struct("<9sQBQQ")
DTYPES: dict[int, str] = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 6: "<f8", 7: "<f4", 8: "<u2"}
CHUNK = 1 << 20  # sequences or tokens looked at in one go where all are

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


class IndexedTokens:
    """Random access to the documents of a `.bin` and an `.idx` file, memory-mapped.

    What it returns are copies: nothing refers to the maps after a call. Opening costs the same for any size: the
    sizes of both files and the ends of the index's tables are checked, `check` looks at all of it. Raises DataError
    where a file is missing, corrupt or contradicts the other, IndexError for anything outside the stream.
    """

    def __init__(self, stem: Path, *, cut_short: bool = False) -> None:
        """cut_short: the stream may end before the index says, and has the tokens that are there."""
        self.bin_path, self.idx_path = stem.with_name(stem.name + ".bin"), stem.with_name(stem.name + ".idx")
        index = _map(self.idx_path)
        if len(index) < HEADER.size:
            text = f"{self.idx_path} has {len(index)} bytes, fewer than the header of a Megatron index"
            raise _unreadable(self.idx_path, text, len(index))
        magic, version, code, n, marks = HEADER.unpack(index[: HEADER.size].tobytes())
        if magic != MAGIC or version != 1:
            text = f"{self.idx_path} is not a Megatron index: it does not open with MMIDIDX and version 1"
            raise _unreadable(self.idx_path, text)
        if code not in DTYPES:
            raise _unreadable(
                self.idx_path, f"{self.idx_path} is corrupt: its dtype is {code}, not one of 1 .. 8", code
            )
        plain = HEADER.size + 12 * n + 8 * marks
        if len(index) not in (plain, plain + n):
            text = (
                f"{self.idx_path} has {len(index)} bytes, but its {n} sequences and {marks} document marks take "
                f"{plain}: it is truncated or corrupt"
            )
            raise _unreadable(self.idx_path, text, len(index))
        self.dtype = np.dtype(DTYPES[code])
        pointers_at = HEADER.size + 4 * n
        marks_at = pointers_at + 8 * n
        # The tables are unaligned in any file, and numpy's searchsorted and take would copy an unaligned array whole at
        # every call; bisect on a memoryview and fancy indexing do not.
        self._lengths = index[HEADER.size : pointers_at].view("<i4")
        self._pointers = index[pointers_at:marks_at].view("<i8")
        self._marks = index[marks_at:plain].view("<i8")
        self._pointers_view = memoryview(index[pointers_at:marks_at]).cast("q")  # type: ignore[arg-type]
        self._marks_view = memoryview(index[marks_at:plain]).cast("q")  # type: ignore[arg-type]
        tokens = _map(self.bin_path)
        ends_at = int(self._pointers[-1]) + int(self._lengths[-1]) * self.dtype.itemsize if n else 0
        second = int(self._lengths[0]) * self.dtype.itemsize if n > 1 else None
        wrong_end = len(tokens) > ends_at if cut_short else len(tokens) != ends_at
        if wrong_end or (second is not None and self._pointers[1] != second):
            text = (
                f"{self.bin_path} has {len(tokens)} bytes, but its index of {self.dtype} ends at byte {ends_at}: one "
                "of the two is truncated or corrupt"
            )
            raise _unreadable(self.bin_path, text, len(tokens))
        if marks == 0 or self._marks[0] != 0 or self._marks[-1] != n or (n and self._pointers[0] != 0):
            text = f"{self.idx_path} is corrupt: its documents do not cover the sequences 0 .. {n}"
            raise _unreadable(self.idx_path, text)
        self._tokens = tokens[: len(tokens) // self.dtype.itemsize * self.dtype.itemsize].view(self.dtype)
        self.num_tokens = len(self._tokens)
        self.num_sequences = n
        self.num_documents = marks - 1

    def document(self, index: int) -> Ints:
        """Token ids of one document, its sequences joined; none where it is empty."""
        if not 0 <= index < self.num_documents:
            raise IndexError(f"document {index} of {self.num_documents}")
        first, last = self._byte_of(int(self._marks[index])), self._byte_of(int(self._marks[index + 1]))
        if not 0 <= first <= last <= self._tokens.nbytes:
            raise _unreadable(self.idx_path, f"{self.idx_path} is corrupt at document {index}")
        return self._tokens[first // self.dtype.itemsize : last // self.dtype.itemsize].astype(np.int64)

    def document_starts(self) -> Ints:
        """The first token of each document, and the end of the last: [documents + 1]."""
        firsts = np.append(np.asarray(self._pointers), self._tokens.nbytes)[self._marks]
        return (firsts // self.dtype.itemsize).astype(np.int64)

    def _byte_of(self, sequence: int) -> int:
        if not 0 <= sequence <= self.num_sequences:
            raise _unreadable(self.idx_path, f"{self.idx_path} is corrupt: a document starts at sequence {sequence}")
        return self._tokens.nbytes if sequence == self.num_sequences else int(self._pointers[sequence])

    def window(self, start: int, length: int) -> tuple[Ints, Ints]:
        tokens, begins = self.windows(np.array([start]), length)
        return tokens[0], np.flatnonzero(begins[0])

    def windows(self, starts: Ints, length: int) -> tuple[Ints, Bools]:
        """Tokens starts[i] .. starts[i] + length - 1, [n, length] int64, and which of them start a document."""
        tokens = np.empty((len(starts), length), np.int64)
        begins = np.zeros((len(starts), length), np.bool_)
        begins[self.read_into(starts, np.arange(len(starts)), tokens)] = True
        return tokens, begins

    def read_into(self, starts: Ints, rows: Ints, tokens: Ints) -> tuple[Ints, Ints]:
        """Read tokens from starts[i] on into tokens[rows[i]]; return the rows and columns where documents start."""
        length, item = tokens.shape[1], self.dtype.itemsize
        if length < 1 or (len(starts) and not 0 <= starts.min() <= starts.max() <= self.num_tokens - length):
            raise IndexError(f"{self.bin_path}: {length} tokens from {starts.tolist()}, of {self.num_tokens}")
        first_marks, counts = [], []
        for row, start in zip(rows.tolist(), starts.tolist(), strict=True):
            tokens[row] = self._tokens[start : start + length]
            # The sequences that start in the window, then the documents that start with one of them.
            sequence = bisect_left(self._pointers_view, start * item)
            end = bisect_left(self._pointers_view, (start + length) * item, sequence)
            first_marks.append(self._first_mark(sequence))
            counts.append(self._first_mark(end) - first_marks[-1])
        counts_n = np.array(counts, np.int64)
        ends_n = np.cumsum(counts_n)
        row_D = np.repeat(np.arange(len(rows)), counts_n)
        mark_D = np.repeat(np.array(first_marks, np.int64) - (ends_n - counts_n), counts_n) + np.arange(len(row_D))
        try:
            place_D = self._pointers[self._marks[mark_D]] // item - starts[row_D]
            if len(place_D) and not 0 <= place_D.min() <= place_D.max() < length:
                raise IndexError
        except IndexError:
            raise _unreadable(self.idx_path, f"{self.idx_path} is corrupt: its sequences are not in order") from None
        return rows[row_D], place_D

    def _first_mark(self, sequence: int) -> int:
        """The first document that starts at this sequence or a later one."""
        marks = self._marks_view
        # Mostly a document is one sequence, and none is empty: then no search is needed.
        if sequence < len(marks) and marks[sequence] == sequence and (sequence == 0 or marks[sequence - 1] < sequence):
            return sequence
        return bisect_left(marks, sequence)

    def check(self) -> None:
        """Look at the whole index. Raises DataError where its tables do not describe the tokens one after the other."""
        byte = 0
        for first in range(0, self.num_sequences, CHUNK):
            lengths = self._lengths[first : first + CHUNK].astype(np.int64)
            ends = byte + np.cumsum(lengths) * self.dtype.itemsize
            begins = np.concatenate([[byte], ends[:-1]])
            wrong = np.flatnonzero((lengths < 0) | (self._pointers[first : first + CHUNK] != begins))
            if len(wrong):
                raise _unreadable(self.idx_path, f"{self.idx_path} is corrupt at sequence {first + wrong[0]}")
            byte = int(ends[-1])
        for first in range(0, self.num_documents, CHUNK):
            falls = np.flatnonzero(np.diff(self._marks[first : first + CHUNK + 1]) < 0)
            if len(falls):
                raise _unreadable(self.idx_path, f"{self.idx_path} is corrupt at document {first + falls[0]}")


def _map(path: Path) -> npt.NDArray[np.uint8]:
    try:
        if os.path.getsize(path) == 0:
            return np.empty(0, np.uint8)
        return np.asarray(np.memmap(path, np.uint8, mode="r"))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise _unreadable(path, f"{path} cannot be read: {reason}") from error


def _unreadable(path: Path, text: str, value: int | None = None) -> DataError:
    return DataError(text, where=str(path), value=value, allowed=REMEDY)
