"""Endless tokens from a hash of (seed, sample, position), for golden runs and benchmarks.

Integer arithmetic alone makes them, so no package can move them, and any vocabulary size will do. A document counts up
from a skewed random token by a stride of its own, with noise: there is a unigram to learn, and a rule.
"""

import hashlib
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from trainer.data.errors import DataError
from trainer.data.hashing import U64, mix64
from trainer.data.protocols import Data, Split
from trainer.data.text import TextHeldOut, TextStream
from trainer.data.windows import Windows

TOKENS_FORMAT = 1  # raise it with any change of the tokens
SOURCE = "synthetic"
MEAN_DOCUMENT = 64  # tokens
NOISE = 8  # one token in so many is random
STRIDES = np.array([1, 2, 3, 5], np.uint64)
SPLITS = {"train": 0, "heldout": 1}  # what the hash of a split counts from
UNIGRAM_WINDOWS = 256

Ints = npt.NDArray[np.int64]


class NumberTokenizer:
    """A stand-in for a tokenizer: text becomes one id per byte, ids become numbers."""

    eos_id = 0

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size

    def encode(self, text: str) -> list[int]:
        return [1 + byte % (self.vocab_size - 1) for byte in text.encode()]

    def decode(self, ids: list[int]) -> str:
        return " ".join(str(token) for token in ids)


class SyntheticText:
    """Generated windows of `seq_len` tokens: the one source `synthetic` of `trainer.data.protocols.TextSplits`."""

    def __init__(self, *, vocab_size: int, seq_len: int, seed: int) -> None:
        self.shares: Mapping[str, float] = {SOURCE: 1.0}
        self.tokenizer = NumberTokenizer(vocab_size)
        self.vocab_size = vocab_size
        self.unigram_windows = UNIGRAM_WINDOWS
        self._seq_len, self._seed = seq_len, seed

    def read(self, first: int, count: int) -> Windows:
        """Return the windows of training samples first .. first + count - 1."""
        return self.read_split("train", SOURCE, np.arange(first, first + count))

    def positions(self, split: Split, source: str, count: int) -> Ints:
        return np.arange(count)  # a split has no end, and no part of it is like another

    def read_split(self, split: Split, source: str, positions: Ints, *, media: bool = True) -> Windows:
        place_L = np.arange(self._seq_len + 1)
        counters = (self._seed, SPLITS[split], positions[:, None])
        hash_BL = mix64(*counters, place_L[None])
        starts_BL = hash_BL % np.uint64(MEAN_DOCUMENT) == 0
        document_BL = np.maximum.accumulate(np.where(starts_BL, place_L, 0), axis=1)
        rule_BL = mix64(*counters, document_BL, 1)
        ordinary = np.uint64(self.vocab_size - 1)  # 0 ends documents
        first_BL = _skewed(rule_BL, ordinary)
        stride_BL = STRIDES[((rule_BL >> np.uint64(8)) % np.uint64(len(STRIDES))).astype(np.int64)]
        ruled_BL = (first_BL + stride_BL * (place_L - document_BL).astype(np.uint64)) % ordinary
        noisy_BL = (hash_BL >> np.uint64(8)) % np.uint64(NOISE) == 0
        tokens_BL = 1 + np.where(noisy_BL, _skewed(hash_BL, ordinary), ruled_BL).astype(np.int64)
        tokens_BL[:, :-1][starts_BL[:, 1:]] = NumberTokenizer.eos_id
        return Windows(tokens_BL, starts_BL, np.zeros_like(starts_BL))


def open_synthetic(*, vocab_size: int, seq_len: int, seed: int) -> Data:
    """Synthetic data with a vocabulary of `vocab_size` tokens. Raises DataError where it has fewer than 2."""
    if vocab_size < 2:
        raise DataError(
            f"model.vocab_size={vocab_size} is too small for data.name=synthetic; use 2 or more",
            where="model.vocab_size",
            value=vocab_size,
            allowed="2 or more",
        )
    text = SyntheticText(vocab_size=vocab_size, seq_len=seq_len, seed=seed)
    made_from = f"{SOURCE} {TOKENS_FORMAT} {vocab_size} {seq_len} {seed}"
    return Data(
        stream=TextStream(text.read, text.shares),
        heldout=TextHeldOut(text),
        fingerprint=hashlib.sha256(made_from.encode()).hexdigest(),
        text=text,
    )


def _skewed(hashes: U64, n: np.uint64) -> U64:
    """Integers below n, small ones likelier: the product of two uniform 16-bit fractions, scaled."""
    low, high = (hashes >> np.uint64(16)) & np.uint64(0xFFFF), (hashes >> np.uint64(32)) & np.uint64(0xFFFF)
    return (low * high * n) >> np.uint64(32)
