"""Checks of the paths and options that a command is given, before any work."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from parallel.errors import Fault, UserError
from trainer.config.errors import CommandError


def must_not_exist(path: str) -> None:
    """Raises `CommandError` if `path` exists: no command overwrites anything."""
    if Path(path).exists():
        remedy = "give another path, or remove it"
        raise CommandError(f"{path} already exists and will not be overwritten; {remedy}", where=path, allowed=remedy)


def must_exist(path: str, remedy: str) -> None:
    """Raises `CommandError` if `path` does not exist. remedy: what to give instead, as in "give a .csv file"."""
    if not Path(path).exists():
        raise CommandError(f"{path}: no such file or directory; {remedy}", where=path, allowed=remedy)


def check_all(*checks: Callable[[], object]) -> None:
    """Make every check. Raises `CommandError` with the faults of all of them, in their order."""
    faults: list[Fault] = []
    for check in checks:
        try:
            check()
        except UserError as error:
            faults += error.faults
    if faults:
        raise CommandError(faults)


def only_with(option: str, value: object, other: str) -> Fault:
    """The fault of an option that means something only beside another."""
    return Fault(f"{option} is used only with {other}; add {other}, or drop {option}", option, value, other)
