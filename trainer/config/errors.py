"""Errors of configurations and command lines, and the one shape in which every command prints errors and warnings."""

from __future__ import annotations

import sys

from parallel.errors import UserError


class ConfigError(UserError):
    """A configuration, or a run directory that it names, that cannot be used."""


class CommandError(UserError):
    """A command line that cannot be carried out: an option, an argument or a file that it names."""


def print_warning(text: str) -> None:
    """Print the line `warning: text` to stderr."""
    print(f"warning: {text}", file=sys.stderr, flush=True)


def report(error: UserError | OSError, *, started: bool = True) -> int:
    """Print one line `error: ...` per fault to stderr.

    started: work had started. Returns the exit code: 2 where the user can correct the command or the configuration
    before anything starts, 1 for everything that failed later.
    """
    if isinstance(error, UserError):
        lines = error.lines
    else:
        lines = [f"error: {error.filename}: {error.strerror}" if error.filename is not None else f"error: {error}"]
    print(*lines, sep="\n", file=sys.stderr, flush=True)
    return 1 if started and not isinstance(error, ConfigError | CommandError) else 2
