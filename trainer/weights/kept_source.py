"""A run's copy of parts of the Hugging Face directory that it started from: an export needs the run's directory alone.

RUN_DIR/source/   config.json, tokenizer and other side files, the tensors of parts that are not trained (towers),
                  and manifest.json: hashes of all these, and the dtypes that the text model was stored in
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parallel.errors import UserError
from parallel.world import World
from trainer.config.errors import ConfigError
from trainer.config.keys import Config
from trainer.config.model import ModelConfig
from trainer.config.run_files import SOURCE, SOURCE_FACT
from trainer.config.say import few
from trainer.data.media.rules import Rule
from trainer.data.protocols import TokenizerFile
from trainer.model.decoder import Decoder
from trainer.storage.boxes import StoredTensor
from trainer.storage.manifest import CHECKPOINT, MANIFEST, CorruptError
from trainer.weights.beside.media import keep_media
from trainer.weights.beside.side_files import SideFiles, clashes, side_files
from trainer.weights.beside.tokenizer import keep_tokenizer
from trainer.weights.dtypes import scales_as
from trainer.weights.hf_config import model_config_from_huggingface, other_function
from trainer.weights.hf_files import (
    CONFIG,
    HuggingFaceError,
    open_directory,
    read_json,
    stored_tensors,
)
from trainer.weights.hf_read import fill
from trainer.weights.hf_survey import SourceModel, survey_directory
from trainer.weights.hf_write import copy_of, write_directory
from trainer.weights.lora.base import identify
from trainer.weights.map import MULTIMODAL, OLD, PLAIN, SCALE_SUFFIX
from trainer.weights.scaled import check_stored_in_fp8, fill_scales
from trainer.weights.section import located
from trainer.weights.towers.map import tower_pieces
from trainer.weights.towers.names import tower_of
from trainer.weights.towers.trained import other_towers, trained_kinds, trains

INIT_FROM = "checkpoint.init_from"
CLASHES = "left out"  # in the manifest of the copy
EXPANSION = "upcycle"  # the key of the facts of an expansion in its manifest


@dataclass(frozen=True)
class Carried:
    """The contents of RUN_DIR/source."""

    path: Path
    config: dict[str, Any]
    kinds: dict[str, str]  # as `SourceModel.kinds`
    tensors: list[StoredTensor]  # of towers that are not trained
    scales: dict[str, StoredTensor]  # `Piece.name` of a text tensor in FP8 -> its scales at the start
    side_files: SideFiles
    clashes: list[str]  # files of the source that were not kept: every export has its own


@dataclass(frozen=True)
class PublishedWeights:
    """The opened directory of `checkpoint.init_from` or `rl.kl_reference`. The methods are collective."""

    source: SourceModel
    world: World

    def fill(self, model: Decoder) -> None:
        """Read this rank's part of the weights. Raises HuggingFaceError."""
        self.world.watch.at(f"start: reading {self.source.directory.path}")
        shapes = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
        fill(model, self.source, self.world.watch.tick, [*self.source.pieces, *tower_pieces(shapes)])
        fill_scales(model, self.source, self.source.pieces, self.world.watch.tick)

    def identify(self) -> dict[str, str]:
        """`identify` of the directory. Raises HuggingFaceError."""
        self.world.watch.at(f"start: recognising {self.source.directory.path}")
        found: dict[str, str] = {}
        _on_the_first(self.world, lambda: found.update(identify(self.source.directory.path)))
        return self.world.broadcast(found)

    def keep_untrained_parts(self, run_directory: Path, model: ModelConfig) -> None:
        """Copy what an export will need to the run directory. model: that is trained. Raises HuggingFaceError."""
        self.world.watch.at(f"start: copying parts of {self.source.directory.path}")
        _on_the_first(self.world, lambda: _keep(self.source, run_directory / SOURCE, self.world.watch.tick, model))


def open_published(cfg: Config, world: World, key: str = INIT_FROM) -> PublishedWeights | None:
    """Open the directory that `key` names, `checkpoint.init_from` or `rl.kl_reference`; None if it is not set.
    Collective.

    Raises ConfigError if `cfg` has another model than the directory, and HuggingFaceError if that is incomplete.
    """
    given = cfg.checkpoint.init_from if key == INIT_FROM else cfg.rl.kl_reference
    if given is None:
        return None
    path = Path(given)
    opened: list[SourceModel] = []

    def open_and_check() -> None:
        opened.append(survey_directory(open_directory(path)))
        _check(opened[0], cfg, key)

    _on_the_first(world, open_and_check, key)
    return PublishedWeights(opened[0] if opened else survey_directory(open_directory(path)), world)


def keep_corpus_tokenizer(tokenizer: TokenizerFile, run_directory: Path, world: World) -> None:
    """Copy the tokenizer of the corpora to the run directory, for its exports. Collective. Raises HuggingFaceError."""
    _on_the_first(world, lambda: keep_tokenizer(run_directory, tokenizer))


def keep_rules(
    media: Mapping[str, Mapping[str, Rule]], shares: Mapping[str, float], run_directory: Path, world: World
) -> None:
    """Write the rules of the sources' images and signals to the run directory, for its exports. Collective. Raises
    HuggingFaceError."""
    _on_the_first(world, lambda: keep_media(run_directory, media, shares))


def _on_the_first(world: World, act: Callable[[], object], key: str = INIT_FROM) -> None:
    """`act` on rank 0; raises on every rank what it raises. key: that names the directory."""
    failure: UserError | None = None
    if world.rank == 0:
        try:
            act()
        except (ConfigError, HuggingFaceError) as error:
            failure = type(error)(error.faults)  # pickled without its cause
        except OSError as error:
            where = str(error.filename or key)
            failure = HuggingFaceError(str(error), where=where, value=error.strerror, allowed="a readable directory")
    failure = world.broadcast(failure)
    if failure is not None:
        raise failure


def read_carried(run_directory: Path, model: ModelConfig) -> Carried | None:
    """The copy kept by a run of `model` that started from published weights, once every byte is verified; None where
    it is gone. Raises HuggingFaceError.
    """
    path = run_directory / SOURCE
    if not os.path.lexists(path):
        return None
    try:
        manifest = CHECKPOINT.read(path)
        fault = next(
            (found for name, facts in manifest["files"].items() if (found := CHECKPOINT.check_file(path, name, facts))),
            None,
        )
    except CorruptError as damage:
        fault = damage
    if fault is not None:
        raise HuggingFaceError(
            f"the run's copy of parts of its source is damaged: {fault}",
            where=str(fault.path),
            value=fault.value,
            allowed="the file as the run wrote it",
        )
    config = read_json(path / CONFIG)
    try:
        kept = model_config_from_huggingface(config)
    except HuggingFaceError as error:
        raise located(path, error) from error
    if differing := other_function(model, kept):
        raise HuggingFaceError(
            f"{path} is a different model: {few(differing, f'`octavo inspect {path}`')}",
            where=str(path),
            value=differing,
            allowed="the directory that the run wrote",
        )
    scales, towers = {}, []
    for name, tensor in stored_tensors(path).items():
        if name.endswith(SCALE_SUFFIX):
            prefix = next((prefix for prefix in (MULTIMODAL, OLD, PLAIN) if name.startswith(prefix)), "")
            scales[name.removeprefix(prefix).removesuffix(SCALE_SUFFIX)] = tensor
        else:
            towers.append(tensor)
    return Carried(
        path,
        config,
        manifest[SOURCE_FACT],
        towers,
        scales,
        side_files(path),
        manifest.get(CLASHES, []),
    )


def _check(source: SourceModel, cfg: Config, key: str) -> None:
    path = source.directory.path
    try:
        differing = [*other_function(cfg.model, source.model), *other_towers(cfg.model, source.directory.config)]
    except HuggingFaceError as error:
        raise located(path, error) from error
    if differing:
        remedy = "use the checkpoint's values"
        listed = few(differing, f"`octavo inspect {path}`")
        text = f"{key}={path} is a different model: {listed}; {remedy}"
        raise ConfigError(text, where=key, value=str(path), allowed=remedy)
    source.require(towers=True)
    if cfg.lora.target != "none" and cfg.lora.base == "fp8":
        check_stored_in_fp8(source)
    if key == INIT_FROM and not cfg.checkpoint.allow_identical_copies and has_identical_copies(path):
        remedy = "expand with noise or with cuts=distinct, or set checkpoint.allow_identical_copies=true"
        text = f"{INIT_FROM}={path} holds exact copies of experts, whose gradients never differ; {remedy}"
        raise ConfigError(text, where=INIT_FROM, value=str(path), allowed=remedy)


def has_identical_copies(path: Path) -> bool:
    """True if a directory's manifest says that it is an expansion with copies that training cannot distinguish.

    Raises HuggingFaceError where it is not as it was written. One without a hash of itself that speaks of no expansion
    is another program's, and says nothing.
    """
    manifest = read_json(path / MANIFEST) if (path / MANIFEST).is_file() else {}
    if CHECKPOINT.hash_key in manifest or isinstance(manifest.get(EXPANSION), dict):
        try:
            manifest = CHECKPOINT.read(path)
        except CorruptError as damage:
            raise HuggingFaceError(
                f"{damage}, so exact copies of experts cannot be ruled out; restore the manifest that `octavo "
                "upcycle` wrote, or set checkpoint.allow_identical_copies=true",
                where=str(damage.path),
                value=damage.value,
                allowed="the manifest that octavo upcycle wrote, or checkpoint.allow_identical_copies=true",
            ) from damage
    facts = manifest.get(EXPANSION)
    return isinstance(facts, dict) and facts.get("identical_copies") is True


def _scales(source: SourceModel) -> list[StoredTensor]:
    """The scales of text tensors in FP8 that an export lays out as this source does: with them, what was not trained
    has the same bytes again."""
    plain = (piece for piece in source.pieces if not piece.transposed and not piece.origin)
    found = [scales for piece in plain if (scales := source.scales(piece)) is not None]
    return [scales for scales in found if scales_as(scales) == scales.dtype]


def _keep(source: SourceModel, target: Path, tick: Callable[[], None], trained: ModelConfig | None = None) -> None:
    """trained: the model that is trained; None for the text model."""
    model = trained or source.model
    try:
        CHECKPOINT.remove_directory(target, SOURCE_FACT)  # of a start that came to no step
    except OSError as error:
        raise HuggingFaceError(
            f"{target} cannot be removed: {error.strerror or error}",
            where=str(target),
            value=error.strerror,
            allowed="a writable run directory",
        ) from error
    towers = {tensor.name: tensor for tensor in source.carried if tensor.name in source.towers}
    kept = [tensor for tensor in source.carried if not (tensor.name in towers and trains(model, tower_of(tensor.name)))]
    write_directory(
        target,
        [copy_of(tensor) for tensor in (*kept, *_scales(source))],
        source.directory.config,
        side_files(source.directory.path),
        manifest={
            "from": str(source.directory.path.absolute()),
            SOURCE_FACT: source.kinds | trained_kinds(model, towers),
            CLASHES: clashes(source.directory.path),
        },
        wrote=lambda nbytes: tick(),
    )
