"""Token files: a flat array of uint16 token ids and the offset at which every document begins."""

from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from trainer.data.errors import DataError

TOKENS, OFFSETS = ".tokens.u16", ".offsets.i64"
Ints = npt.NDArray[np.int64]


class TokenStore(Protocol):
    """Random access to documents laid end to end; every other corpus format has to offer only this."""

    num_documents: int
    num_tokens: int

    def document(self, index: int) -> Ints:
        """Token ids of one document, its end-of-document token included."""

    def window(self, start: int, length: int) -> tuple[Ints, Ints]:
        """Token ids start .. start + length - 1 and the places (0 .. length - 1) where a document begins in them."""


class MappedTokens:
    """A TokenStore over two memory-mapped files, `<stem>.tokens.u16` and `<stem>.offsets.i64`.

    What it returns are copies as int64: nothing refers to the map after the call. Raises DataError where the two
    files contradict each other, IndexError for anything outside the stream.
    """

    def __init__(self, stem: Path) -> None:
        tokens_path, offsets_path = stem.with_name(stem.name + TOKENS), stem.with_name(stem.name + OFFSETS)
        try:
            self._tokens = np.asarray(np.memmap(tokens_path, np.dtype("<u2"), mode="r"))
            self._offsets = np.asarray(np.memmap(offsets_path, np.dtype("<i8"), mode="r"))
        except (OSError, ValueError) as error:
            raise DataError(f"{stem}: unreadable token files: {error}") from error
        self.num_tokens = len(self._tokens)
        self.num_documents = len(self._offsets) - 1
        if self._offsets[0] != 0 or self._offsets[-1] != self.num_tokens or np.any(np.diff(self._offsets) <= 0):
            raise DataError(
                f"{offsets_path}: offsets do not rise from 0 to the {self.num_tokens} tokens of {tokens_path.name}"
            )

    def document(self, index: int) -> Ints:
        if not 0 <= index < self.num_documents:
            raise IndexError(f"document {index} of {self.num_documents}")
        return self._tokens[self._offsets[index] : self._offsets[index + 1]].astype(np.int64)

    def window(self, start: int, length: int) -> tuple[Ints, Ints]:
        if start < 0 or length < 1 or start + length > self.num_tokens:
            raise IndexError(f"tokens {start} .. {start + length - 1} of {self.num_tokens}")
        first, last = np.searchsorted(self._offsets, (start, start + length))
        return self._tokens[start : start + length].astype(np.int64), self._offsets[first:last] - start


def write_tokens(stem: Path, documents: Iterable[npt.NDArray[np.uint16]]) -> list[Path]:
    """Write documents (each with at least one token) to the two files of `stem`; returns their paths."""
    offsets = [0]
    tokens_path, offsets_path = stem.with_name(stem.name + TOKENS), stem.with_name(stem.name + OFFSETS)
    with tokens_path.open("wb") as file:
        for document in documents:
            file.write(document.astype("<u2").tobytes())
            offsets.append(offsets[-1] + len(document))
    offsets_path.write_bytes(np.array(offsets, "<i8").tobytes())
    return [tokens_path, offsets_path]
