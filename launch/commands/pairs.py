"""`octavo data index|check` of image-text pairs: makes or checks the index of every source, and shows what is in it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from launch.tables import print_table, table
from parallel.errors import Fault
from trainer.config.errors import print_warning
from trainer.config.keys import Config
from trainer.config.say import counted
from trainer.data.errors import DataError, named_by
from trainer.storage.progress import print_line

MOST_REASONS = 5  # of failed links that are shown of a source


def index(cfg: Config) -> int:
    """Make the index of every source and zero-shot set that has none, and show what is in all. Raises `DataError`."""
    made = {}
    try:
        from trainer.corpora.pairs.index import CAPTIONS, index_pairs

        for name, path, pairs in _directories(cfg):
            with named_by(_key(name, pairs)):
                texts = CAPTIONS if pairs else ("cls",)
                made[name] = index_pairs(path, texts=texts, workers=cfg.data.workers, progress=print_line)
    except KeyboardInterrupt:
        print("interrupted; the same command resumes from the tar files that are read", file=sys.stderr)
        return 130
    show(made)
    return 0


def _key(name: str, pairs: bool) -> str:
    """The key that names a directory."""
    return f"data.pairs.{name}.path" if pairs else f"data.zero_shot.{name}"


def check(cfg: Config) -> int:
    """Check the hash of every index and the sizes of the tar files; raises `DataError` with all that is wrong."""
    from trainer.corpora.pairs.index import CAPTIONS, index_pairs
    from trainer.data.pairs.index import PairIndex

    found: dict[str, dict[str, Any]] = {}
    faults: list[Fault] = []
    for name, path, pairs in _directories(cfg):
        try:
            with named_by(_key(name, pairs)):
                PairIndex(path).verify()
                found[name] = index_pairs(path, texts=CAPTIONS if pairs else ("cls",))
        except DataError as error:
            faults += error.faults
    if faults:
        raise DataError(faults)
    show(found)
    intact = "1 index is" if len(found) == 1 else f"{len(found)} indexes are"
    print(f"{intact} intact, and the tar files have the sizes that were indexed")
    return 0


def show(manifests: dict[str, dict[str, Any]]) -> None:
    """Print a line for each source, and why links and files failed."""
    names = ("tar files", "pairs", "captions", "images", "no caption", "no image", "links", "dead", "failed")
    columns = table("source", *names)
    for name, manifest in manifests.items():
        counts, status = manifest["counts"], manifest["status"]
        dead = status.get("failed_to_download", 0)
        numbers = [
            len(manifest["tars"]),
            *(counts.get(key, 0) for key in ("pairs", "captions", "images", "without_caption", "without_image")),
            *(sum(status.values()), dead, sum(status.values()) - status.get("success", 0) - dead),
        ]
        columns.add_row(name, *(f"{number:,}" for number in numbers))
    print_table(columns)
    print("captions, images: different ones; links: in the status files; dead: of these, not downloaded")
    for name, manifest in manifests.items():
        for reason, count in sorted(manifest["reasons"].items(), key=lambda item: -item[1])[:MOST_REASONS]:
            print(f"{name}: {counted(count, 'link')} failed: {reason}")
        if lost := manifest["counts"].get("missing_from_tar", 0):
            are = "that succeeded is" if lost == 1 else "that succeeded are"
            print_warning(f"{name}: {counted(lost, 'link')} {are} in no tar file")
        for tar, why in manifest["damaged"].items():
            print_warning(f"{name}: {tar} is damaged ({why}); the pairs before the damage are indexed")


def _directories(cfg: Config) -> Iterator[tuple[str, Path, bool]]:
    """Name and directory of every source of pairs and of every zero-shot set, and True for the former."""
    root = Path(cfg.data.root)
    if cfg.data.build == "toy":
        from trainer.corpora.pairs.toy import open_toy_pairs

        root = open_toy_pairs(cfg.data)
    for name, source in cfg.data.pairs.items():
        yield name, root / source.path, True
    for name, path in cfg.data.zero_shot.items():
        yield name, root / path, False
