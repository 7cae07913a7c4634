"""`data.reader=megatron`: Megatron-core's IndexedDataset behind the interface of our own reader.

Its import takes some 5 CPU-seconds and 0.5 GB with torch, and it reads a document at a time.
"""

import warnings
from pathlib import Path

import numpy as np
import numpy.typing as npt

from trainer.data.errors import DataError
from trainer.data.shards.files import REMEDY

Ints = npt.NDArray[np.int64]


class MegatronTokens:
    """Windows of a `.bin` and an `.idx` file, as copies: views of the dataset crash once it is freed."""

    def __init__(self, stem: Path) -> None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of the GPU packages that it would use
                from megatron.core.datasets.indexed_dataset import IndexedDataset
        except ImportError as error:
            raise DataError(
                f"data.reader=megatron needs megatron-core ({error}); pip install -e '.[data]', or use "
                "data.reader=octavo",
                where="data.reader",
                value="megatron",
                allowed=("octavo",),
            ) from error
        self._stem = stem
        try:
            self._dataset = IndexedDataset(str(stem))
        except (AssertionError, OSError, ValueError) as error:  # what it raises for damaged files
            raise DataError(f"{stem}.bin or .idx is corrupt: {error}", where=f"{stem}.idx", allowed=REMEDY) from error
        self._ends = np.cumsum(self._dataset.sequence_lengths, dtype=np.int64)
        first_sequences = self._dataset.document_indices[:-1]
        self._starts = np.append(0, self._ends)[first_sequences]
        self.num_tokens = int(self._ends[-1]) if len(self._ends) else 0

    def document_starts(self) -> Ints:
        """The first token of each document, and the end of the last: [documents + 1]."""
        return np.append(self._starts, self.num_tokens)

    def read_into(self, starts: Ints, rows: Ints, tokens: Ints) -> tuple[Ints, Ints]:
        """Read tokens from starts[i] on into tokens[rows[i]]; return the rows and columns where documents start."""
        length = tokens.shape[1]
        if length < 1 or (len(starts) and not 0 <= starts.min() <= starts.max() <= self.num_tokens - length):
            raise IndexError(f"{self._stem}: {length} tokens from {starts.tolist()}, of {self.num_tokens}")
        start_rows, start_places = [], []
        for row, start in zip(rows.tolist(), starts.tolist(), strict=True):
            sequence, done = int(np.searchsorted(self._ends, start, side="right")), 0
            while done < length:
                offset = start + done - (int(self._ends[sequence - 1]) if sequence else 0)
                count = min(length - done, int(self._ends[sequence]) - start - done)
                try:
                    tokens[row, done : done + count] = self._dataset.get(sequence, offset, count)
                except ValueError as error:  # a .bin that is too short opens
                    text = f"{self._stem}.bin is truncated or corrupt: {error}"
                    raise DataError(text, where=f"{self._stem}.bin", allowed=REMEDY) from error
                sequence, done = sequence + 1, done + count
            first, last = np.searchsorted(self._starts, (start, start + length))
            start_places.append(self._starts[first:last] - start)
            start_rows.append(np.full(last - first, row, np.int64))
        nothing = np.empty(0, np.int64)
        return np.concatenate([nothing, *start_rows]), np.concatenate([nothing, *start_places])
