"""Write the directory of an upcycled model: resumable, verified, in several processes.

Files are finished in any order and recorded in the journal; a file that was finished before a kill is verified against
its hash and kept. Every file's bytes follow from the plan alone, so any number of starts gives the result of one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from trainer.storage.atomic import TargetExistsError, publish
from trainer.storage.manifest import CHECKPOINT, MANIFEST
from trainer.storage.progress import OnProgress, Progress, ignore
from trainer.storage.workers import Reporter, Task, WorkerDied, Workers
from trainer.weights.beside.side_files import total_size
from trainer.weights.hf_files import CONFIG, INDEX, HuggingFaceError
from trainer.weights.hf_write import (
    SHARD_BYTES,
    Shard,
    already_exists,
    complete,
    must_not_exist,
    require_space,
    split_into_shards,
    write_shard,
)
from trainer.weights.upcycle.errors import UpcycleError
from trainer.weights.upcycle.journal import MODEL, Work, digest, open_work, remove, tidy, work_path

if TYPE_CHECKING:
    from trainer.weights.upcycle.stream import Upcycled

FORMAT = 1  # version of the bytes; increased when the same request gives different ones
FACT = "upcycle"  # its key in manifest.json


class Interrupted(KeyboardInterrupt):
    """Ctrl-C; the message says which work is kept."""


@dataclass(frozen=True)
class Done:
    nbytes: int  # of all tensors
    shards: int
    kept: int  # of them, from an earlier start
    faults: tuple[str, ...]  # faults of finished files of an earlier start, which were made again


def run(
    target: Path,
    upcycled: Upcycled,
    source: Callable[[], Mapping[str, str]],
    *,
    workers: int = 1,
    shard_bytes: int = SHARD_BYTES,
    progress: OnProgress = ignore,
) -> Done:
    """Write the model to `target`, resuming the work that an earlier start of the same plan left beside it.

    Args:
        source: returns the source's current identity (`journal.identity`): part of the plan, compared at the end.
        workers: processes; each holds a few tensors.
        shard_bytes: largest size of a file, unless a single bundle of tensors is larger.
    Raises: HuggingFaceError if `target` exists or the disk is too small (before the first byte); UpcycleError if
        another process writes it, another plan's work is there, a tensor cannot be read or a file cannot be written;
        Interrupted. Finished files are kept.
    """
    if target.exists():
        tidy(target)
    must_not_exist(target)
    shards = split_into_shards(upcycled.bundles, shard_bytes)
    before = source()
    plan = plan_of(upcycled, shards, before)
    beside = total_size(upcycled.side_files)
    require_space(target, disk_needed(shards) + beside - _present(work_path(target) / MODEL))
    try:
        with open_work(target, plan) as work:
            try:
                done = _make(work, shards, workers, progress)
                if (now := source()) != before:
                    changed = sorted(name for name in {*before, *now} if before.get(name) != now.get(name))
                    raise UpcycleError(
                        f"the source changed during the upcycle: {', '.join(changed)}; remove {work.path}",
                        where=changed[0],
                        value=changed,
                        allowed=f"remove {work.path}",
                    )
                _refuse_unknown_files(
                    work, {*(s.name for s in shards), *(name.partition("/")[0] for name in upcycled.side_files)}
                )
                manifest = {FACT: upcycled.facts}
                complete(work.model, shards, work.finished, upcycled.config, upcycled.side_files, manifest)
            except KeyboardInterrupt:
                raise Interrupted(f"interrupted; {_resume_hint(work, shards)}") from None
            publish(work.model, target)
            remove(work.path)
    except TargetExistsError as error:
        raise already_exists(error.path) from None
    except OSError as error:
        raise _not_written(error.filename or target, error) from error
    return done


def disk_needed(shards: Sequence[Shard]) -> int:
    """Size of all files with tensors, in bytes."""
    return sum(shard.size for shard in shards)


def plan_of(upcycled: Upcycled, shards: Sequence[Shard], source: Mapping[str, str]) -> dict[str, Any]:
    """Everything that determines the bytes, as short values."""
    return {
        "format": FORMAT,
        "torch": torch.__version__,  # whose arithmetic it is
        "source": digest(source),
        "options": digest(upcycled.facts),
        "config.json": digest(upcycled.config),
        "files": digest([(s.name, [(o.name, o.dtype, o.shape) for o in s.ordered]) for s in shards]),
        "side files": digest([[name, str(file.absolute())] for name, file in upcycled.side_files.items()]),
    }


def _make(work: Work, shards: Sequence[Shard], workers: int, progress: OnProgress) -> Done:
    total, made, kept, kept_shards = sum(shard.nbytes for shard in shards), 0, 0, 0
    faults: list[str] = []
    # Existing files first: verifying them is quick, and the bar starts at their bytes.
    jobs = sorted(shards, key=lambda shard: shard.name not in work.finished)

    def show() -> None:
        stage = "writing" if made else "verifying"  # an earlier start's files
        progress(Progress(stage, made + kept, total, kept=kept))

    def wrote(place: int, nbytes: int) -> None:
        nonlocal made
        made += nbytes
        show()

    try:
        with Workers(partial(_start, jobs, work), min(workers, len(jobs)), fork=True) as pool:
            for place, (facts, was_kept, fault) in pool.run(range(len(jobs)), wrote):
                faults += [fault] if fault else []
                if was_kept:
                    kept_shards += 1
                    kept += jobs[place].nbytes
                    show()
                else:
                    work.record(jobs[place].name, facts)
    except WorkerDied as death:
        hint = " (out of memory? use fewer --workers)" if death.by_sigkill else ""
        line = f"a worker {death.how} while it made {jobs[death.place].name}{hint}"
        allowed = "fewer --workers" if death.by_sigkill else None
        text = f"{line}; {_resume_hint(work, shards)}"
        raise UpcycleError(text, where=jobs[death.place].name, value=death.how, allowed=allowed) from death
    except (HuggingFaceError, UpcycleError) as error:
        text = f"{error}; {_resume_hint(work, shards)}"
        raise UpcycleError(text, where=error.where, value=error.value, allowed=error.allowed) from error
    return Done(total, len(shards), kept_shards, tuple(faults))


def _start(jobs: Sequence[Shard], work: Work) -> Task:
    """Make the files of `jobs` in a fork: the bundles' closures hold an opened source, and a fresh process would spend
    seconds on importing torch. torch's threads do not exist in a fork, so each computes with one."""
    torch.set_num_threads(1)

    def make(place: int, report: Reporter) -> tuple[Mapping[str, Any], bool, str | None]:
        """The file's facts, whether it was kept, and the fault of the file that was there."""
        shard, fault = jobs[place], None
        file = work.model / shard.name
        if (facts := work.finished.get(shard.name)) is not None:
            found = CHECKPOINT.check_file(work.model, shard.name, facts)
            if found is None:
                return facts, True, None
            fault = str(found)
        try:
            return write_shard(file, shard, report), False, fault
        except MemoryError:
            raise UpcycleError(
                f"{file}: out of memory; use fewer --workers", where=str(file), allowed="fewer --workers"
            ) from None
        except OSError as error:
            raise _not_written(file, error) from error

    return make


def _not_written(file: Path | str, error: OSError) -> UpcycleError:
    reason = error.strerror or str(error)
    return UpcycleError(
        f"{file} cannot be written: {reason}",
        where=str(file),
        value=reason,
        allowed="a path that can be written, with enough space",
    )


def _refuse_unknown_files(work: Work, own: Set[str]) -> None:
    """Raise UpcycleError for foreign files: they would become part of the model without being in its manifest. Files
    that a killed start put beside the tensors are overwritten."""
    found = {entry.name for entry in work.model.iterdir()} - own - {INDEX, CONFIG, MANIFEST}
    if found:
        raise UpcycleError(
            f"{work.model / min(found)} is not a file of this model ({len(found)} such); move it away, then the same "
            "command resumes",
            where=str(work.model / min(found)),
            value=sorted(found),
            allowed="move it away",
        )


def _resume_hint(work: Work, shards: Sequence[Shard]) -> str:
    finished = f"{len(work.finished)} of {len(shards)} files are finished and kept in {work.path}"
    return f"{finished}: the same command resumes from there"


def _present(directory: Path) -> int:
    """Bytes on disk of an earlier start's files: finished ones stay, the others are overwritten."""
    found = directory.glob("*") if directory.is_dir() else ()
    return sum(file.stat().st_blocks * 512 for file in found)
