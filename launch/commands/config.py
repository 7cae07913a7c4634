"""`octavo config`: what a command line resolves to, and how two configurations differ."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainer.config import coerce
from trainer.config.compose import compose, load, to_yaml
from trainer.config.keys import Config
from trainer.config.run_files import CONFIG_FILE
from trainer.run import directory as rundir


def print_config(overrides: Sequence[str], config_dirs: Sequence[str]) -> int:
    print(to_yaml(compose(overrides, config_dirs=config_dirs)), end="")
    return 0


def print_differences(first: str, second: str, config_dirs: Sequence[str]) -> int:
    """One line `key: A -> B` for each key that differs. Exit code 0 in either case."""
    old, new = (_flat(read(text, config_dirs)) for text in (first, second))
    print("\n".join(rundir.differences(old, new) or ["no differences"]))
    return 0


def read(text: str, config_dirs: Sequence[str]) -> Config:
    """A configuration named by a recipe (`toy`), overrides (`recipe=toy optim.lr=1e-3`), a run directory or a file.

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


def _flat(cfg: Config) -> dict[str, Any]:
    return coerce.flatten(coerce.to_dict(cfg), coerce.keys(Config))
