"""The parts of a step, by which operators are recorded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from parallel.torch_private import TorchDispatchMode, in_backward


class Sections(TorchDispatchMode):
    """A mode that sees operators, and knows in which part of a step they run."""

    def __init__(self) -> None:
        super().__init__()
        self.where = "forward"

    @contextmanager
    def section(self, where: str) -> Iterator[None]:
        """Record operators inside, other than those of autograd, as `where`."""
        before, self.where = self.where, where
        try:
            yield
        finally:
            self.where = before

    def current(self) -> str:
        """The section, or "backward" if autograd is running (recomputed forward passes included)."""
        return "backward" if in_backward() else self.where
