"""Endless tokens from a hash of (seed, sample, position), for golden runs and benchmarks.

Integer arithmetic alone makes them, so no package can move them, and any vocabulary size will do. A document counts up
from a skewed random token by a stride of its own, with noise: there is a unigram to learn, and a rule.
"""

import hashlib
import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from trainer.data.batch import Batch, make_batch
from trainer.data.errors import DataError
from trainer.data.hashing import U64, mix64

FORMAT = 1  # raise it with any change of the tokens
SOURCE = "synthetic"
MEAN_DOCUMENT = 64  # tokens
NOISE = 8  # one token in so many is random
STRIDES = np.array([1, 2, 3, 5], np.uint64)
TRAIN, HELDOUT = 0, 1  # counters of the two splits
UNIGRAM_SAMPLES = 256

Ints = npt.NDArray[np.int64]


class NumberTokenizer:
    """Stands where a tokenizer is expected: text becomes one id per byte, ids become numbers."""

    eos_id = 0

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size

    def encode(self, text: str) -> list[int]:
        return [1 + byte % (self.vocab_size - 1) for byte in text.encode()]

    def decode(self, ids: list[int]) -> str:
        return " ".join(str(token) for token in ids)


class SyntheticData:
    """Generated windows of `seq_len` tokens; see `trainer.data.Data` for what each method promises."""

    def __init__(self, *, vocab_size: int, seq_len: int, seed: int) -> None:
        if vocab_size < 2:
            raise DataError(f"model.vocab_size={vocab_size}: synthetic data needs at least 2 tokens")
        self.vocab_size = vocab_size
        self.sources = [SOURCE]
        self.tokenizer = NumberTokenizer(vocab_size)
        self._seq_len, self._seed = seq_len, seed
        made_from = f"{SOURCE} {FORMAT} {vocab_size} {seq_len} {seed}"
        self.fingerprint = hashlib.sha256(made_from.encode()).hexdigest()

    def _windows(self, split: int, samples: Ints) -> tuple[Ints, npt.NDArray[np.bool_]]:
        """Tokens [B, S + 1] and document starts [B, S + 1] of these samples."""
        place_L = np.arange(self._seq_len + 1)
        hash_BL = mix64(self._seed, split, samples[:, None], place_L[None])
        starts_BL = hash_BL % np.uint64(MEAN_DOCUMENT) == 0
        document_BL = np.maximum.accumulate(np.where(starts_BL, place_L, 0), axis=1)
        rule_BL = mix64(self._seed, split, samples[:, None], document_BL, 1)
        ordinary = np.uint64(self.vocab_size - 1)  # 0 ends documents
        first_BL = _skewed(rule_BL, ordinary)
        stride_BL = STRIDES[((rule_BL >> np.uint64(8)) % np.uint64(len(STRIDES))).astype(np.int64)]
        ruled_BL = (first_BL + stride_BL * (place_L - document_BL).astype(np.uint64)) % ordinary
        noisy_BL = (hash_BL >> np.uint64(8)) % np.uint64(NOISE) == 0
        tokens_BL = 1 + np.where(noisy_BL, _skewed(hash_BL, ordinary), ruled_BL).astype(np.int64)
        tokens_BL[:, :-1][starts_BL[:, 1:]] = self.tokenizer.eos_id
        return tokens_BL, starts_BL

    def train_batch(self, first_sample: int, count: int) -> Batch:
        if first_sample < 0 or count < 1:
            raise ValueError(f"samples {first_sample} .. {first_sample + count - 1}: numbers start at 0")
        samples = np.arange(first_sample, first_sample + count)
        return make_batch(*self._windows(TRAIN, samples), samples.tolist())

    def eval_batches(self, source: str, batches: int, micro_batch: int) -> Iterator[Batch]:
        for first in range(0, batches * micro_batch, micro_batch):
            samples = np.arange(first, first + micro_batch)
            yield make_batch(*self._windows(HELDOUT, samples), samples.tolist())

    def prompts(self) -> dict[str, str]:
        return {SOURCE: "0"}

    def unigram_nats(self, source: str | None = None) -> float:
        samples = np.arange(UNIGRAM_SAMPLES)
        tokens_BL, _ = self._windows(TRAIN, samples)
        counts_V = np.bincount(tokens_BL.ravel(), minlength=self.vocab_size) + 1
        heldout_BL, starts_BL = self._windows(HELDOUT, samples)
        labels = heldout_BL[:, 1:][~starts_BL[:, 1:]]
        return math.log(counts_V.sum()) - float(np.log(counts_V[labels]).mean())


def _skewed(hashes: U64, n: np.uint64) -> U64:
    """Integers below n, small ones likelier: the product of two uniform 16-bit fractions, scaled."""
    low, high = (hashes >> np.uint64(16)) & np.uint64(0xFFFF), (hashes >> np.uint64(32)) & np.uint64(0xFFFF)
    return (low * high * n) >> np.uint64(32)
