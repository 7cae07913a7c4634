"""Configurations as commands name them."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from trainer.config.compose import compose, load
from trainer.config.keys import Config
from trainer.config.run_files import CONFIG_FILE


def read_configuration(text: str, config_dirs: Sequence[str]) -> Config:
    """The configuration of a recipe (`toy`), overrides (`recipe=toy optim.lr=1e-3`), a run directory or a file.

    Raises `ConfigError`.
    """
    path = Path(text)
    if (path / CONFIG_FILE).is_file():
        return load(path / CONFIG_FILE)
    if path.is_file() or path.suffix in (".yaml", ".yml"):
        return load(path)
    words = shlex.split(text)
    if words and "=" not in words[0]:
        words[0] = f"recipe={words[0]}"
    return compose(words, config_dirs=config_dirs)
