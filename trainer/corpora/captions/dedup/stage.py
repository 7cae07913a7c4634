"""The stage `dedup`: of the crops that show one figure, one is passed on, and the places of all are written down.

Four passes over the parts of the stage before: hashes of every crop; small pictures of those that have others near;
what is decided; the crops that are kept. What a pass writes about a part is complete or absent, and follows from the
crops alone, so an interrupted stage ends with the same bytes.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from trainer.corpora.captions.crops import Crop
from trainer.corpora.captions.dedup.clusters import Found, by_rank, equal_ones, find_near, near_copies
from trainer.corpora.captions.dedup.compare import SIDE, Thumbnail, are_copies, thumbnail
from trainer.corpora.captions.dedup.looks import Looks, UnreadableImageError, decoded, looks_of, without_margins
from trainer.corpora.captions.dedup.rows import (
    BLANK,
    COLUMNS,
    COPY,
    DECISIONS,
    LOOKS,
    REASONS,
    UNREADABLE,
    Decision,
    Looked,
    hexadecimal,
    read_decisions,
    read_looks,
    write_decisions,
    write_looks,
)
from trainer.corpora.captions.reports import Count, StageReport
from trainer.corpora.captions.tables import part_path, parts_of, read_part, write_part
from trainer.data.errors import DataError
from trainer.storage.progress import OnProgress, Progress, ignore
from trainer.storage.scratch import ScratchDirectory, remove_abandoned

STAGE = "dedup"
DISTANCES = {"phash": 6, "turns": 6}  # bits of 64
NEAR_KINDS = ("figure",)  # others hold text, whose letters are too small for the second look
NOTHING = Looks("0" * 64, True, 0, 0)
PACKAGES = {"imagehash": "imagehash", "PIL": "pillow", "scipy": "scipy"}  # imported name -> distribution
EXTRA = "pip install -e '.[captions]'"


def run_dedup(directory: Path, crops: Path, *, progress: OnProgress = ignore) -> StageReport:
    """Decide about every crop in the parts of `crops`, and return the account.

    `directory` then has parts with the crops that are kept (`tables.read_crops`), `read_decisions` with the place of
    every crop and the one that is kept for it, and `report.json`. Figures are near copies or exact ones; tables and
    formulas exact ones, equal in every pixel; captions that belong to no region are passed on.
    A finished stage is not done again. Raises DataError; OSError.
    """
    if (report := StageReport.read(directory)) is not None:
        return report
    _refuse_missing_packages()
    directory.mkdir(parents=True, exist_ok=True)
    remove_abandoned(directory)
    parts = parts_of(crops)
    for number, part in enumerate(parts):
        if not (path := directory / LOOKS.format(number)).exists():
            write_looks(path, [_look(crop) for crop in read_part(part)])
        progress(Progress(f"{STAGE}: hashes", number + 1, len(parts), "records"))
    scratch = ScratchDirectory(directory)
    try:
        table = _Table.read(directory, len(parts), scratch.path)
        found = _find_copies(scratch.path, parts, table, progress)
        _write(directory, parts, table, found, progress)
    finally:
        scratch.close()
    facts = {"near_pairs": found.pairs, "compared": found.compared, "cut_short": found.cut}
    report = StageReport(STAGE, {"crops": _count(directory)}, facts)
    report.write(directory)
    return report


def _write(directory: Path, parts: list[Path], table: _Table, found: Found, progress: OnProgress) -> None:
    """Write the decisions about each part, and its kept crops."""
    for number, part in enumerate(parts):
        decided = list(_decisions(part, table, found.of, table.starts[number]))
        if not (path := directory / DECISIONS.format(number)).exists():
            write_decisions(path, decided)
        if not (path := part_path(directory, number)).exists():
            write_part(path, read_part(part, only=[one.id for one in decided if not one.dropped]))
        progress(Progress(f"{STAGE}: kept crops", number + 1, len(parts), "records"))


def _refuse_missing_packages() -> None:
    if lacking := [package for name, package in PACKAGES.items() if find_spec(name) is None]:
        text = f"finding copies needs {' and '.join(lacking)}: not installed; {EXTRA}"
        raise DataError(text, where=STAGE, value=tuple(lacking), allowed=EXTRA)


def _look(crop: Crop) -> Looked:
    near = crop.kind in NEAR_KINDS
    if crop.kind == "caption" or not crop.image:
        return Looked(crop.id, True, False, "", 0, NOTHING)
    try:
        picture = decoded(crop.image)
    except UnreadableImageError:
        return Looked(crop.id, False, False, UNREADABLE, 0, NOTHING)
    looks = looks_of(picture)
    return Looked(crop.id, False, near, BLANK if looks.blank else "", picture.width * picture.height, looks)


@dataclass(frozen=True)
class _Table:
    """Columns over all parts, mapped from files. starts: the first row of each part, and the number of rows."""

    columns: dict[str, NDArray[Any]]
    starts: list[int]

    @classmethod
    def read(cls, directory: Path, parts: int, scratch: Path) -> _Table:
        counts = [0]
        for number in range(parts):
            columns = read_looks(directory / LOOKS.format(number))
            counts.append(len(columns["id"]))
            for name, values in columns.items():
                with (scratch / name).open("ab") as file:
                    file.write(values.tobytes())
        starts = np.cumsum(counts).tolist()
        kinds = COLUMNS.items() if starts[-1] else ()
        return cls({name: np.memmap(scratch / name, kind, "r") for name, kind in kinds}, starts)

    def __len__(self) -> int:
        return self.starts[-1]


def _find_copies(scratch: Path, parts: list[Path], table: _Table, progress: OnProgress) -> Found:
    """The crop that is kept for each of the table, itself for those that are not searched."""
    of = np.arange(len(table))
    columns = table.columns
    searched = np.flatnonzero(~columns["alone"] & (columns["dropped"] == 0)) if len(table) else of
    if len(searched) == 0:
        return Found(of)
    ranked = by_rank(columns["pixels"][searched], columns["id"][searched])
    of[searched] = searched[equal_ones(columns["exact"][searched], ranked)]
    near = searched[(of[searched] == searched) & columns["near"][searched]]
    if len(near) == 0:
        return Found(of)
    spaces = [find_near(columns[name][near], distance, scratch) for name, distance in DISTANCES.items()]
    company = np.logical_or.reduce([space.has_company for space in spaces])
    with _Thumbnails(scratch / "thumbnails", near[company]) as thumbnails:
        thumbnails.make(parts, table, progress)

        def same(one: int, other: int) -> bool:
            return are_copies(thumbnails[int(near[one])], thumbnails[int(near[other])])

        found = near_copies(by_rank(columns["pixels"][near], columns["id"][near]), spaces, same)
    of[near] = near[found.of]
    of = of[of]  # equal ones follow the one of them that was compared
    return Found(of, found.pairs, found.compared, found.cut)


class _Thumbnails:
    """Small pictures of some rows, in a file."""

    def __init__(self, path: Path, rows: NDArray[np.int64]) -> None:
        self._file: IO[bytes] = path.open("w+b")
        self._rows = np.sort(rows)
        self._ends = np.zeros(len(rows) + 1, np.int64)  # of the packed pictures in the file
        self._sizes = np.zeros((len(rows), 2), np.int32)

    def __enter__(self) -> _Thumbnails:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def make(self, parts: list[Path], table: _Table, progress: OnProgress) -> None:
        """Read the crops of the rows again."""
        place = 0
        for number, part in enumerate(parts):
            rows = self._rows[slice(*np.searchsorted(self._rows, table.starts[number : number + 2]))]
            wanted = [hexadecimal(table.columns["id"], row) for row in rows]
            for crop in read_part(part, only=wanted) if wanted else ():
                inside = without_margins(decoded(crop.image))
                assert inside is not None  # blank ones are not searched
                small = thumbnail(inside)
                self._sizes[place] = small.size
                self._file.write(zlib.compress(small.pixels.tobytes(), 1))
                place += 1
                self._ends[place] = self._file.tell()
            progress(Progress(f"{STAGE}: small pictures", number + 1, len(parts), "records"))

    def __getitem__(self, row: int) -> Thumbnail:
        place = np.searchsorted(self._rows, row)
        start, end = self._ends[place : place + 2].tolist()
        self._file.seek(start)
        pixels = np.frombuffer(zlib.decompress(self._file.read(end - start)), np.uint8)
        width, height = self._sizes[place].tolist()
        return Thumbnail(pixels.reshape(SIDE, SIDE, 3), (width, height))


def _decisions(part: Path, table: _Table, of: NDArray[np.int64], start: int) -> Iterator[Decision]:
    for row, crop in enumerate(read_part(part, images=False), start):
        kept_for, reason = int(of[row]), REASONS[table.columns["dropped"][row]]
        if not reason and kept_for != row:
            reason = COPY
        own = "" if reason and reason != COPY else hexadecimal(table.columns["id"], kept_for)
        yield Decision(crop.id, own, reason, crop.pdf, crop.page, crop.box)


def _count(directory: Path) -> Count:
    count = Count()
    for one in read_decisions(directory):
        if one.dropped:
            count.drop(one.dropped)
        else:
            count.keep()
    return count
