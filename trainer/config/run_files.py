"""The files of a run directory that other commands read. No torch here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from trainer.config import coerce
from trainer.config.errors import ConfigError
from trainer.config.model import ModelConfig

CONFIG_FILE = "config.yaml"
CHECKPOINTS = "checkpoints"
SOURCE = "source"  # the run's copy of untrained parts of the Hugging Face directory that it started from
SOURCE_FACT = "kinds"  # in the manifest of that copy only


def read_start(path: Path) -> tuple[ModelConfig, str | None]:
    """The model in a run directory's configuration, and the directory that its weights were read from (None: they were
    random). Other keys do not matter. Raises `ConfigError`."""
    file = path / CONFIG_FILE
    try:
        tree: Any = OmegaConf.to_container(OmegaConf.load(file))
        section, checkpoint = tree["model"], tree.get("checkpoint") or {}
        init_from = checkpoint.get("init_from")  # runs from before this key started from random weights
    except Exception as error:  # whatever the reader makes of a damaged file
        raise unreadable(file, error) from None
    model, faults = coerce.from_dict(ModelConfig, section, file=str(file))
    if model is None:
        raise ConfigError(faults)
    return model, init_from


def unreadable(file: Path, error: Exception) -> ConfigError:
    """The error for a run's configuration that no reader understands."""
    text = f"{file} cannot be read ({' '.join(str(error).split())}); use another run.dir"
    return ConfigError(text, where=str(file), allowed="another run.dir")
