"""Make the index of a directory of tar files, once: every file is read from front to back and hashed.

What a start has read of a file is kept beside the index until this is complete, so an interrupted start is resumed.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from trainer.corpora.pairs.tars import fewer, read_tar
from trainer.data.errors import DataError
from trainer.data.pairs.index import INDEX, PAIRS, ROW, ROWS, read_index
from trainer.storage.atomic import atomic_directory, atomic_file, remove_unfinished, sync
from trainer.storage.progress import OnProgress, Progress, ignore
from trainer.storage.workers import Task, Workers

PARTS = f"{INDEX}.parts"  # what earlier starts have read
CAPTIONS = ("txt", "json")
BUCKET = 1 << 23  # rows that are sorted in memory at one time

Facts = dict[str, Any]


def index_pairs(
    directory: Path, *, texts: tuple[str, ...] = CAPTIONS, workers: int = 0, progress: OnProgress = ignore
) -> Facts:
    """The manifest of a directory's index, which is made first where there is none.

    texts: kinds of text that make a pair with an image, of `TEXTS`. workers: processes; 0: this one.
    Raises DataError for a directory without tar files or that cannot be read or written, and for an index of other tar
    files than there are.
    """
    tars = sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*.tar"))
    if not tars:
        remedy = "give a directory with the .tar files of img2dataset's output_format=webdataset"
        raise DataError(f"{directory} has no .tar file; {remedy}", where=str(directory), allowed=remedy)
    try:
        sizes = {name: (directory / name).stat().st_size for name in tars}
        if (directory / INDEX).exists():
            return _as_found(directory, sizes)
        remove_unfinished(directory / INDEX)
        parts = directory / PARTS
        parts.mkdir(exist_ok=True)
        total, done = sum(sizes.values()), 0
        with Workers(partial(_start, directory, texts), workers) as pool:
            for place, _ in pool.run([(number, name) for number, name in enumerate(tars)]):
                done += sizes[tars[place]]
                progress(Progress("indexing", done, total, detail=tars[place]))
        manifest = _assemble(directory, sizes)
        shutil.rmtree(parts)
        return manifest
    except OSError as error:
        remedy = "give a directory that can be read and written"
        text = f"{error.filename or directory}: {error.strerror or error}; {remedy}"
        raise DataError(text, where=str(directory), value=error.strerror, allowed=remedy) from error


def _as_found(directory: Path, sizes: dict[str, int]) -> Facts:
    manifest = read_index(directory)
    indexed = {tar["name"]: tar["bytes"] for tar in manifest["tars"]}
    if indexed != sizes:
        changed = sorted(indexed.items() ^ sizes.items())[0][0]
        remedy = f"remove {directory / INDEX} and run `octavo data index` again"
        raise DataError(
            f"{directory / changed} is not as it was indexed; {remedy}",
            where=str(directory / changed), value=sizes.get(changed), allowed=remedy,
        )  # fmt: skip
    return manifest


def _start(directory: Path, texts: tuple[str, ...]) -> Task:
    return lambda job, report: _read_part(directory, texts, *job)


def _read_part(directory: Path, texts: tuple[str, ...], number: int, name: str) -> None:
    """Read a tar file, unless an earlier start has, and keep its rows and facts."""
    found = (directory / name).stat()
    made_from = [name, found.st_size, found.st_mtime_ns, *texts]
    stem = directory / PARTS / str(number)
    facts_file, rows_file = stem.with_suffix(".json"), stem.with_suffix(".npy")
    if facts_file.is_file() and json.loads(facts_file.read_text())["made_from"] == made_from:
        return
    rows, facts = read_tar(directory / name, number, texts)
    facts_file.unlink(missing_ok=True)
    with atomic_file(rows_file) as path, path.open("wb") as file:
        np.save(file, rows)
    with atomic_file(facts_file) as path:
        path.write_text(json.dumps({**facts, "made_from": made_from}))


def _assemble(directory: Path, sizes: dict[str, int]) -> Facts:
    """Sort the rows of all parts into the index, a range of hashes at a time."""
    tars = []
    counts, status, reasons = Counter[str](), Counter[str](), Counter[str]()
    damaged: dict[str, str] = {}
    for number, (name, size) in enumerate(sizes.items()):
        facts = json.loads((directory / PARTS / f"{number}.json").read_text())
        tars.append({"name": name, "bytes": size, "pairs": facts["counts"].get("pairs", 0)})
        counts.update(facts["counts"])
        status.update(facts["status"])
        reasons.update(facts["reasons"])
        if facts["damage"]:
            damaged[name] = facts["damage"]
    with atomic_directory(directory / INDEX) as path:
        with tempfile.TemporaryDirectory(dir=directory / PARTS) as place:
            captions, images = _spread(directory / PARTS, len(tars), counts["pairs"], Path(place))
            counts["captions"] = counts["images"] = 0
            with open(path / ROWS, "wb") as file:
                for bucket in captions:
                    rows = np.fromfile(bucket, ROW)
                    rows = rows[np.lexsort((rows["image_at"], rows["tar"], rows["caption"]))]
                    counts["captions"] += int(np.count_nonzero(np.diff(rows["caption"]))) + bool(len(rows))
                    rows.tofile(file)
            for bucket in images:
                counts["images"] += len(np.unique(np.fromfile(bucket, "<u8")))
        sync(path / ROWS)
        found = {"counts": dict(counts), "status": dict(status), "reasons": dict(fewer(reasons)), "damaged": damaged}
        return PAIRS.write(path, {"tars": tars, **found}, {ROWS: PAIRS.file_facts(path / ROWS)})


def _spread(parts: Path, number: int, pairs: int, place: Path) -> tuple[list[Path], list[Path]]:
    """Files of rows by the first bits of the caption's hash, in order, and of image hashes by theirs: each holds
    `BUCKET` rows or so, whatever their number in all."""
    bits = max(0, pairs // BUCKET).bit_length()
    kinds = {kind: [place / f"{kind}-{bucket}" for bucket in range(1 << bits)] for kind in ("caption", "image")}
    with contextlib.ExitStack() as opened:
        files = {kind: [opened.enter_context(open(path, "wb")) for path in paths] for kind, paths in kinds.items()}
        for part in range(number):
            rows = np.load(parts / f"{part}.npy")
            for kind, of_kind in files.items():
                hashes = rows[kind]
                bucket = (hashes >> np.uint64(64 - bits)) if bits else np.zeros_like(hashes)
                for which in np.unique(bucket).tolist():
                    chosen = bucket == which
                    of_kind[which].write((rows if kind == "caption" else hashes)[chosen].tobytes())
    return kinds["caption"], kinds["image"]
