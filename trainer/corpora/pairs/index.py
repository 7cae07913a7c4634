"""Make the index of a directory of tar files, once: every file is read from front to back and hashed.

What a start has read of a file is kept beside the index until this is complete, so an interrupted start is resumed.
"""

from __future__ import annotations

import json
import shutil
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
    tars, all_rows = [], []
    counts, status, reasons = Counter[str](), Counter[str](), Counter[str]()
    damaged: dict[str, str] = {}
    for number, (name, size) in enumerate(sizes.items()):
        stem = directory / PARTS / str(number)
        facts = json.loads(stem.with_suffix(".json").read_text())
        rows = np.load(stem.with_suffix(".npy"))
        all_rows.append(rows)
        tars.append({"name": name, "bytes": size, "pairs": len(rows)})
        counts.update(facts["counts"])
        status.update(facts["status"])
        reasons.update(facts["reasons"])
        if facts["damage"]:
            damaged[name] = facts["damage"]
    rows = np.concatenate(all_rows)
    rows = rows[np.lexsort((rows["image_at"], rows["tar"], rows["caption"]))]
    counts["captions"] = int(np.count_nonzero(np.diff(rows["caption"]))) + bool(len(rows))
    counts["images"] = len(np.unique(rows["image"]))
    with atomic_directory(directory / INDEX) as path:
        rows.astype(ROW, copy=False).tofile(path / ROWS)
        sync(path / ROWS)
        return PAIRS.write(
            path,
            {
                "tars": tars,
                "counts": dict(counts),
                "status": dict(status),
                "reasons": dict(fewer(reasons)),
                "damaged": damaged,
            },
            {ROWS: PAIRS.file_facts(path / ROWS)},
        )
