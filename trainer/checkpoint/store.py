"""Checkpoints of one run: written in the background, verified before they are used.

    RUN_DIR/checkpoints/step-120.tmp/    while it is written; never read
    RUN_DIR/checkpoints/step-120/        __0_0.distcp ... .metadata   shards of torch.distributed.checkpoint
                                         manifest.json                size and SHA-256 of each, and the run's position
    RUN_DIR/checkpoints/latest           "step-120", for people and tools; written last

A save copies the state, then a thread writes shards, hashes them, writes the manifest, syncs, renames the directory
and points `latest` at it. Whatever interrupts it leaves a `.tmp` and the older checkpoints. A load takes the newest
directory whose every byte is as written. Tensors are keyed by the parameter's qualified name and hold global shapes,
so a checkpoint does not depend on the layout it was saved from.
"""

from __future__ import annotations

import errno
import re
import shutil
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, TensorStorageMetadata
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

from parallel.world import World
from trainer.checkpoint.errors import CheckpointError
from trainer.storage.atomic import atomic_file, publish, sync
from trainer.storage.manifest import CHECKPOINT, CorruptError
from trainer.storage.space import free_space

_STEP = re.compile(r"step-(\d+)")
_SHARD = re.compile(r"__(\d+)_\d+\.distcp")


@dataclass(frozen=True)
class Saved:
    """The outcome of a save: `error` is None, or one line with its cause."""

    step: int
    error: str | None
    seconds: float
    size: int


class CheckpointStore:
    """The checkpoints under `directory`. Every rank holds one and makes the same calls in the same order.

    `keep`: how many complete checkpoints stay. `warn`: called on rank 0 with one line for each damaged checkpoint
    that is passed over.
    """

    def __init__(self, directory: Path, *, keep: int, world: World, warn: Callable[[str], None]) -> None:
        self.directory = directory
        self.keep = keep
        self.world = world
        self.warn = warn
        on_gpu = world.device.type == "cuda"
        self._stager = DefaultStager(StagingOptions(on_gpu, False, False, on_gpu))
        self._thread: threading.Thread | None = None
        self._saved: Saved | None = None
        # DCP's remark on every save and load of a run of one process.
        warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")

    # ---- saving

    def save(
        self,
        step: int,
        tensors: dict[str, Tensor],
        facts: dict[str, Any],
        *,
        copy: bool = True,
        files: Mapping[str, bytes] | None = None,
    ) -> Saved | None:
        """Copy `tensors`, then write them as `step-<step>` in the background; without `copy`, write them before this
        returns, with no second set of them in memory.

        The caller may change the tensors as soon as this returns. `facts` (JSON values) go into the manifest. files:
        further ones that this rank writes, by name; names differ over all ranks.
        Returns the result of the save before this one, unless it was returned already: a save waits for that one.
        """
        before = self.wait()
        self._saved = Saved(step=step, error="the writer thread died", seconds=0.0, size=0)
        if not copy:
            self._write(step, tensors, {"step": step, **facts}, files or {})
            return before
        staged = self._stager.stage({"state": tensors})
        assert isinstance(staged, dict)
        self._thread = threading.Thread(
            target=self._write,
            args=(step, staged["state"], {"step": step, **facts}, files or {}),
            name="checkpoint",
            daemon=True,
        )
        self._thread.start()
        return before

    def poll(self) -> Saved | None:
        """Return the result of the save in flight, once; None while it is still writing, or if there is none."""
        if self._thread is not None and self._thread.is_alive():
            return None
        return self.wait()

    def wait(self) -> Saved | None:
        """Wait for the save in flight and return its result, once; None if there is none."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        saved, self._saved = self._saved, None
        return saved

    def _write(self, step: int, tensors: dict[str, Tensor], facts: dict[str, Any], more: Mapping[str, bytes]) -> None:
        started = time.perf_counter()
        target, temporary = self.directory / f"step-{step}", self.directory / f"step-{step}.tmp"
        size, problem = 0, None
        try:
            self._on_every_rank(lambda: self._make_room(temporary, tensors) if self.world.rank == 0 else None)
            dcp.save(
                tensors,
                checkpoint_id=temporary,
                process_group=self.world.background,
                no_dist=self.world.size == 1,
            )
            hashes = self._on_every_rank(lambda: self._own_files(temporary, more))
            files = {name: found for of_rank in hashes for name, found in of_rank.items()}
            size = sum(found["size"] for found in files.values())
            self._on_every_rank(
                lambda: self._publish(temporary, target, files, facts) if self.world.rank == 0 else None
            )
        except CheckpointException as failure:  # a BaseException of DCP, alike on all ranks
            problem = _first_cause(failure)
        except Exception as failure:
            problem = _one_line(failure)
        if problem is not None and self.world.rank == 0:
            shutil.rmtree(temporary, ignore_errors=True)
        self._saved = Saved(step=step, error=problem, seconds=time.perf_counter() - started, size=size)

    def _make_room(self, temporary: Path, tensors: dict[str, Tensor]) -> None:
        _remove(temporary)
        self.directory.mkdir(parents=True, exist_ok=True)
        need, (_, free) = sum(tensor.nbytes for tensor in tensors.values()), free_space(self.directory)
        if free < need:  # rather than fill the disk to its last byte for nothing
            reason = f"No space left on device ({free / 2**20:.0f} MiB free, {need / 2**20:.0f} MiB needed)"
            raise OSError(errno.ENOSPC, reason, str(self.directory))

    def _on_every_rank(self, act: Callable[[], Any]) -> list[Any]:
        """Run `act` on every rank; raise on all of them where it failed on any, so that no rank waits for another."""
        try:
            outcome: tuple[Any, str | None] = (act(), None)
        except Exception as error:
            outcome = (None, _one_line(error))
        outcomes = self.world.gather(outcome, background=True)
        for rank, (_, problem) in enumerate(outcomes):
            if problem is not None:
                raise OSError(f"rank {rank}: {problem}" if self.world.size > 1 else problem)
        return [value for value, _ in outcomes]

    def _own_files(self, temporary: Path, more: Mapping[str, bytes]) -> dict[str, dict[str, Any]]:
        """Write `more`. Returns hashes of it and of the shards that this rank wrote; rank 0 takes DCP's index too."""
        for name, content in more.items():
            (temporary / name).write_bytes(content)
            sync(temporary / name)
        names = [*more]
        names += [path.name for path in temporary.iterdir() if _writer(path.name) == self.world.rank]
        return {name: CHECKPOINT.file_facts(temporary / name) for name in names}

    def _publish(self, temporary: Path, target: Path, files: dict[str, dict[str, Any]], facts: dict[str, Any]) -> None:
        torch_version = str(torch.__version__)
        CHECKPOINT.write(temporary, {**facts, "world_size": self.world.size, "torch": torch_version}, files)
        if target.exists():
            _set_aside(target)
        publish(temporary, target)
        _write_latest(self.directory, target.name)
        for _, old in self._steps()[self.keep :]:
            shutil.rmtree(old, ignore_errors=True)

    # ---- loading

    def load(self, tensors: dict[str, Tensor], check: Callable[[dict[str, Any]], None]) -> dict[str, Any] | None:
        """Fill `tensors` in place from the newest checkpoint that is whole, and return its manifest; None if there
        never was one.

        `check` sees the manifest before any tensor is read and raises to refuse it. Names under `rng.` that the
        checkpoint lacks keep their value (a run may be resumed by more processes than saved it). Corrupt checkpoints
        are reported through `warn` and renamed to `step-N.damaged`, so that later saves neither meet nor count them.
        Raises `CheckpointError` where all checkpoints are damaged, or hold other tensors than `tensors`.
        """
        self._clear_half_written()
        candidates = self.world.broadcast(self._steps())
        faults: list[CorruptError] = []
        for _, path in candidates:
            try:
                manifest = self._verify(path)
                check(manifest)
                self._read(path, tensors, manifest)
            except CorruptError as damage:
                faults.append(damage)
                if self.world.rank == 0:
                    self.warn(f"checkpoint {path.name} is damaged and was skipped: {damage}")
                continue
            if self.world.rank == 0 and faults:
                self._retire_newer_than(path)
            return manifest
        if faults:
            raise CheckpointError(
                f"no usable checkpoint in {self.directory}: {'; '.join(map(str, faults))}. Restore one of these files "
                "from a copy, or start over with train.resume=never or another run.dir",
                where=str(self.directory),
                value=[str(damage.path) for damage in faults],
                allowed="one of these files from a copy, train.resume=never, or another run.dir",
            )
        return None

    def _verify(self, path: Path) -> dict[str, Any]:
        """The manifest, after every file was compared with it; the files are shared out among the ranks."""
        fault: CorruptError | None = None
        manifest: dict[str, Any] | None = None
        if self.world.rank == 0:
            try:
                manifest = CHECKPOINT.read(path)
            except CorruptError as damage:
                fault = damage
        fault, manifest = self.world.broadcast((fault, manifest))
        if fault is None:
            assert manifest is not None
            mine = list(manifest["files"].items())[self.world.rank :: self.world.size]
            faults = [found for name, expected in mine if (found := CHECKPOINT.check_file(path, name, expected))]
            fault = next((found for of_rank in self.world.gather(faults) for found in of_rank), None)
        if fault is not None:
            raise fault
        assert manifest is not None
        return manifest

    def _read(self, path: Path, tensors: dict[str, Tensor], manifest: dict[str, Any]) -> None:
        try:
            stored = dcp.FileSystemReader(path).read_metadata().state_dict_metadata
            wanted = {name: tensor for name, tensor in tensors.items() if name in stored or not name.startswith("rng.")}
            self._compare(path, wanted, stored)
            dcp.load(wanted, checkpoint_id=path, process_group=self.world.control, no_dist=self.world.size == 1)
        except CheckpointException as failure:
            if any(isinstance(error, KeyboardInterrupt) for error, _ in failure.failures.values()):
                raise KeyboardInterrupt from failure
            # Its bytes are as they were written, so that an older checkpoint would fare no better.
            raise CheckpointError(
                f"{path} is intact but cannot be read here ({_first_cause(failure)}); it was written by torch "
                f"{manifest['torch']}, this is {torch.__version__}",
                where=str(path),
                value=torch.__version__,
                allowed=manifest["torch"],
            ) from failure

    def _compare(self, path: Path, wanted: dict[str, Tensor], stored: dict[str, Any]) -> None:
        """Raise `CheckpointError`, on every rank, that names what differs between the tensors that the ranks ask for,
        each for those of its pipeline stages, and those stored."""
        of_ranks = self.world.gather((_differences(wanted, stored), list(wanted)))
        differ = list(dict.fromkeys(line for lines, _ in of_ranks for line in lines))
        asked = {name for _, names in of_ranks for name in names}
        differ += [f"{name} is only in the checkpoint" for name in stored if name not in asked and name[:4] != "rng."]
        if differ:
            more = f" and {len(differ) - 4} more" if len(differ) > 4 else ""
            raise CheckpointError(
                f"{path} was saved from a different model or optimizer: {'; '.join(differ[:4])}{more}. Use the model "
                "and optim keys that it was saved with, or another run.dir",
                where=str(path),
                value=differ,
                allowed="the model and optim keys that it was saved with, or another run.dir",
            )

    def _clear_half_written(self) -> None:
        if self.world.rank == 0 and self.directory.is_dir():
            for path in sorted(self.directory.glob("step-*.tmp")):
                self.warn(f"{path} is incomplete (a save was interrupted) and was removed")
                shutil.rmtree(path, ignore_errors=True)

    def _retire_newer_than(self, used: Path) -> None:
        for _, path in self._steps():
            if path == used:
                break
            try:
                _set_aside(path)
            except OSError as error:
                self.warn(f"{path} could not be renamed ({error.strerror}); later saves may count it as a checkpoint")
        _write_latest(self.directory, used.name)

    def _steps(self) -> list[tuple[int, Path]]:
        """(step, directory) of everything that bears a checkpoint's name, newest first."""
        if not self.directory.is_dir():
            return []
        found = [(int(match[1]), path) for path in self.directory.iterdir() if (match := _STEP.fullmatch(path.name))]
        return sorted(found, reverse=True)


def _differences(wanted: dict[str, Tensor], stored: dict[str, Any]) -> list[str]:
    """Lines about the tensors asked for that the checkpoint lacks or has otherwise."""
    differ = []
    for name, tensor in wanted.items():
        match stored.get(name):
            case None:
                differ.append(f"{name} is not in the checkpoint")
            case BytesStorageMetadata():
                differ.append(f"{name} is not a tensor in the checkpoint")
            case TensorStorageMetadata(properties=properties, size=size):
                theirs, ours = (tuple(size), properties.dtype), (tuple(tensor.shape), tensor.dtype)
                moment = name.startswith("optim.") and theirs[1].is_floating_point and ours[1].is_floating_point
                if theirs[0] != ours[0] or (theirs[1] != ours[1] and not moment):  # a load converts moments
                    differ.append(f"{name} is {_shape(*theirs)} in the checkpoint and {_shape(*ours)} here")
    return differ


def _shape(size: tuple[int, ...], dtype: torch.dtype) -> str:
    return f"{list(size)} {str(dtype).removeprefix('torch.')}"


def _writer(name: str) -> int | None:
    """The rank that wrote a file of a checkpoint."""
    if match := _SHARD.fullmatch(name):
        return int(match[1])
    return 0 if name == ".metadata" else None


def _write_latest(directory: Path, name: str) -> None:
    with atomic_file(directory / "latest") as temporary:
        temporary.write_text(name + "\n", encoding="utf-8")


def _set_aside(path: Path) -> None:
    aside = path.with_name(path.name + ".damaged")
    _remove(aside)
    publish(path, aside)


def _remove(path: Path) -> None:
    if path.exists():
        shutil.rmtree(path)


def _first_cause(failure: CheckpointException) -> str:
    """One line for DCP's report of all ranks' tracebacks."""
    rank, (error, _) = next(iter(failure.failures.items()))
    return f"rank {rank}: {_one_line(error)}" if rank else _one_line(error)


def _one_line(error: BaseException) -> str:
    cause: BaseException | None = error
    while cause is not None:  # torch.save hides a full disk behind an error about positions in its archive
        if isinstance(cause, OSError) and cause.strerror:
            return f"{cause.strerror}" + (f": {cause.filename}" if cause.filename else "")
        cause = cause.__cause__ or cause.__context__
    return str(error).strip().split("\n")[0] or type(error).__name__
