"""Position tables that are computed again for each backward pass, in place of those of every micro-batch in flight.

At 8,192 tokens the FoPE tables of one micro-batch are 16.8 MB, and the first of 32 stages has 32 in flight.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from trainer.model.rotary import Rotary


class _Tables:
    """The result of one call of `rotary`, and its arguments."""

    def __init__(self, rotary: Rotary, given: tuple[Any, ...], found: tuple[Tensor, Tensor]) -> None:
        self.rotary, self.given = rotary, given
        self.found: tuple[Tensor, ...] = found
        self._computed: dict[int, Tensor] = {}

    def number(self, tensor: Tensor) -> int | None:
        return next((number for number, table in enumerate(self.found) if table is tensor), None)

    def compute(self, number: int) -> Tensor:
        """One of the tables. The other is kept until it is asked for."""
        if number not in self._computed:
            with torch.no_grad():
                self._computed = dict(enumerate(self.rotary.forward(*self.given)))
        return self._computed.pop(number)

    def forget(self) -> None:
        self.found = ()


@contextmanager
def tables_computed_again(rotary: Rotary) -> Iterator[None]:
    """Within it autograd saves no table that `rotary` returns: each is computed again when it is needed."""
    made: list[_Tables] = []

    def note(_: Any, given: tuple[Any, ...], found: tuple[Tensor, Tensor]) -> None:
        made.append(_Tables(rotary, given, found))

    def pack(tensor: Tensor) -> Tensor | tuple[_Tables, int]:
        for tables in made:
            if (number := tables.number(tensor)) is not None:
                return tables, number
        return tensor

    def unpack(saved: Tensor | tuple[_Tables, int]) -> Tensor:
        return saved if isinstance(saved, Tensor) else saved[0].compute(saved[1])

    handle = rotary.register_forward_hook(note)
    try:
        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            yield
    finally:
        handle.remove()
        for tables in made:
            tables.forget()
