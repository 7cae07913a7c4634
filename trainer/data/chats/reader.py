"""Windows of chats: packs of whole examples, each epoch in an order of its own.

Sample n is pack n mod P of epoch n div P, so the state of a run is one integer. An example is in one pack; attention
and positions end with it, and the place behind the last one is padding that nothing is trained on.

Shape legend: B windows · L = S + 1 tokens read for a window of S positions · P packs
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from trainer.data.chats.prepare import Ints, Prepared
from trainer.data.errors import DataError
from trainer.data.hashing import bytes_key, mix64
from trainer.data.media.packing import Plan, plan_packs
from trainer.data.mixture.permutation import permute
from trainer.data.windows import Windows

if TYPE_CHECKING:
    from trainer.config.keys import DataConfig

ORDER = 3  # the purpose of a hash: the order of an epoch
SHOWN = 3  # chats that an error names


class ChatReader:
    """The packs of the training examples, and those of each source's held-out ones.

    padding: the id behind the last example of a window.
    """

    def __init__(
        self,
        data: DataConfig,
        prepared: Prepared,
        *,
        seed: int,
        padding: int,
        warn: Callable[[str], None] | None = None,
    ) -> None:
        """Raises DataError for chats that are too long under `data.long_chats=refuse`."""
        self._prepared, self._seq_len, self._seed, self._padding = prepared, data.seq_len, seed, padding
        starts, lengths, record, trained = prepared.examples.T
        self.lengths = np.minimum(lengths, data.seq_len)
        usable = self._usable(data, starts, lengths, trained, warn)
        source, heldout = prepared.records[record, 0], prepared.records[record, 1] == 1
        repeats = np.array([one.repeat for one in data.chats.values()], np.int64)
        chosen = np.flatnonzero(usable & ~heldout)
        self.train = _Packs(np.repeat(chosen, repeats[source[chosen]]), self.lengths, data)
        if not self.train.count:
            allowed = "chats that fit into data.seq_len tokens"
            text = f"no chat is left to train on with data.seq_len={data.seq_len}; use {allowed}"
            raise DataError(text, where="data.seq_len", value=data.seq_len, allowed=allowed)
        self.heldout = {
            name: _Packs(np.flatnonzero(usable & heldout & (source == number)), self.lengths, data)
            for number, name in enumerate(prepared.sources)
        }
        counts = np.bincount(source[self.train.examples], self.lengths[self.train.examples], len(prepared.sources))
        self.shares: Mapping[str, float] = {
            name: float(count) for name, count in zip(prepared.sources, counts, strict=True)
        }
        made_from = f"{prepared.key} {data.seq_len} {data.long_chats} {data.pack_chats} {repeats.tolist()} {seed}"
        self.fingerprint = f"{bytes_key(made_from.encode()):016x}"

    def read(self, first_sample: int, count: int) -> Windows:
        """The windows of training samples first_sample .. first_sample + count - 1."""
        return self._windows(self.train, self.positions(np.arange(first_sample, first_sample + count)))

    def positions(self, samples: Ints) -> Ints:
        """The pack of each sample [N]."""
        size = self.train.count
        epochs = samples // size
        keys = np.concatenate([mix64(self._seed, ORDER, int(epoch)) for epoch in epochs])
        return permute(samples % size, np.full(len(samples), size), keys)

    def read_heldout(self, source: str, positions: Ints) -> Windows:
        return self._windows(self.heldout[source], positions)

    def members(self, pack: int) -> list[int]:
        """The examples of a training pack, in their order."""
        return self.train.members(pack)[0].tolist()

    def _windows(self, packs: _Packs, positions: Ints) -> Windows:
        shape = len(positions), self._seq_len + 1
        tokens_BL = np.full(shape, self._padding, np.int64)
        starts_BL, context_BL = np.zeros(shape, np.bool_), np.ones(shape, np.bool_)
        for row, pack in enumerate(positions.tolist()):
            end = 0
            for example, place in zip(*packs.members(pack), strict=True):
                first, length = int(self._prepared.examples[example, 0]), int(self.lengths[example])
                here, there = slice(place, place + length), slice(first, first + length)
                tokens_BL[row, here] = self._prepared.tokens[there]
                context_BL[row, here] = self._prepared.trained[there] == 0
                starts_BL[row, place] = True
                end = place + length
            starts_BL[row, end] = True  # the padding, or what follows the window
        return Windows(tokens_BL, starts_BL, context_BL)

    def _usable(
        self, data: DataConfig, starts: Ints, lengths: Ints, trained: Ints, warn: Callable[[str], None] | None
    ) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        """[N] True for examples with something to train on once long ones are dealt with."""
        long = np.flatnonzero(lengths > data.seq_len)
        usable = trained > 0
        if not long.size:
            return usable
        named = ", ".join(f"{self._prepared.where(one)} ({lengths[one]:,})" for one in long[:SHOWN].tolist())
        named += ", ..." if len(long) > SHOWN else ""
        what = f"{len(long):,} of {len(lengths):,} examples have over data.seq_len={data.seq_len} tokens"
        if data.long_chats == "refuse":
            allowed = f"data.seq_len={int(lengths.max())}, or data.long_chats=cut or skip"
            text = f"{what}: {named}; use {allowed}"
            raise DataError(text, where="data.long_chats", value=len(long), allowed=allowed)
        if data.long_chats == "skip":
            usable[long] = False
        else:
            for one in long.tolist():
                kept = self._prepared.trained[starts[one] + 1 : starts[one] + data.seq_len]
                usable[one] = kept.any()
        if warn is not None:
            done = "left out" if data.long_chats == "skip" else "cut behind that, or left out with nothing to train on"
            warn(f"data.chats: {what} and are {done}: {named}")
        return usable


class _Packs:
    """Examples [M] in packs."""

    def __init__(self, examples: Ints, lengths: Ints, data: DataConfig) -> None:
        self.examples = examples
        self._plan: Plan | None = plan_packs(lengths[examples], data.seq_len) if data.pack_chats == "best_fit" else None
        self.count = self._plan.num_packs if self._plan is not None else len(examples)

    def members(self, pack: int) -> tuple[Ints, list[int]]:
        """Examples of a pack, and the first token of each."""
        if self._plan is None:
            return self.examples[pack : pack + 1], [0]
        numbers, places = self._plan.pack(pack)
        return self.examples[numbers], places.tolist()
