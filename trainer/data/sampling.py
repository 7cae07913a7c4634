"""Which window a sample number stands for: a pure function, so the state of the data is one integer."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from trainer.data.errors import DataError
from trainer.data.hashing import mix64
from trainer.mixture import BLOCK, quotas

Ints = npt.NDArray[np.int64]


class Sampler:
    """Maps sample numbers to (source, window).

    Inside a block of BLOCK samples the sources take turns, each spread evenly, so that small batches are mixed too.
    The k-th sample of a source is window k of an endless sequence that goes through a new seeded permutation of its
    windows in every epoch. Neither the world size nor the batch size enters.
    """

    def __init__(self, weights: Mapping[str, float], num_windows: Mapping[str, int], seed: int) -> None:
        self._windows = [num_windows[name] for name in weights]
        self._seed = seed
        self._quota_per_source = np.array(quotas(list(weights.values())), np.int64)
        for name, quota in zip(weights, self._quota_per_source, strict=True):
            if quota == 0:
                raise DataError(
                    f"data.weights.{name}={weights[name]} is under 1/{BLOCK} of the total: use 0 to leave it out"
                )
        source = np.repeat(np.arange(len(self._windows)), self._quota_per_source)
        rank = np.concatenate([np.arange(quota) for quota in self._quota_per_source])
        due = (2 * rank + 1) / self._quota_per_source[source]
        order = np.argsort(due, kind="stable")
        self._source_in_block, self._rank_in_block = source[order], rank[order]
        self._permutations: dict[tuple[int, int], Ints] = {}

    def lookup(self, samples: Ints) -> tuple[Ints, Ints]:
        """Source index and window index of each sample number, both of the shape of `samples`."""
        block, place = np.divmod(samples, BLOCK)
        source = self._source_in_block[place]
        turn = block * self._quota_per_source[source] + self._rank_in_block[place]
        pairs = zip(source.tolist(), turn.tolist(), strict=True)
        return source, np.array([self._permuted(s, *divmod(k, self._windows[s])) for s, k in pairs], np.int64)

    def _permuted(self, source: int, epoch: int, place: int) -> int:
        key = (source, epoch)
        if key not in self._permutations:
            if len(self._permutations) > 2 * len(self._windows):  # the current epochs and the next at most
                self._permutations.clear()
            hashes = mix64(self._seed, source, epoch, np.arange(self._windows[source]))
            self._permutations[key] = np.argsort(hashes, kind="stable")
        return int(self._permutations[key][place])
