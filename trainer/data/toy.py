"""The toy data as a run sees it: three sources, drawn in proportion to their weights."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from trainer.data.batch import Batch, make_batch
from trainer.data.corpus import HELDOUT, TOKENIZER, TRAIN, Progress, open_corpus, print_progress
from trainer.data.errors import DataError
from trainer.data.sampling import Sampler
from trainer.data.sources import SOURCES
from trainer.data.store import MappedTokens, TokenStore
from trainer.data.tokenizer import Tokenizer


class ToyData:
    """Windows of `seq_len` tokens over the toy corpus; see `trainer.data.Data` for what each method promises."""

    def __init__(
        self,
        cache_dir: Path,
        weights: Mapping[str, float],
        *,
        seq_len: int,
        seed: int,
        tokens_per_source: int,
        holdout_fraction: float,
        progress: Progress = print_progress,
    ) -> None:
        known = [source.name for source in SOURCES]
        unknown = [name for name in weights if name not in known]
        if unknown or not any(weights.values()) or min(weights.values()) < 0:
            raise DataError(
                f"data.weights={dict(weights)}: give {', '.join(known)} a weight of 0 or more each, not all 0"
            )
        corpus = open_corpus(
            cache_dir, tokens_per_source=tokens_per_source, holdout_fraction=holdout_fraction, progress=progress
        )
        self.tokenizer = Tokenizer.load(corpus.directory / TOKENIZER)
        self.vocab_size = self.tokenizer.vocab_size
        self.fingerprint = corpus.fingerprint
        self.sources = [name for name in known if weights.get(name, 0) > 0]
        self._weights = {name: weights[name] for name in self.sources}
        self._seq_len = seq_len
        self._train: dict[str, TokenStore] = {s: MappedTokens(corpus.stem(s, TRAIN)) for s in self.sources}
        self._heldout: dict[str, TokenStore] = {s: MappedTokens(corpus.stem(s, HELDOUT)) for s in self.sources}
        self._sampler = Sampler(self._weights, {s: self._num_windows(s, TRAIN) for s in self.sources}, seed)
        for source in self.sources:
            self._num_windows(source, HELDOUT)

    def _num_windows(self, source: str, split: str) -> int:
        """Windows start S tokens apart and read S + 1, so only the stream's very last tokens are left out."""
        store = (self._train if split == TRAIN else self._heldout)[source]
        count = (store.num_tokens - 1) // self._seq_len
        if count == 0:
            raise DataError(
                f"data.seq_len={self._seq_len} is longer than the {split} split of source '{source}' "
                f"({store.num_tokens} tokens): use {store.num_tokens - 1} or less, or raise data.tokens_per_source"
            )
        return count

    def _batch(self, reads: list[tuple[TokenStore, int]], samples: list[int]) -> Batch:
        S = self._seq_len
        tokens_BL = np.empty((len(reads), S + 1), np.int64)
        starts_BL = np.zeros((len(reads), S + 1), np.bool_)
        for row, (store, window) in enumerate(reads):
            tokens_BL[row], starts = store.window(window * S, S + 1)
            starts_BL[row, starts] = True
        return make_batch(tokens_BL, starts_BL, samples)

    def train_batch(self, first_sample: int, count: int) -> Batch:
        if first_sample < 0 or count < 1:
            raise ValueError(f"samples {first_sample} .. {first_sample + count - 1}: numbers start at 0")
        samples = np.arange(first_sample, first_sample + count)
        sources, windows = self._sampler.lookup(samples)
        stores = [self._train[self.sources[source]] for source in sources.tolist()]
        return self._batch(list(zip(stores, windows.tolist(), strict=True)), samples.tolist())

    def eval_batches(self, source: str, batches: int, micro_batch: int) -> Iterator[Batch]:
        store, available = self._heldout[source], self._num_windows(source, HELDOUT)
        wanted = min(available, batches * micro_batch)
        # Spread over the split, so that a few batches see many documents.
        windows = [place * available // wanted for place in range(wanted)]
        for first in range(0, wanted, micro_batch):
            some = windows[first : first + micro_batch]
            yield self._batch([(store, window) for window in some], some)

    def prompts(self) -> dict[str, str]:
        return {source.name: source.prompt for source in SOURCES if source.name in self.sources}

    def unigram_nats(self, source: str | None = None) -> float:
        total = sum(self._weights.values())
        mixture_V = sum(
            weight / total * _unigram(self._train[name], self.vocab_size) for name, weight in self._weights.items()
        )
        nats_V = -np.log(mixture_V)
        if source is None:
            return sum(w / total * _mean_cost(self._heldout[s], nats_V) for s, w in self._weights.items())
        return _mean_cost(self._heldout[source], nats_V)


def _all_tokens(store: TokenStore) -> tuple[np.ndarray, np.ndarray]:
    return store.window(0, store.num_tokens)


def _unigram(store: TokenStore, vocab_size: int) -> np.ndarray:
    """Add-one smoothed token frequencies."""
    counts_V = np.bincount(_all_tokens(store)[0], minlength=vocab_size) + 1
    return counts_V / counts_V.sum()


def _mean_cost(store: TokenStore, nats_V: np.ndarray) -> float:
    """Mean over the tokens that are labels: all but the first of each document."""
    tokens, starts = _all_tokens(store)
    return float(nats_V[np.delete(tokens, starts)].mean())
