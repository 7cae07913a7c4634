"""The work of an upcycle between two starts: a directory beside the destination, `DST.octavo-upcycle.tmp`.

owner.lock     held by the running process and its workers, so that no other process uses the directory
plan.json      the result and its source: any other plan is refused
journal.jsonl  a line for each file that is finished and on disk: its name, size and SHA-256
model/         the files; renamed to the destination when complete
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from trainer.storage.atomic import FILE_SUFFIX, OWNER, atomic_file, sync
from trainer.storage.lock import FileLock, LockedError, NoLocksError
from trainer.storage.manifest import CHECKPOINT
from trainer.weights.beside.side_files import side_files
from trainer.weights.hf_files import CONFIG
from trainer.weights.hf_survey import SourceModel
from trainer.weights.hf_write import must_not_exist
from trainer.weights.upcycle.errors import UpcycleError

SUFFIX = ".octavo-upcycle.tmp"
PLAN, JOURNAL, MODEL = "plan.json", "journal.jsonl", "model"
PATIENCE = 10.0  # seconds; the workers of a killed process end after a tensor or two


def identity(source: SourceModel, vocabulary: str | None = None) -> dict[str, str]:
    """Identify the state of a source without reading all of it: file -> its state.

    Files with tensors by size, modification time and header; config.json and side files, also
    those of the directory `vocabulary`, by their contents.
    Raises UpcycleError if one cannot be read.
    """
    directory, found = source.directory.path, {}
    others = side_files(Path(vocabulary)).values() if vocabulary is not None else ()
    tensors: dict[Path, list[str]] = {}
    for tensor in source.tensors.values():
        tensors.setdefault(tensor.file, []).append(f"{tensor.name} {tensor.dtype} {tensor.shape} {tensor.start}")
    try:
        for file, lines in sorted(tensors.items()):
            facts = file.stat()
            found[os.path.relpath(file, directory)] = f"{facts.st_size} {facts.st_mtime_ns} {digest(sorted(lines))}"
        named = {CONFIG: directory / CONFIG, **side_files(directory), **{str(file.absolute()): file for file in others}}
        for name, file in named.items():
            found[name] = CHECKPOINT.file_facts(file)["sha256"]
    except OSError as error:
        reason = error.strerror or str(error)
        raise UpcycleError(
            f"{error.filename}: {reason}", where=str(error.filename), value=reason, allowed="a readable file"
        ) from error
    return found


def digest(value: Any) -> str:
    """SHA-256 of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


class Work:
    """The work directory of this plan, locked; `open_work` opens it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.model = path / MODEL
        journal = path / JOURNAL
        self.finished, whole = _finished(journal)  # file name -> `Manifest.file_facts`, as the journal has them
        self._journal = open(journal, "ab", buffering=0)  # noqa: SIM115  # closed by `open_work`
        self._journal.truncate(whole)

    def record(self, name: str, facts: Mapping[str, Any]) -> None:
        """Record that a file is finished and synced under its name; durable when this returns. Raises OSError."""
        sync(self.model)
        self._journal.write(json.dumps({"file": name, **facts}).encode() + b"\n")
        sync(self._journal.fileno())
        self.finished[name] = dict(facts)

    def close(self) -> None:
        self._journal.close()


def _finished(journal: Path) -> tuple[dict[str, dict[str, Any]], int]:
    """File name -> `manifest.file_facts`, and the bytes of the journal's valid lines."""
    finished: dict[str, dict[str, Any]] = {}
    whole = 0
    with contextlib.suppress(FileNotFoundError):
        for line in journal.read_bytes().splitlines(keepends=True):
            try:
                entry = json.loads(line)
                name, facts = entry["file"], {"size": entry["size"], "sha256": entry["sha256"]}
            except (ValueError, KeyError, TypeError):
                break
            if not line.endswith(b"\n"):  # cut off by a kill; a line after it could not be parsed either
                break
            finished[name] = facts
            whole += len(line)
    return finished, whole


def work_path(target: Path) -> Path:
    """Directory of the unfinished files of `target`: beside it, with a fixed name, so that the next start finds it."""
    return target.absolute().with_name(target.name + SUFFIX)


def tidy(target: Path) -> None:
    """Remove the empty work directory of a finished `target`, left by a kill after the renaming."""
    path = work_path(target)
    if not (path / OWNER).is_file():
        return
    with contextlib.suppress(UpcycleError, OSError), _locked(path, target, patience=0):
        if {entry.name for entry in path.iterdir()} <= {OWNER, PLAN, JOURNAL}:
            remove(path)


def remove(path: Path) -> None:
    """Remove the files of a work directory, and the directory unless other files are in it."""
    with contextlib.suppress(OSError):
        for name in (JOURNAL, PLAN, OWNER):
            (path / name).unlink(missing_ok=True)
        path.rmdir()


@contextlib.contextmanager
def open_work(target: Path, plan: Mapping[str, Any]) -> Iterator[Work]:
    """Open the work on `target`, new or resumed. plan: short JSON values.

    Raises: HuggingFaceError if `target` exists; UpcycleError if another process holds the work, it cannot be locked, or
        it has another plan; OSError.
    """
    path = work_path(target)
    with _locked(path, target, PATIENCE):
        if os.path.lexists(target) and [entry.name for entry in path.iterdir()] == [OWNER]:
            remove(path)  # created by this process after the lock's holder finished
        must_not_exist(target)
        file = path / PLAN
        if file.exists():
            _same_plan(path, target, plan)
        else:
            if strangers := {entry.name for entry in path.iterdir()} - {OWNER, PLAN + FILE_SUFFIX}:
                raise UpcycleError(
                    f"{path} holds {min(strangers)}, which is not part of an upcycle; move it away",
                    where=str(path),
                    value=min(strangers),
                    allowed="move it away",
                )
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
    """The files that earlier starts of this plan finished, and their sizes; None if there is no work on `target`. Locks
    and changes nothing. Raises UpcycleError if the work is of another plan."""
    path = work_path(target)
    if not (path / PLAN).is_file():
        return None
    _same_plan(path, target, plan())
    return {name: facts["size"] for name, facts in sorted(_finished(path / JOURNAL)[0].items())}


def _same_plan(path: Path, target: Path, plan: Mapping[str, Any]) -> None:
    try:
        earlier = json.loads((path / PLAN).read_text(encoding="utf-8"))
        differing = sorted(key for key in {*earlier, *plan} if earlier.get(key) != plan.get(key))
    except (ValueError, TypeError) as error:
        raise UpcycleError(
            f"{path / PLAN} cannot be read ({error}); remove {path}", where=str(path / PLAN), allowed=f"remove {path}"
        ) from error
    if differing:
        raise UpcycleError(
            f"{path} holds the unfinished work of another upcycle to {target} (its {', '.join(differing)} differ); "
            "repeat that command to resume it, or remove the directory",
            where=str(path),
            value=differing,
            allowed="repeat that command, or remove the directory",
        )


@contextlib.contextmanager
def _locked(path: Path, target: Path, patience: float) -> Iterator[None]:
    """Hold the lock in the directory `path`, which is made if it is missing. Workers inherit the lock.

    Raises: UpcycleError if another process holds it for longer than `patience`, or the file system has no locks.
    """
    try:
        lock = FileLock(path / OWNER, wait=patience)
    except NoLocksError:  # another process could be writing a file that this one takes for finished
        raise UpcycleError(
            f"{path}: this file system has no locks; write {target.name} on another disk, and copy it",
            where=str(path),
            allowed="a directory on another disk",
        ) from None
    except LockedError:
        raise UpcycleError(
            f"{target} is being written by another process, in {path}; wait for it, or give another directory",
            where=str(target),
            allowed="another directory",
        ) from None
    with lock:
        yield
