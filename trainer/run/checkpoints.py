"""The run's checkpoints as its loop uses them: resume, save in the background, log how each save ended."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from parallel.world import World
from trainer.checkpoint.errors import CheckpointError
from trainer.checkpoint.state import restore_generators, training_tensors
from trainer.checkpoint.store import CheckpointStore, Saved
from trainer.config import coerce
from trainer.config.keys import Config
from trainer.config.run_files import CHECKPOINTS, CONFIG_FACT
from trainer.run.build import Parts
from trainer.run.directory import last_step
from trainer.weights.lora.base import BASE_FACT, differing


@dataclass
class Position:
    """The position of a run: optimizer steps taken and samples seen since its very start."""

    step: int = 0
    sample: int = 0


class EventLog(Protocol):
    """The part of the metrics log that a save writes to."""

    def event(self, record: dict[str, Any]) -> None: ...


class Checkpoints:
    """Collective over all ranks, which make the same calls in the same order.

    warnings: lines of the load, which comes before the log is open: the log has to know where its record is cut.
    """

    def __init__(self, cfg: Config, directory: Path, world: World, parts: Parts) -> None:
        self.cfg, self.directory, self.world, self.parts = cfg, directory, world, parts
        self.warnings: list[str] = []
        self.saved_step = 0  # of the newest checkpoint, written or being written
        self.loaded: list[Path] = []  # the files of the checkpoint that the run continues from
        self.files: Callable[[], Mapping[str, bytes]] = dict  # what this rank adds to a checkpoint, by file name
        self._store = CheckpointStore(
            directory / CHECKPOINTS, keep=cfg.checkpoint.keep, world=world, warn=self.warnings.append
        )

    def resume(self) -> Position | None:
        """Load the newest intact checkpoint; None where there is none. Raises `CheckpointError`."""
        tensors = self._tensors()
        manifest = self._store.load(tensors, self._check)
        if manifest is None:
            return None
        restore_generators(tensors, self.world.rank)
        self.parts.engine.refresh()
        self.saved_step = manifest["step"]
        self.loaded = [self.directory / CHECKPOINTS / f"step-{self.saved_step}" / name for name in manifest["files"]]
        return Position(manifest["step"], manifest["sample"])

    def save(self, position: Position, log: EventLog) -> None:
        """Start to write a checkpoint, unless this step has one; logs the save before it."""
        if self.saved_step == position.step:
            return
        config = coerce.to_dict(self.cfg)
        facts = {"sample": position.sample, "data": self.parts.data.fingerprint, CONFIG_FACT: config}
        if self.parts.base:
            facts[BASE_FACT] = self.parts.base
        files = self.files()
        copy = self.cfg.optim.offload == "none"  # the host may not have room for the state twice
        self._log(self._store.save(position.step, self._tensors(), facts, copy=copy, files=files), position, log)
        self.saved_step = position.step

    def poll(self, position: Position, log: EventLog) -> None:
        """Log a save that has ended since the last call, without waiting for one."""
        self._log(self._store.poll(), position, log)

    def wait(self, position: Position, log: EventLog) -> bool:
        """Wait for the save in flight and log it. False where it failed. Not collective."""
        return self._log(self._store.wait(), position, log)

    def complete(self, position: Position, log: EventLog) -> bool:
        """Wait for the save in flight. True, on every rank, where the newest checkpoint is of this position."""
        self.world.watch.at("the last checkpoint")
        succeeded = self.wait(position, log)
        # Rank 0 wrote the manifest, and another machine may see the directory late.
        return bool(self.world.broadcast(succeeded and last_step(self.directory) == position.step))

    def newest(self) -> str:
        """Path of the newest complete checkpoint, for a message."""
        step = last_step(self.directory)
        return str(self.directory / CHECKPOINTS / f"step-{step}") if step else "none"

    def _tensors(self) -> dict[str, Any]:
        return training_tensors(list(self.parts.stages.values()), self.parts.engine, self.world.rank)

    def _log(self, saved: Saved | None, position: Position, log: EventLog) -> bool:
        if saved is None:
            return True
        if saved.error is not None:
            message = f"checkpoint step-{saved.step} was not saved: {saved.error}; the older ones are kept"
            log.event({"event": "warning", "step": position.step, "message": message})
            return False
        facts = {"size_bytes": saved.size, "write_seconds": round(saved.seconds, 3)}
        message = f"step-{saved.step} is saved"
        log.event({"event": "checkpoint", "step": position.step, "message": message, **facts})
        return True

    def _check(self, manifest: dict[str, Any]) -> None:
        self._check_data(manifest)
        other = differing(manifest.get(BASE_FACT), self.parts.base) if self.parts.base else None
        if other is not None:
            raise CheckpointError(
                f"{self.directory} has adapters of other weights than {self.parts.base['path']} holds now ({other}); "
                "restore the weights that they belong to, or use another run.dir",
                where="checkpoint.init_from",
                value=self.parts.base,
                allowed=manifest.get(BASE_FACT),
            )

    def _check_data(self, manifest: dict[str, Any]) -> None:
        before, now = manifest["data"], self.parts.data.fingerprint
        if before == now:
            return
        change = f"their fingerprint was {before[:12]} and is now {now[:12]}"
        if not self.cfg.data.allow_changed:
            raise CheckpointError(
                f"{self.directory} was trained on different data: {change}. Restore the corpus (data.cache_dir, the "
                "packages it is made from), use another run.dir, or continue on the present data with "
                "data.allow_changed=true",
                where="data",
                value=now,
                allowed="the original corpus, another run.dir, or data.allow_changed=true",
            )
        self.warnings.append(f"continuing on different data: {change}")
