"""Errors that the user of a command can fix: a sentence for the screen, and its fields for programs and tests."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Fault:
    """One mistake in a configuration, a command line, a file or a launch.

    text: one sentence that names the place and what would work. where: the key (`parallel.ep`), the option (`--dtype`)
    or the file. value: what was found there, None if nothing. allowed: what would work there, as a tuple of values or
    as the words that name the remedy; None where nothing can be suggested.
    """

    text: str
    where: str
    value: Any = None
    allowed: Any = None

    def __str__(self) -> str:
        return self.text


def one_of(values: Iterable[Any]) -> str:
    """`a, b or c`; an empty text for no values."""
    words = [str(value) for value in values]
    return " or ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


class UserError(Exception):
    """One or several faults, found together. Its text is theirs, one line each.

    `UserError("parallel.ep=6 ...", where="parallel.ep", value=6, allowed=(1, 2, 4, 8))` for one, or
    `UserError([fault, ...])`. `where`, `value` and `allowed` are those of the first fault.
    """

    def __init__(
        self, faults: str | Iterable[Fault], *, where: str = "", value: Any = None, allowed: Any = None
    ) -> None:
        self.faults = (Fault(faults, where, value, allowed),) if isinstance(faults, str) else tuple(faults)
        if not self.faults:
            raise ValueError("a UserError needs at least one fault")
        super().__init__(self.faults)  # so that it can be pickled between processes

    def __str__(self) -> str:
        return "\n".join(fault.text for fault in self.faults)

    @property
    def where(self) -> str:
        return self.faults[0].where

    @property
    def value(self) -> Any:
        return self.faults[0].value

    @property
    def allowed(self) -> Any:
        return self.faults[0].allowed

    @property
    def lines(self) -> list[str]:
        """The lines that a command prints for it on stderr."""
        return [f"error: {line}" for fault in self.faults for line in fault.text.splitlines()]
