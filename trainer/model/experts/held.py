"""Quantised experts whose weights do not change for a while."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from trainer.model.experts.base import QuantizedBackend
from trainer.model.experts.module import Experts


@contextmanager
def held_weights(experts: Iterable[Experts]) -> Iterator[None]:
    """Weights do not change inside, so quantised experts quantise theirs once."""
    quantized = [layer.backend for layer in experts if isinstance(layer.backend, QuantizedBackend)]
    for backend in quantized:
        backend.hold_weights(True)
    try:
        yield
    finally:
        for backend in quantized:
            backend.hold_weights(False)
