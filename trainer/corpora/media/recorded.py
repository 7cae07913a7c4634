"""Pieces of recorded series, from files that the package aeon ships. They are read as text; aeon is never imported.

Every piece has `STEPS` steps of one channel, so that neither its length nor its number of tokens says what it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt

from trainer.corpora.packages import Files, package_files
from trainer.data.errors import DataError
from trainer.data.hashing import text_key

STEPS = 64
EVERY = 12  # steps from a piece of a series to the next
BLOCK = 160  # steps of a long recording whose pieces are one origin
PER_QUARTER = 100  # pieces of a kind with their highest value in one quarter
MIN_VALUES = 12  # different values of a piece: an idle appliance has one or two
QUARTERS = ("first", "second", "third", "last")
PRESSURE = "135_UCR_Anomaly_InternalBleeding16"


@dataclass(frozen=True)
class SeriesFile:
    """A file of series. kinds: what was recorded, by the series' class; one for all under ""."""

    path: str
    kinds: dict[str, str]
    rate: float | None = None  # in Hz


def _both(name: str, kinds: dict[str, str], rate: float | None = None) -> tuple[SeriesFile, ...]:
    return tuple(SeriesFile(f"{name}/{name}_{part}.ts", kinds, rate) for part in ("TRAIN", "TEST"))


MOTIONS = {"Standing": "standing", "Running": "running", "Walking": "walking", "Badminton": "badminton"}
SERIES = (
    *_both("BasicMotions", MOTIONS, rate=10.0),
    *_both("GunPoint", {"": "a hand"}),
    *_both("OSULeaf", {"": "a leaf outline"}),
    *_both("ArrowHead", {"": "an arrowhead outline"}),
    *_both("ACSF1", {"": "electric power"}),
    *(SeriesFile(f"KDD-TSAD_135/{PRESSURE}_{part}.csv", {"": "blood pressure"}) for part in ("TRAIN", "TEST")),
)


@dataclass(frozen=True)
class Piece:
    """A piece of a recording. origin: of all pieces of its series. place: in it. values: [STEPS] fp64. rate: in Hz,
    None where the package does not say it."""

    origin: str
    place: str
    kind: str
    values: npt.NDArray[np.float64]
    rate: float | None

    @property
    def quarter(self) -> str:
        """The quarter with the highest value, the first of several."""
        return QUARTERS[int(self.values.argmax()) * 4 // STEPS]


def series_files() -> Files:
    """The files that are read. Raises DataError without aeon."""
    found = {name: path for suffix in (".ts", ".csv") for name, path in package_files("aeon", suffix)}
    names = [f"aeon/datasets/data/{file.path}" for file in SERIES]
    missing = [name for name in names if name not in found]
    if missing:
        raise _damaged(Path(missing[0]), "does not exist")
    return [(name, found[name]) for name in names]


def pieces() -> list[Piece]:
    """As many pieces of each kind and quarter, so that neither says the other, in the order of a hash. Raises DataError
    for a damaged file."""
    found: dict[tuple[str, str], list[Piece]] = {}
    for file, (_, path) in zip(SERIES, series_files(), strict=True):
        for piece in _pieces(file, path):
            found.setdefault((piece.kind, piece.quarter), []).append(piece)
    chosen = [piece for some in found.values() for piece in islice(sorted(some, key=_hashed), PER_QUARTER)]
    return sorted(chosen, key=_hashed)


def _hashed(piece: Piece) -> int:
    return text_key("piece", piece.origin, piece.place)


def _pieces(file: SeriesFile, path: Path) -> Iterator[Piece]:
    for origin, label, channels in _series(file, path):
        kind = file.kinds.get(label) or file.kinds[""]
        for channel, values in enumerate(channels):
            if len(values) < STEPS:
                continue
            windows = np.lib.stride_tricks.sliding_window_view(values, STEPS)[::EVERY]
            different = 1 + (np.diff(np.sort(windows, axis=1), axis=1) != 0).sum(1)
            for number in np.flatnonzero(different >= MIN_VALUES).tolist():
                yield Piece(origin, f"{channel}/{number}", kind, windows[number], file.rate)


def _series(file: SeriesFile, path: Path) -> Iterator[tuple[str, str, list[npt.NDArray[np.float64]]]]:
    """(origin, class, channels) of each series, and of each block of a long one."""
    lines = path.read_text(encoding="utf-8").splitlines()
    try:
        if path.suffix == ".csv":
            values = np.array([float(line.split(",")[1]) for line in lines[1:]])
            for first in range(0, len(values) - STEPS + 1, BLOCK):
                yield f"{file.path}/{first}", "", [values[first : first + BLOCK]]
            return
        for number, line in enumerate(line for line in lines if line and line[0] not in "#@"):
            *channels, label = line.split(":")
            yield f"{file.path}/{number}", label, [np.array(one.split(","), np.float64) for one in channels]
    except (ValueError, IndexError) as error:
        raise _damaged(path, f"is damaged ({error})") from error


def _damaged(path: Path, what: str) -> DataError:
    remedy = "reinstall the package 'aeon'"
    return DataError(f"{path} {what}: {remedy}", where=str(path), allowed=remedy)
