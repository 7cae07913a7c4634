"""What a run keeps of the Hugging Face directory that it began with, so that an export needs the run's directory alone.

RUN_DIR/source/   config.json, tokenizer and other side files, the tensors of parts that are not trained (towers),
                  and manifest.json: hashes of all these, and the dtypes that the text model was stored in
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from parallel.world import World
from trainer.checkpoint.huggingface.config import other_function
from trainer.checkpoint.huggingface.files import (
    CONFIG,
    HuggingFaceError,
    StoredTensor,
    open_directory,
    read_json,
    stored_tensors,
)
from trainer.checkpoint.huggingface.read import fill
from trainer.checkpoint.huggingface.survey import Source, look_at
from trainer.checkpoint.huggingface.write import copy_of, side_files, write_directory
from trainer.checkpoint.manifest import Damaged, read_manifest, verify_file
from trainer.config import Config, ConfigError
from trainer.model.decoder import Decoder
from trainer.model_config import ModelConfig
from trainer.rundir import SOURCE, RunDir


@dataclass(frozen=True)
class Carried:
    """The contents of RUN_DIR/source."""

    path: Path
    config: dict[str, Any]
    kinds: dict[str, str]  # as `Source.kinds`
    tensors: list[StoredTensor]
    side_files: list[Path]


def published_weights(cfg: Config, run: RunDir, world: World) -> Callable[[Decoder], None] | None:
    """What gives a new run's model the weights in `checkpoint.init_from`; None where that is not set, or not needed any
    more since the run has a checkpoint of its own."""
    if cfg.checkpoint.init_from is None or run.step > 0:
        return None
    path = Path(cfg.checkpoint.init_from)
    return lambda model: begin_from(path, model, cfg.model, run.path, world)


def begin_from(path: Path, model: nn.Module, cfg: ModelConfig, run_directory: Path, world: World) -> None:
    """Fill `model` on every rank with the weights in `path`, each rank reading its own part of them, and keep in the
    run's directory what an export will need. Collective.

    Raises ConfigError where `cfg` is another model than the one in `path`, and HuggingFaceError where that is not
    whole.
    """
    world.watch.at(f"start: reading {path}")
    failure: Exception | None = None
    if world.rank == 0:
        try:
            source = _suitable(path, cfg)
            _keep(source, run_directory, world.watch.tick)
        except (ConfigError, HuggingFaceError) as error:
            failure = error
    failure = world.broadcast(failure)
    if failure is not None:
        raise failure
    source = look_at(open_directory(path))
    fill(model, source, world.watch.tick)


def read_carried(run_directory: Path) -> Carried | None:
    """What a run keeps of its source, once every byte is as written; None for a run that began without one.

    Raises HuggingFaceError.
    """
    path = run_directory / SOURCE
    if not path.is_dir():
        return None
    try:
        manifest = read_manifest(path)
        fault = next(
            (found for name, facts in manifest["files"].items() if (found := verify_file(path, name, facts))), None
        )
    except Damaged as damage:
        fault = str(damage)
    if fault is not None:
        raise HuggingFaceError(f"what the run kept of its source is damaged: {fault}")
    tensors = list(stored_tensors(path).values())
    return Carried(path, read_json(path / CONFIG), manifest["kinds"], tensors, side_files(path))


def _suitable(path: Path, cfg: ModelConfig) -> Source:
    source = look_at(open_directory(path))
    differing = other_function(cfg, source.model)
    if differing:
        raise ConfigError(
            [f"checkpoint.init_from={path} holds another model: {'; '.join(differing)}. Use the values there"]
        )
    source.require(towers=True)
    return source


def _keep(source: Source, run_directory: Path, tick: Callable[[], None]) -> None:
    target = run_directory / SOURCE
    if target.exists():  # of a start that came to no step
        shutil.rmtree(target)
    write_directory(
        target,
        [copy_of(tensor) for tensor in source.carried],
        source.directory.config,
        side_files(source.directory.path),
        manifest={"from": str(source.directory.path.absolute()), "kinds": source.kinds},
        wrote=lambda nbytes: tick(),
    )
