"""The work of an upcycle between two starts: a directory beside the destination, `DST.octavo-upcycle.tmp`.

owner.lock     held by the living writer and its workers, so that nobody else takes the directory over
plan.json      what is being made, of what: another plan than this is refused
journal.jsonl  a line for each file that is finished and on disk: its name, size and SHA-256
model/         the files; takes the destination's name once it is whole
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer.storage.atomic import FILE_SUFFIX, OWNER, atomic_file, sync
from trainer.storage.lock import FileLock, LockedError, NoLocksError
from trainer.storage.manifest import file_facts
from trainer.weights.hf_files import CONFIG, HuggingFaceError
from trainer.weights.hf_survey import Source
from trainer.weights.hf_write import must_not_exist, side_files

SUFFIX = ".octavo-upcycle.tmp"
PLAN, JOURNAL, MODEL = "plan.json", "journal.jsonl", "model"
PATIENCE = 10.0  # seconds; a killed writer's workers see that it is gone after a tensor or two


def identity(source: Source, others: Sequence[Path] = ()) -> dict[str, str]:
    """What tells a source from a changed one without reading all of it: file -> what it is now.

    Files with tensors by size, time of change and header; config.json, side files and `others` by their contents.
    Raises HuggingFaceError.
    """
    directory, found = source.directory.path, {}
    tensors: dict[Path, list[str]] = {}
    for tensor in source.tensors.values():
        tensors.setdefault(tensor.file, []).append(f"{tensor.name} {tensor.dtype} {tensor.shape} {tensor.start}")
    try:
        for file, lines in sorted(tensors.items()):
            facts = file.stat()
            found[file.name] = f"{facts.st_size} {facts.st_mtime_ns} {digest(sorted(lines))}"
        for file in [directory / CONFIG, *side_files(directory), *others]:
            name = file.name if file.parent == directory else str(file.absolute())
            found[name] = file_facts(file)["sha256"]
    except OSError as error:
        raise HuggingFaceError(f"{error.filename}: {error.strerror or error}") from error
    return found


def digest(value: Any) -> str:
    """Of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


class Work:
    """The directory, once it is locked and of this plan; `open_work` makes it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.model = path / MODEL
        journal = path / JOURNAL
        self.finished, whole = _finished(journal)  # file name -> `manifest.file_facts`, as the journal has them
        self._journal = open(journal, "ab", buffering=0)  # noqa: SIM115  # closed by `open_work`
        self._journal.truncate(whole)

    def record(self, name: str, facts: Mapping[str, Any]) -> None:
        """A file is finished, synced under its name; durable when this returns. Raises OSError."""
        sync(self.model)
        self._journal.write(json.dumps({"file": name, **facts}).encode() + b"\n")
        sync(self._journal.fileno())
        self.finished[name] = dict(facts)

    def close(self) -> None:
        self._journal.close()


def _finished(journal: Path) -> tuple[dict[str, dict[str, Any]], int]:
    """File name -> `manifest.file_facts`, and the bytes of the lines that say so."""
    finished: dict[str, dict[str, Any]] = {}
    whole = 0
    with contextlib.suppress(FileNotFoundError):
        for line in journal.read_bytes().splitlines(keepends=True):
            try:
                entry = json.loads(line)
                name, facts = entry["file"], {"size": entry["size"], "sha256": entry["sha256"]}
            except (ValueError, KeyError, TypeError):
                break
            if not line.endswith(b"\n"):  # a kill came in between; what stands behind would not be read either
                break
            finished[name] = facts
            whole += len(line)
    return finished, whole


def work_path(target: Path) -> Path:
    """Where the unfinished files of `target` lie: beside it, under one name, so that the next start finds them."""
    return target.absolute().with_name(target.name + SUFFIX)


def tidy(target: Path) -> None:
    """Remove the work of a `target` that has its name already, where a kill came between the two."""
    path = work_path(target)
    if not (path / OWNER).is_file():
        return
    with contextlib.suppress(HuggingFaceError, OSError), _locked(path, target, patience=0):
        if {entry.name for entry in path.iterdir()} <= {OWNER, PLAN, JOURNAL}:
            remove(path)


def remove(path: Path) -> None:
    """Take away what stands beside a model until it has its name. What somebody else put there stays, with `path`."""
    with contextlib.suppress(OSError):
        for name in (JOURNAL, PLAN, OWNER):
            (path / name).unlink(missing_ok=True)
        path.rmdir()


@contextlib.contextmanager
def open_work(target: Path, plan: Mapping[str, Any]) -> Iterator[Work]:
    """The work on `target`, new or as far as it came; `plan`: JSON values by what they are of, of a few bytes each.

    Raises: HuggingFaceError where another process is at it, it cannot be locked, or it has another plan; OSError.
    """
    path = work_path(target)
    with _locked(path, target, PATIENCE):
        if os.path.lexists(target) and [entry.name for entry in path.iterdir()] == [OWNER]:
            remove(path)  # made anew while this process waited for who held the lock, and finished
        must_not_exist(target)
        file = path / PLAN
        if file.exists():
            _same_plan(path, target, plan)
        else:
            if strangers := {entry.name for entry in path.iterdir()} - {OWNER, PLAN + FILE_SUFFIX}:
                raise HuggingFaceError(f"{path} is in the way: it holds {min(strangers)} of no upcycle; move it")
            with atomic_file(file) as new:
                new.write_text(json.dumps(plan, indent=1), encoding="utf-8")
        (path / MODEL).mkdir(exist_ok=True)
        sync(path)
        work = Work(path)
        try:
            yield work
        finally:
            work.close()


def unfinished(target: Path, plan: Callable[[], Mapping[str, Any]]) -> dict[str, int] | None:
    """The files that earlier starts of this plan finished, and their sizes; None where there is no work on `target`.
    Nothing is locked or changed. Raises HuggingFaceError where the work is of another plan."""
    path = work_path(target)
    if not (path / PLAN).is_file():
        return None
    _same_plan(path, target, plan())
    return {name: facts["size"] for name, facts in sorted(_finished(path / JOURNAL)[0].items())}


def _same_plan(path: Path, target: Path, plan: Mapping[str, Any]) -> None:
    try:
        begun = json.loads((path / PLAN).read_text(encoding="utf-8"))
        differing = sorted(key for key in {*begun, *plan} if begun.get(key) != plan.get(key))
    except (ValueError, TypeError) as error:
        raise HuggingFaceError(f"{path / PLAN} cannot be read ({error}); remove {path}") from error
    if differing:
        raise HuggingFaceError(
            f"{path} holds the unfinished work of another upcycle to {target} (its {', '.join(differing)} differ); "
            "give that command again to go on with it, or remove the directory"
        )


@contextlib.contextmanager
def _locked(path: Path, target: Path, patience: float) -> Iterator[None]:
    """Hold the lock in `path`, a directory that is made where it is not there. Workers inherit it.

    Raises: HuggingFaceError where another process holds it for longer than `patience`, or the file system has no locks.
    """
    try:
        lock = FileLock(path / OWNER, wait=patience)
    except NoLocksError:  # a second writer could be in the middle of a file that this one takes for finished
        raise HuggingFaceError(
            f"{path}: this file system has no locks; write {target.name} on another disk, and copy it"
        ) from None
    except LockedError:
        raise HuggingFaceError(
            f"{target} is being written by another process, in {path}; wait for it, or give another directory"
        ) from None
    with lock:
        yield
