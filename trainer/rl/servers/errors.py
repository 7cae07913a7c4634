"""Errors of rollout servers: one line that names the engine and the request."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trainer.rl.rollout.protocol import Rollout, RolloutError


class IncompleteError(RolloutError):
    """Some requests of a `generate` have no answer. finished: the answers of the others, by their places."""

    def __init__(
        self, text: str, *, where: str, value: Any, allowed: Any = None, finished: Mapping[int, Rollout] | None = None
    ) -> None:
        super().__init__(text, where=where, value=value, allowed=allowed)
        self.finished = dict(finished or {})

    def __reduce__(self) -> tuple[Any, ...]:
        fault = self.faults[0]
        return _incomplete, (fault.text, fault.where, fault.value, fault.allowed, self.finished)


class RestartedError(RolloutError):
    """The engine's process is another one than the weights were sent to: it has other weights, and answers since may be
    of these. It answers with the right ones after another `load`."""


def _incomplete(text: str, where: str, value: Any, allowed: Any, finished: Mapping[int, Rollout]) -> IncompleteError:
    return IncompleteError(text, where=where, value=value, allowed=allowed, finished=finished)


def fault(engine: str, text: str, value: Any = None, allowed: Any = None) -> RolloutError:
    """`engine: text; allowed`, on one line."""
    remedy = f"; {allowed}" if allowed is not None else ""
    return RolloutError(f"{engine}: {text}{remedy}", where=engine, value=value, allowed=allowed)
