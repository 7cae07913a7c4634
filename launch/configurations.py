"""Configurations that a command line names, composed for the number of ranks that it gives."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from parallel.layout import OTHER_RANKS
from trainer.config.compose import compose, load
from trainer.config.errors import ConfigError
from trainer.config.keys import Config
from trainer.config.run_files import CONFIG_FILE


def read_configuration(text: str, config_dirs: Sequence[str]) -> Config:
    """The configuration of a recipe (`toy`), overrides (`recipe=toy optim.lr=1e-3`), a run directory or a file, for any
    number of ranks.

    Raises `ConfigError`.
    """
    path = Path(text)
    if (path / CONFIG_FILE).is_file():
        return load(path / CONFIG_FILE, world_size=None)
    if path.is_file() or path.suffix in (".yaml", ".yml"):
        return load(path, world_size=None)
    words = shlex.split(text)
    if words and "=" not in words[0]:
        words[0] = f"recipe={words[0]}"
    return compose(words, config_dirs=config_dirs, world_size=None)


def compose_on(world: int, option: str, overrides: Sequence[str], config_dirs: Sequence[str]) -> Config:
    """Compose for `world` ranks. option: the option that gives this number; remedies that need another number name it.

    Raises `ConfigError`.
    """
    try:
        return compose(overrides, config_dirs=config_dirs, world_size=world)
    except ConfigError as error:
        other = re.compile(rf"{OTHER_RANKS} (?:that is a multiple of|equal to) (\d+(?: or \d+)?)")
        raise ConfigError(
            replace(fault, text=other.sub(rf"{option}=\1", fault.text)) for fault in error.faults
        ) from None
