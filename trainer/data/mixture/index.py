"""The map from sample numbers to windows of sources: a pure function of the configuration, the seed and the number,
so that the state of the data is one integer, however large the corpus.

A phase is cut into blocks of QUOTA_BLOCK samples, and each source gets its quota of a block (`quotas`). It is dealt to
stretches of STRETCH samples, so that short stretches are mixed too, and the order in a stretch is a permutation. The
draws of a source are numbered in the order in which they come, through stretches, blocks and phases: draw t is window
t mod n of epoch t div n, in an order of the epoch's own. A seek costs what a sample costs; nothing depends on the world
size, the batch or what was asked before.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from trainer.config.mixture import integer_weights
from trainer.data.errors import DataError
from trainer.data.hashing import U64, mix64, text_key
from trainer.data.mixture.permutation import permute
from trainer.data.mixture.quotas import Quotas, deal

if TYPE_CHECKING:
    from trainer.config.keys import DataConfig

Ints = npt.NDArray[np.int64]

QUOTA_BLOCK = 65_536  # samples in which each source has its quota, to within one sample
MAX_BLOCKS = 2**63 // QUOTA_BLOCK  # of a phase: sample numbers are int64
STRETCH = 256  # samples at most whose places are worked out together, as a source's draws are numbered in their order
# The purpose of a hash is one of the numbers it is made of.
ORDER_OF_STRETCH, ORDER_OF_EPOCH = 1, 2


@dataclass(frozen=True)
class _QuotaBlock:
    """Shape legend: R stretches · S sources."""

    starts: Ints  # [R + 1] first place of each stretch, and the block's length
    counts_RS: Ints  # samples of each source in a stretch
    draws_RS: Ints  # draws of each source before a stretch


class MixtureIndex:
    """Sample number -> (source, epoch, position).

    phases: phase -> tokens, in order; the last phase continues after its tokens for as long as samples are read, so
    that a longer run starts with the samples of a shorter one.
    weights: phase -> source -> weight; sources without one are left out or 0.
    num_windows: source -> windows of seq_len tokens that there are of it; its place here is the source's number.
    Raises DataError where a phase has no source, and where a source that is drawn has no window.
    """

    def __init__(
        self,
        phases: Mapping[str, int],
        weights: Mapping[str, Mapping[str, float]],
        num_windows: Mapping[str, int],
        *,
        seq_len: int,
        seed: int,
    ) -> None:
        self.sources, self.phases = list(num_windows), list(phases)
        self._seed = seed
        self._windows = np.array(list(num_windows.values()), np.int64)
        self._source_keys: U64 = np.concatenate([mix64(seed, ORDER_OF_EPOCH, text_key(name)) for name in self.sources])
        tokens, self._starts, self._quotas, self._draws = 0, [0], [], [[0] * len(self.sources)]
        for phase, phase_tokens in phases.items():
            self._quotas.append(Quotas(self._weights_in(phase, weights, num_windows), QUOTA_BLOCK))
            tokens += phase_tokens
            self._starts.append(tokens // seq_len)
            if self._starts[-1] == self._starts[-2]:
                key = f"data.phases.{phase}.tokens"
                text = f"{key}={phase_tokens} is less than one sample of data.seq_len={seq_len}; use {seq_len} or more"
                raise DataError(text, where=key, value=phase_tokens, allowed=f"{seq_len} or more")
            self._draws.append(self._after_phase(len(self._quotas) - 1))
        self._first_samples = np.array(self._starts[:-1], np.int64)
        # A batch is in one block or two; a lookup of samples from many blocks needs each block once.
        self._block = functools.lru_cache(maxsize=64)(self._make_block)

    @classmethod
    def of(cls, data: DataConfig, num_windows: Mapping[str, int], seed: int) -> MixtureIndex:
        """The index of a configuration's phases and weights."""
        weights = {
            phase: {name: source.phases.get(phase, 0.0) for name, source in data.sources.items()}
            for phase in data.phases
        }
        tokens = {name: phase.tokens for name, phase in data.phases.items()}
        return cls(tokens, weights, num_windows, seq_len=data.seq_len, seed=seed)

    def lookup(self, samples: Ints) -> tuple[Ints, Ints, Ints]:
        """samples [N] -> source [N] (its number), epoch [N] from 0, position [N] (0 .. num_windows - 1).

        Raises ValueError for numbers below 0.
        """
        samples = np.asarray(samples, np.int64)
        if samples.size == 0:
            return samples, samples, samples
        if samples.min() < 0:
            raise ValueError(f"sample {samples.min()}: numbers start at 0")
        phase = np.searchsorted(self._first_samples, samples, side="right") - 1
        block, place = np.divmod(samples - self._first_samples[phase], QUOTA_BLOCK)
        source, draw = np.empty_like(samples), np.empty_like(samples)
        number = phase * MAX_BLOCKS + block
        if (number == number[0]).all():
            source, draw = self._in_block(int(phase[0]), int(block[0]), place)
        else:
            for one in np.unique(number).tolist():
                rows = np.flatnonzero(number == one)
                source[rows], draw[rows] = self._in_block(one // MAX_BLOCKS, one % MAX_BLOCKS, place[rows])
        windows = self._windows[source]
        epoch, turn = np.divmod(draw, windows)
        position = permute(turn, windows, mix64(self._source_keys[source], epoch))
        return source, epoch, position

    @property
    def samples(self) -> int:
        """Samples of all phases; the last one continues beyond them."""
        return self._starts[-1]

    def phase_at(self, sample: int) -> str:
        """The phase that a sample belongs to."""
        return self.phases[int(np.searchsorted(self._first_samples, sample, side="right")) - 1]

    def counts_before(self, sample: int) -> dict[str, int]:
        """Draws of each source among the samples 0 .. sample - 1; costs at most one block, wherever that is."""
        phase = self.phases.index(self.phase_at(sample))
        number, place = divmod(sample - self._starts[phase], QUOTA_BLOCK)
        block = self._block(phase, number)
        stretch = int(np.searchsorted(block.starts, place, side="right")) - 1
        inside, _ = self._in_block(phase, number, np.arange(block.starts[stretch], place))
        before = block.draws_RS[stretch] + np.bincount(inside, minlength=len(self.sources))
        return dict(zip(self.sources, before.tolist(), strict=True))

    def _weights_in(
        self, phase: str, weights: Mapping[str, Mapping[str, float]], num_windows: Mapping[str, int]
    ) -> list[int]:
        given = weights[phase]
        unknown = [name for name in given if name not in num_windows]
        found = integer_weights(given.get(name, 0.0) for name in num_windows)
        if unknown or not any(found):
            sources = ", ".join(num_windows)
            text = f"data.phases.{phase} has no source with a weight; give a weight in it to one or more of {sources}"
            raise DataError(text, where=f"data.phases.{phase}", value=tuple(unknown), allowed=tuple(num_windows))
        for name, weight in zip(num_windows, found, strict=True):
            if weight and num_windows[name] < 1:
                key, remedy = f"data.sources.{name}", "leave it out, or lower data.seq_len"
                text = f"{key} has no window of data.seq_len tokens; {remedy}"
                raise DataError(text, where=key, value=num_windows[name], allowed=remedy)
        return found

    def _after_phase(self, phase: int) -> list[int]:
        """Draws of each source up to the end of a phase, whose last block may be a short one."""
        full, rest = divmod(self._starts[phase + 1] - self._starts[phase], QUOTA_BLOCK)
        quotas = self._quotas[phase]
        return [
            sum(parts) for parts in zip(self._draws[phase], quotas.before(full), quotas.counts(full, rest), strict=True)
        ]

    def _in_block(self, phase: int, number: int, places: Ints) -> tuple[Ints, Ints]:
        """Source and draw [N] of places [N] in a block. All places of their stretches are worked out."""
        block = self._block(phase, number)
        stretches, which = np.unique(np.searchsorted(block.starts, places, side="right") - 1, return_inverse=True)
        counts_RS, first = block.counts_RS[stretches], block.starts[stretches]
        lengths = block.starts[stretches + 1] - first
        starts = np.cumsum(lengths) - lengths  # of each stretch among all places that are worked out
        row = np.repeat(np.arange(len(stretches)), lengths)
        keys = mix64(self._seed, ORDER_OF_STRETCH, phase, number, stretches)
        shuffled = permute(np.arange(len(row)) - starts[row], lengths[row], keys[row])
        source = (np.cumsum(counts_RS, axis=1)[row] <= shuffled[:, None]).sum(axis=1)
        # The k-th place of a source in its stretch has its k-th draw.
        group = row * len(self.sources) + source
        in_order = np.argsort(group, kind="stable")
        group_begins = np.cumsum(counts_RS) - counts_RS.ravel()
        draw = np.empty_like(group)
        draw[in_order] = np.arange(len(group)) - group_begins[group[in_order]]
        draw += block.draws_RS[stretches][row, source]
        asked = starts[which] + places - first[which]
        return source[asked], draw[asked]

    def _make_block(self, phase: int, number: int) -> _QuotaBlock:
        quotas, length = self._quotas[phase], QUOTA_BLOCK
        if phase + 1 < len(self.phases):
            length = min(QUOTA_BLOCK, self._starts[phase + 1] - self._starts[phase] - number * QUOTA_BLOCK)
        counts_RS = deal(quotas.counts(number, length), -(-length // STRETCH))
        starts = np.concatenate([[0], np.cumsum(counts_RS.sum(axis=1))])
        before = [a + b for a, b in zip(self._draws[phase], quotas.before(number), strict=True)]
        return _QuotaBlock(starts, counts_RS, np.array(before, np.int64) + np.cumsum(counts_RS, axis=0) - counts_RS)
