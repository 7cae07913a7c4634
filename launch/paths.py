"""Checks of the paths that a command is given, before any work."""

from __future__ import annotations

from pathlib import Path

from trainer.config.errors import CommandError


def must_not_exist(path: str) -> None:
    """Raises `CommandError` if `path` exists: no command overwrites anything."""
    if Path(path).exists():
        remedy = "give another path, or remove it"
        raise CommandError(f"{path} exists and is not overwritten; {remedy}", where=path, allowed=remedy)
