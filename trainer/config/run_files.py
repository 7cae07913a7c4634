"""The files of a run directory that other commands read. No torch here."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from trainer.config import coerce
from trainer.config.errors import ConfigError
from trainer.config.model import ModelConfig
from trainer.storage.manifest import CHECKPOINT, CorruptError

CONFIG_FILE = "config.yaml"
CHECKPOINTS = "checkpoints"
REFERENCE = "reference"  # the weights that a policy is held near (rl.kl_coef)
SOURCE = "source"  # the run's copy of untrained parts of the Hugging Face directory that it started from
TOKENIZER_DIRECTORY = "tokenizer"  # the run's copy of its corpora's tokenizer
TOKENIZER_FACT = "end of document"  # in the manifest of that copy only
MEDIA_DIRECTORY = "media"  # the run's record of the rules by which its images and signals were prepared
MEDIA_FACT = "media"  # in the manifest of that record only
CONFIG_FACT = "config"  # in the manifest of a checkpoint: the configuration that it was saved under
SOURCE_FACT = "kinds"  # in the manifest of that copy only


def read_start(path: Path) -> tuple[ModelConfig, str | None]:
    """The model in a run directory's configuration, and the directory that its weights were read from (None: they were
    random). Other keys do not matter. Raises `ConfigError`."""
    file = path / CONFIG_FILE
    try:
        tree, _ = read_run(path)
    except FileNotFoundError as error:
        raise _unusable(file, f"cannot be read ({error.strerror})") from None
    section, checkpoint = tree.get("model"), tree.get("checkpoint") or {}
    if not isinstance(section, dict) or not isinstance(checkpoint, dict):
        raise _unusable(file, "cannot be read (its model or its checkpoint is not a section)")
    model, faults = coerce.from_dict(ModelConfig, section, file=str(file))
    if model is None:
        raise ConfigError(faults)
    return model, checkpoint.get("init_from")  # runs from before this key started from random weights


def read_run(path: Path) -> tuple[dict[str, Any], str | None]:
    """The configuration of a run directory as `read_tree` returns it, and None; or, where its file is missing or
    damaged, the copy in its newest checkpoint that has one, and a line about it. Raises as `read_tree` does."""
    file = path / CONFIG_FILE
    try:
        return read_tree(file), None
    except (FileNotFoundError, ConfigError) as error:
        for manifest in newest_manifests(path):
            try:
                copy = CHECKPOINT.read(manifest.parent).get(CONFIG_FACT)
            except CorruptError:
                continue
            if isinstance(copy, dict):
                why = "is missing" if isinstance(error, FileNotFoundError) else "cannot be read"
                return copy, f"{file} {why}; it is made anew from the copy in {manifest}"
        raise


def newest_manifests(path: Path) -> list[Path]:
    """The manifests of a run directory's complete checkpoints, the newest first."""
    found = {}
    for manifest in path.glob(f"{CHECKPOINTS}/step-*/manifest.json"):
        if match := re.fullmatch(r"step-(\d+)", manifest.parent.name):
            found[int(match[1])] = manifest
    return [found[step] for step in sorted(found, reverse=True)]


def read_tree(file: Path) -> dict[str, Any]:
    """Section -> key -> value of a run's configuration, none of them checked.

    Raises `FileNotFoundError`, and `ConfigError` for a file that is empty or damaged.
    """
    try:
        tree: Any = OmegaConf.to_container(OmegaConf.load(file))
    except FileNotFoundError:
        raise
    except Exception as error:  # whatever the reader makes of a damaged file
        raise _unusable(file, f"cannot be read ({' '.join(str(error).split())})") from None
    if not tree:
        raise _unusable(file, "is empty")
    if not isinstance(tree, dict):
        raise _unusable(file, "cannot be read (no keys at the top)")
    return tree


def _unusable(file: Path, why: str) -> ConfigError:
    remedy = "restore it, or use another run.dir"
    return ConfigError(f"{file} {why}; {remedy}", where=str(file), allowed=remedy)
