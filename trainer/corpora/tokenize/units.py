"""Units: pieces of input files that a process can read on its own."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from trainer.data.errors import DataError

CHOOSE = "choose another field with --field or --origin"
EXPANDS = {"lines": 1, "gzip": 5, "parquet": 1, "arrow": 1, "tar": 1}  # characters of text per byte of a unit, at most

Kind = Literal["lines", "gzip", "parquet", "arrow", "tar"]


def choose(fields: Sequence[str], field: str) -> str:
    """The remedy for a field that cannot be used. fields: that of the text, then that of the origin, if any."""
    return f"choose one with {'--field' if field == fields[0] else '--origin'}"


@dataclass(frozen=True)
class Rows:
    """The rows first .. last - 1 of an Arrow file."""

    path: Path
    first: int
    last: int


@dataclass(frozen=True)
class Unit:
    kind: Kind
    path: str
    first: int  # lines: bytes, parquet: row groups, arrow: rows; first and last are 0 if the unit is a whole file
    last: int
    nbytes: int  # for progress

    @property
    def text_bytes(self) -> int:
        """The most text that the unit can have, in bytes."""
        return self.nbytes * EXPANDS[self.kind]


def bad(path: Path | str, problem: str, value: Any = None, allowed: Any = "an intact file") -> DataError:
    """An error about an input file."""
    return DataError(f"{path} {problem}", where=str(path), value=value, allowed=allowed)
