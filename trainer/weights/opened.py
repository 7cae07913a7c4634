"""A training checkpoint opened to be looked at or exported: where it is, what model it holds, whether it is whole.

Starts without torch, which is imported when the tensors are asked for: a wrong directory is reported at once.
"""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from parallel.errors import one_of
from trainer.checkpoint.errors import CheckpointError
from trainer.config import coerce
from trainer.config.errors import ConfigError
from trainer.config.keys import LoraConfig
from trainer.config.model import ModelConfig
from trainer.config.run_files import CHECKPOINTS, CONFIG_FILE, SOURCE, TOKENIZER_DIRECTORY, read_run, read_start
from trainer.storage.boxes import Box
from trainer.storage.manifest import CHECKPOINT, CorruptError
from trainer.weights.lora.base import BASE_FACT, base_path
from trainer.weights.map import Piece, text_pieces
from trainer.weights.towers.trained import trained_pieces

if TYPE_CHECKING:
    from trainer.checkpoint.slices import StoredState
    from trainer.weights.lora.merged import MergedState

METADATA = ".metadata"  # torch.distributed.checkpoint's index
HASHERS = 4  # files that are read at one time
OWN = (SOURCE, TOKENIZER_DIRECTORY, CHECKPOINTS)  # directories of a run that it reads
TAKEN = "a run directory, or a step-N directory in one"
STEPS_SHOWN = 8  # at most, where another one was named
_STEP = re.compile(r"step-(\d+)")


@dataclass(frozen=True)
class OpenedCheckpoint:
    path: Path
    run_directory: Path
    step: int
    ranks: int  # that wrote it
    model: ModelConfig
    init_from: str | None  # what the run's weights were read from
    files: dict[str, dict[str, Any]]  # as the manifest lists them
    lora: LoraConfig = field(default_factory=LoraConfig)  # with a target, the checkpoint holds adapters alone
    base: dict[str, str] = field(default_factory=dict)  # then `identify` of the weights that they belong to

    def require_base(self) -> None:
        """Raises CheckpointError where the weights that the adapters belong to are gone, or are others by now."""
        if self.lora.target != "none":
            base_path(self.path, self.base, self.init_from)

    def refuse_inside(self, target: Path) -> None:
        """Raises CheckpointError for a directory to write that is the run's or in one that the run reads itself."""
        run, written = self.run_directory.resolve(), target.resolve()
        own = next((name for name in OWN if written.is_relative_to(run / name)), None)
        if own is None and written != run:
            return
        allowed = "a directory that the run does not read, such as one in outputs"
        place = run if own is None else run / own
        text = f"{target} is {'' if written == place else 'in '}the run's own {place}; give {allowed}"
        raise CheckpointError(text, where=str(target), value=str(place), allowed=allowed)

    def compare_hashes(self) -> None:
        """Raises CheckpointError unless every byte is as it was written."""
        with ThreadPoolExecutor(HASHERS) as pool:
            for fault in pool.map(lambda name: CHECKPOINT.check_file(self.path, name, self.files[name]), self.files):
                if fault is not None:
                    raise _corrupt(self.path, fault)

    @cached_property
    def stored(self) -> StoredState:
        """The stored tensors. Raises CheckpointError for an index that cannot be read."""
        from trainer.checkpoint.slices import StoredState  # imports torch

        return StoredState(self.path)

    @cached_property
    def state(self) -> StoredState | MergedState:
        """The model's tensors: those stored, or, with adapters, those merged with their base. Raises CheckpointError,
        also where the base is gone."""
        if self.lora.target == "none":
            return self.stored
        from trainer.weights.lora.merged import MergedState

        towers = trained_pieces(self.model)
        return MergedState(self.stored, self.lora, self.base, self.shapes, towers, elsewhere=self.init_from)

    @cached_property
    def adapters(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the adapters' parameters by the run's configuration."""
        return self.lora.shapes(self.model)

    @cached_property
    def pieces(self) -> tuple[Piece, ...]:
        return (*text_pieces(self.model), *trained_pieces(self.model))

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the weights by the run's configuration: parameter (or table) -> shape."""
        boxes: dict[str, list[Box]] = {}
        for piece in self.pieces:
            boxes.setdefault(piece.parameter, []).append(piece.box)
        found = {
            name: tuple(max(part.stop for part in parts) for parts in zip(*b, strict=True)) for name, b in boxes.items()
        }
        return found | self.common_space

    @cached_property
    def common_space(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the parameters that only contrastive learning has, which no published layout has a name for."""
        m = self.model
        return m.embedding.named_shapes(m.hidden_size) if m.embedding is not None else {}

    @property
    def missing(self) -> list[str]:
        names = (f"model.{name}" for name in (*self.shapes, *self.adapters))
        return [name for name in names if self.state.shape(name) is None]

    @property
    def unfit(self) -> list[str]:
        """A line for each weight of another shape than the configuration makes it."""
        wanted = self.shapes | self.adapters
        found = {name: self.state.shape(f"model.{name}") for name in wanted}
        return [
            f"model.{name} is {list(shape)}; by {CONFIG_FILE} it is {list(wanted[name])}"
            for name, shape in found.items()
            if shape is not None and shape != wanted[name]
        ]


def _corrupt(checkpoint: Path, fault: CorruptError) -> CheckpointError:
    remedy = "restore the file, or give another step-N directory of the run"
    text = f"{checkpoint} is damaged: {fault}; {remedy}"
    return CheckpointError(text, where=str(fault.path), value=fault.value, allowed=remedy)


def open_checkpoint(checkpoint: Path, *, allowed: str = TAKEN) -> OpenedCheckpoint:
    """Open the step that `locate` finds, once every file is there and has its size, and those that are looked into are
    as they were written. Raises CheckpointError, or ConfigError for a configuration that cannot be read."""
    path = locate(checkpoint, allowed=allowed)
    run_directory = path.absolute().parent.parent
    try:
        tree, _ = read_run(run_directory)
    except FileNotFoundError:
        raise CheckpointError(
            f"{path}: {CONFIG_FILE}, which describes the model, is missing from the run directory {run_directory}; "
            "give a checkpoint that is still inside its run directory",
            where=str(run_directory / CONFIG_FILE),
            allowed="a checkpoint that is still inside its run directory",
        ) from None
    model, init_from = read_start(run_directory)
    try:
        manifest = CHECKPOINT.read(path)
    except CorruptError as damage:
        raise _corrupt(path, damage) from None
    files = manifest["files"]
    for name, facts in files.items():
        fault = (
            CHECKPOINT.check_size(path, name, facts) if name != METADATA else CHECKPOINT.check_file(path, name, facts)
        )
        if fault is not None:
            raise _corrupt(path, fault)
    lora, faults = coerce.from_dict(LoraConfig, tree.get("lora") or {}, file=str(run_directory / CONFIG_FILE))
    if lora is None:
        raise ConfigError(faults)
    step, ranks, base = manifest["step"], manifest["world_size"], manifest.get(BASE_FACT) or {}
    return OpenedCheckpoint(path, run_directory, step, ranks, model, init_from, files, lora, base)


def locate(checkpoint: Path, *, allowed: str = TAKEN) -> Path:
    """The step's directory that a run directory, its `checkpoints`, or such a directory itself stands for: the newest.

    allowed: the directories that the caller takes. Raises CheckpointError, for a step that does not exist with those
    that do.
    """
    named = _STEP.fullmatch(checkpoint.absolute().name)
    if named and checkpoint.is_dir():
        return checkpoint
    if steps := _steps(checkpoint):
        return steps[max(steps)]
    remedy, found = f"give {allowed}", "no training checkpoint found"
    if named and (steps := _steps(checkpoint.absolute().parent)) and not checkpoint.exists():
        newest = sorted(steps)[-STEPS_SHOWN:]
        names = [str(steps[step].relative_to(checkpoint.absolute().parent)) for step in newest]
        allowed = one_of(names) if len(steps) == len(newest) else f"one of {len(steps)}, the newest {one_of(names)}"
        found, remedy = "no such step", f"in {checkpoint.parent} there is {allowed}"
    elif not checkpoint.is_dir():
        found = "this is a file" if checkpoint.exists() else "no such directory"
    raise CheckpointError(f"{checkpoint}: {found}; {remedy}", where=str(checkpoint), allowed=allowed)


def _steps(directory: Path) -> dict[int, Path]:
    """The steps in a run directory or in its `checkpoints`."""
    inside = directory / CHECKPOINTS if (directory / CHECKPOINTS).is_dir() else directory
    return {int(match[1]): path for path in inside.glob("step-*") if (match := _STEP.fullmatch(path.name))}
