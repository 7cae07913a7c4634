"""One tokenised source: its shards as one row of windows, checked against what was written.

Window w of a shard starts at token w * S and reads S + 1, so that neighbours share one token and every token of a
document has a label; the last tokens of a shard that fill no window are left out. No window lies in two shards.

Shape legend: N windows · L = S + 1 tokens of each · P tokens of the longest prefix · K paraphrases · D documents.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from trainer.data import shard_files
from trainer.data.errors import DataError
from trainer.data.hashing import mix64
from trainer.data.indexed import IndexedTokens

SAMPLED_BLOCKS = 64
ANYTHING = -1  # matches every token

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


class TokenFiles(Protocol):
    """What reads a shard."""

    num_tokens: int

    def windows(self, starts: Ints, length: int) -> tuple[Ints, Bools]: ...


class Shards:
    """The windows of one split of a source that `tokenize_source` wrote.

    Opening reads the manifest alone; a shard is mapped when a window of it is first asked for. Raises DataError, here
    and later, for anything that is not as the manifest says.
    """

    def __init__(
        self,
        directory: Path,
        split: Literal["train", "heldout"] = "train",
        *,
        reader: Literal["octavo", "megatron"] = "octavo",
    ) -> None:
        self.directory, self.split, self._reader = directory, split, reader
        self.manifest = shard_files.read_manifest(directory)
        self.name: str = self.manifest["name"]
        self.domain: str = self.manifest["domain"]
        self.vocab_size: int = self.manifest["tokenizer"]["vocab_size"]
        self.fingerprint: str = self.manifest["checksum"]  # changes with any token of any split
        prefix = self.manifest["prefix"]
        self.prefix_group: str | None = prefix and prefix["group"]
        self.prefix_ids: list[list[int]] = prefix["ids"] if prefix else []
        self._shards = self.manifest["shards" if split == "train" else "heldout"]
        self.num_tokens = sum(shard["tokens"] for shard in self._shards)
        self.num_documents = sum(shard["documents"] for shard in self._shards)
        self._open: dict[int, TokenFiles] = {}
        self._longest = max(map(len, self.prefix_ids), default=0)
        self._prefix_lengths = np.array([len(ids) for ids in self.prefix_ids], np.int64)
        padded = [[*ids, *[ANYTHING] * (self._longest - len(ids))] for ids in self.prefix_ids]
        self._prefix_KP = np.array(padded, np.int64).reshape(len(padded), self._longest)

    def num_windows(self, seq_len: int) -> int:
        return int(self._last_windows(seq_len)[-1]) if self._shards else 0

    def _last_windows(self, seq_len: int) -> Ints:
        """Windows of each shard and those before it."""
        return np.cumsum([max(shard["tokens"] - 1, 0) // seq_len for shard in self._shards])

    def read(self, positions: Ints, seq_len: int) -> tuple[Ints, Bools, Bools]:
        """Windows by number, all [N, S + 1]: tokens int64, where documents begin, and which tokens are a prefix's.

        Raises IndexError for a number that there is not, DataError for a shard that is missing or damaged, a token
        that the tokenizer does not have and a document that begins with none of its group's prefixes.
        """
        ends = self._last_windows(seq_len)
        if len(positions) and not (self._shards and 0 <= positions.min() <= positions.max() < ends[-1]):
            raise IndexError(f"windows {positions.tolist()} of {self.directory}, which has {self.num_windows(seq_len)}")
        shards = np.searchsorted(ends, positions, side="right")
        starts = (positions - (ends - np.diff(ends, prepend=0))[shards]) * seq_len if len(positions) else positions
        # A prefix can begin before the window; so many tokens more show it.
        P, L = self._longest, seq_len + 1
        tokens = np.empty((len(positions), P + L), np.int64)
        begins = np.empty((len(positions), P + L), np.bool_)
        for shard in np.unique(shards).tolist():
            rows = np.flatnonzero(shards == shard)
            self._read_shard(shard, starts[rows], rows, tokens, begins)
        prefix = self._prefixes(tokens, begins, shards, starts)
        return tokens[:, P:], begins[:, P:], prefix[:, P:]

    def _read_shard(self, shard: int, starts: Ints, rows: Ints, tokens: Ints, begins: Bools) -> None:
        P, files = self._longest, self.files(shard)
        inside = starts >= P
        far = rows[inside]
        tokens[far], begins[far] = files.windows(starts[inside] - P, tokens.shape[1])
        for row, start in zip(rows[~inside].tolist(), starts[~inside].tolist(), strict=True):
            before = P - start
            tokens[row, :before], begins[row, :before] = ANYTHING, False
            (tokens[row, before:],), (begins[row, before:],) = files.windows(
                np.zeros(1, np.int64), tokens.shape[1] - before
            )
        # As uint64 a negative number is a huge one, so that one pass finds what is too large and what is negative.
        seen = tokens[rows, P:]
        if seen.view(np.uint64).max() >= self.vocab_size:
            wrong = np.argwhere((seen < 0) | (seen >= self.vocab_size))[0]
            raise DataError(
                f"{self._stem(shard)}.bin is damaged: token {starts[wrong[0]] + wrong[1]} is {seen[tuple(wrong)]}, the "
                f"tokenizer has {self.vocab_size}"
            )

    def _prefixes(self, tokens: Ints, begins: Bools, shards: Ints, starts: Ints) -> Bools:
        """Which tokens belong to a prefix: every document must begin with one, as far as its window shows it."""
        prefix = np.zeros_like(begins)
        if not self._longest:
            return prefix
        width = tokens.shape[1]
        row_D, first_D = np.nonzero(begins)
        place_DP = first_D[:, None] + np.arange(self._longest)
        visible_DP = place_DP < width
        place_DP = np.minimum(place_DP, width - 1)
        found_DP = tokens[row_D[:, None], place_DP]
        same_DKP = (found_DP[:, None] == self._prefix_KP) | (self._prefix_KP == ANYTHING) | ~visible_DP[:, None]
        match_DK = same_DKP.all(axis=2)
        if not match_DK.any(axis=1).all():
            lost = int(np.flatnonzero(~match_DK.any(axis=1))[0])
            row = row_D[lost]
            raise DataError(
                f"{self._stem(shards[row])}.bin: the document at token {starts[row] + first_D[lost] - self._longest} "
                f"begins with no prefix of the group {self.prefix_group}"
            )
        # Where several match, the window ends inside all of them: none begins with another.
        length_D = self._prefix_lengths[match_DK.argmax(axis=1)]
        of_prefix_DP = visible_DP & (np.arange(self._longest) < length_D[:, None])
        prefix[np.broadcast_to(row_D[:, None], place_DP.shape)[of_prefix_DP], place_DP[of_prefix_DP]] = True
        return prefix

    def files(self, shard: int) -> TokenFiles:
        """A shard's token files, opened once."""
        if shard not in self._open:
            facts = self._shards[shard]
            if fault := shard_files.size_fault(self.directory, facts):
                raise DataError(fault)
            files = _reader(self._reader)(self._stem(shard))
            if files.num_tokens != facts["tokens"]:
                raise DataError(
                    f"{self._stem(shard)}.bin has {files.num_tokens} tokens, its manifest says {facts['tokens']}"
                )
            self._open[shard] = files
        return self._open[shard]

    def _stem(self, shard: int) -> Path:
        return self.directory / str(self._shards[shard]["stem"])

    def verify(self, how: Literal["off", "sampled", "full"], *, seed: int | None = None) -> None:
        """Raise DataError at the first of `faults`."""
        for fault in self.faults(how, seed=seed):
            raise DataError(fault)

    def faults(self, how: Literal["off", "sampled", "full"], *, seed: int | None = None) -> Iterator[str]:
        """What is wrong with the split's files, a line each.

        full: every byte is hashed, so any change is found. sampled: all sizes, and the hashes of SAMPLED_BLOCKS
        blocks of a MiB, drawn anew by every call unless `seed` is given. Of B blocks that a split has, one that is
        damaged is found with probability min(1, SAMPLED_BLOCKS / B), and after k starts with 1 - (1 - 64 / B)^k.
        """
        if how == "off":
            return
        look = shard_files.hash_fault if how == "full" else shard_files.size_fault
        sound = []
        for shard in self._shards:
            if fault := look(self.directory, shard):
                yield fault
            else:
                sound.append(shard)
        if how == "full" or not sound:
            return
        ends = np.cumsum([shard_files.num_blocks(shard) for shard in sound])
        for block in _sample(int(ends[-1]), int.from_bytes(os.urandom(8)) if seed is None else seed).tolist():
            shard = int(np.searchsorted(ends, block, side="right"))
            before = int(ends[shard - 1]) if shard else 0
            if fault := shard_files.block_fault(self.directory, sound[shard], block - before):
                yield fault


def _sample(n: int, seed: int) -> Ints:
    """SAMPLED_BLOCKS different numbers below n, each equally likely; all of them where there are no more."""
    if n <= SAMPLED_BLOCKS:
        return np.arange(n)
    drawn: dict[int, None] = {}
    turn = 0
    while len(drawn) < SAMPLED_BLOCKS:
        drawn[int(mix64(seed, turn)[0] % np.uint64(n))] = None
        turn += 1
    return np.sort(np.array([*drawn], np.int64))


def _reader(name: Literal["octavo", "megatron"]) -> Callable[[Path], TokenFiles]:
    if name == "octavo":
        return IndexedTokens
    from trainer.data.megatron import MegatronTokens

    return MegatronTokens
