"""One tokenized source: its shards as one row of windows, checked against what was written.

Window w of a shard starts at token w * S and reads S + 1, so that neighbours share one token and every token of a
document has a label; the last tokens of a shard that fill no window are left out. No window spans two shards.

Shape legend: N windows · L = S + 1 tokens of each · P tokens of the longest prefix · K paraphrases · D documents.
"""

import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from parallel.errors import Fault
from trainer.data.errors import DataError
from trainer.data.hashing import mix64
from trainer.data.shards import files as shard_files
from trainer.data.shards.megatron_index import IndexedTokens
from trainer.data.windows import Windows

SAMPLED_BLOCKS = 64
MAX_NEIGHBOURS = 64  # windows of a shard that are tried in place of one that cannot be read
ANYTHING = -1  # matches every token

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


class TokenFiles(Protocol):
    """A reader of one shard."""

    num_tokens: int

    def read_into(self, starts: Ints, rows: Ints, tokens: Ints) -> tuple[Ints, Ints]:
        """Read tokens from starts[i] on into tokens[rows[i]]; return the rows and columns where documents start."""

    def document_starts(self) -> Ints:
        """Return the first token of each document, and the end of the last: [documents + 1]."""


class Shards:
    """The windows of one split of a source that `tokenize_source` wrote.

    Opening reads the manifest alone; a shard is mapped when a window of it is first asked for. Raises DataError, here
    and later, for anything that differs from the manifest.
    """

    def __init__(
        self,
        directory: Path,
        split: Literal["train", "heldout"] = "train",
        *,
        reader: Literal["octavo", "megatron"] = "octavo",
        cut_short: bool = False,
    ) -> None:
        """cut_short: the windows before the end of a truncated `.bin` can be read."""
        self.directory, self.split, self._reader, self._cut_short = directory, split, reader, cut_short
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
        self._tokens_in: dict[int, int] = {}  # an open shard
        self._bounds_of: dict[int, Ints] = {}  # by seq_len
        self._longest = max(map(len, self.prefix_ids), default=0)
        self._prefix_lengths = np.array([len(ids) for ids in self.prefix_ids], np.int64)
        padded = [[*ids, *[ANYTHING] * (self._longest - len(ids))] for ids in self.prefix_ids]
        self._prefix_KP = np.array(padded, np.int64).reshape(len(padded), self._longest)
        self._any_KP = self._prefix_KP == ANYTHING

    def digests(self) -> dict[str, str]:
        """SHA-256 of the tokens of each shard that has any, by its stem."""
        return {
            shard["stem"]: shard["files"][f"{shard['stem']}.bin"]["sha256"] for shard in self._shards if shard["tokens"]
        }

    def num_windows(self, seq_len: int) -> int:
        return int(self._bounds(seq_len)[-1])

    def _bounds(self, seq_len: int) -> Ints:
        """The first window of each shard, and the number of all."""
        if seq_len not in self._bounds_of:
            windows = [max(shard["tokens"] - 1, 0) // seq_len for shard in self._shards]
            self._bounds_of[seq_len] = np.cumsum([0, *windows])
        return self._bounds_of[seq_len]

    def read(self, positions: Ints, seq_len: int, *, media: bool = True) -> Windows:
        """Return the windows at `positions` [N], of `seq_len` + 1 tokens each. media: of no effect on text alone.

        Raises IndexError for a number out of range, DataError for a shard that is missing or corrupt, for a token that
        the tokenizer does not have and for a document that opens with none of its group's prefixes.
        """
        bounds = self._bounds(seq_len)
        if len(positions) and not 0 <= positions.min() <= positions.max() < bounds[-1]:
            raise IndexError(f"windows {positions.tolist()} of {self.directory}, which has {bounds[-1]}")
        shards = np.searchsorted(bounds, positions, side="right") - 1
        starts = (positions - bounds[shards]) * seq_len
        # A prefix can start before the window: P more tokens show it.
        P, width = self._longest, self._longest + seq_len + 1
        tokens = np.empty((len(positions), width), np.int64)
        row_D, place_D = self._read(shards, starts, tokens)
        self._check_ids(tokens, shards, starts)
        begins = np.zeros((len(positions), width), np.bool_)
        begins[row_D, place_D] = True
        prefix = np.zeros((len(positions), width), np.bool_)
        if P:
            self._mark_prefixes(prefix, tokens, row_D, place_D, shards, starts)
        return Windows(tokens[:, P:], begins[:, P:], prefix[:, P:])

    def _read(self, shards: Ints, starts: Ints, tokens: Ints) -> tuple[Ints, Ints]:
        """Fill `tokens` from P tokens before `starts` on; return the rows and columns where documents start."""
        P = self._longest
        found = [(np.empty(0, np.int64), np.empty(0, np.int64))]
        for shard in sorted(set(shards.tolist())):
            files, rows = self.files(shard), np.flatnonzero(shards == shard)
            ends_at = int(starts[rows].max()) + tokens.shape[1] - P
            if ends_at > self._tokens_in[shard]:
                found_tokens, written = self._tokens_in[shard], self._shards[shard]["tokens"]
                text = f"{self._stem(shard)}.bin is truncated: it has {found_tokens} of {written} tokens"
                raise self._unreadable(shard, text, found_tokens)
            inside = starts[rows] >= P
            found.append(files.read_into(starts[rows[inside]] - P, rows[inside], tokens))
            for row in rows[~inside].tolist():
                before = P - int(starts[row])
                tokens[row, :before] = 0
                at_D, place_D = files.read_into(np.zeros(1, np.int64), np.array([row]), tokens[:, before:])
                found.append((at_D, place_D + before))
        if len(found) == 2:
            return found[1]
        return np.concatenate([row_D for row_D, _ in found]), np.concatenate([place_D for _, place_D in found])

    def _check_ids(self, tokens: Ints, shards: Ints, starts: Ints) -> None:
        # As uint64 a negative number is a huge one, so that one pass finds what is too large and what is negative.
        if not tokens.size or tokens.view(np.uint64).max() < self.vocab_size:
            return
        row, place = np.argwhere((tokens < 0) | (tokens >= self.vocab_size))[0].tolist()
        token = int(tokens[row, place])
        text = (
            f"{self._stem(shards[row])}.bin is corrupt: token {starts[row] + place - self._longest} is {token}, but "
            f"the tokenizer has {self.vocab_size} tokens"
        )
        raise self._unreadable(shards[row], text, token)

    def _mark_prefixes(
        self, prefix: Bools, tokens: Ints, row_D: Ints, place_D: Ints, shards: Ints, starts: Ints
    ) -> None:
        """Mark the prefix that every document must open with, as far as its window shows it."""
        width = tokens.shape[1]
        place_DP = place_D[:, None] + np.arange(self._longest)
        visible_DP = place_DP < width
        place_DP = np.minimum(place_DP, width - 1)
        flat_DP = row_D[:, None] * width + place_DP
        found_DP = np.where(visible_DP, tokens.reshape(-1)[flat_DP], ANYTHING)
        same_DKP = (found_DP[:, None] == self._prefix_KP) | self._any_KP
        if not visible_DP.all():
            same_DKP |= ~visible_DP[:, None]
        match_DK = same_DKP.all(axis=2)
        matched_D = match_DK.any(axis=1)
        if not matched_D.all():
            lost = int(np.flatnonzero(~matched_D)[0])
            row = row_D[lost]
            text = (
                f"{self._stem(shards[row])}.bin: the document at token {starts[row] + place_D[lost] - self._longest} "
                f"does not open with a prefix of the group {self.prefix_group}"
            )
            raise self._unreadable(shards[row], text)
        # Where several match, the window ends inside all of them: no prefix is the start of another.
        length_D = self._prefix_lengths[match_DK.argmax(axis=1)]
        prefix.reshape(-1)[flat_DP[visible_DP & (np.arange(self._longest) < length_D[:, None])]] = True

    def files(self, shard: int) -> TokenFiles:
        """A shard's token files, opened once."""
        if shard not in self._open:
            facts = self._sized(shard)
            present = facts["tokens"]
            if fault := shard_files.size_fault(self.directory, facts):
                cut = shard_files.cut_at(self.directory, facts) if self._cut_short else None
                if cut is None:
                    raise DataError([fault])
                present = cut // np.dtype(self.manifest["dtype"]).itemsize
            files = _reader(self._reader, present < facts["tokens"])(self._stem(shard))
            if files.num_tokens not in (present, facts["tokens"]):  # Megatron's reader counts what the index says
                text = f"{self._stem(shard)}.bin has {files.num_tokens} tokens, but its manifest says {facts['tokens']}"
                raise self._unreadable(shard, text, files.num_tokens)
            self._open[shard], self._tokens_in[shard] = files, present
        return self._open[shard]

    def _sized(self, shard: int) -> dict[str, Any]:
        """The facts of a shard with the files whose sizes must be right before any of it can be read."""
        return self._shards[shard]

    def instead_of(self, position: int, seq_len: int) -> Iterator[int]:
        """Yield the windows to try in place of one that cannot be read.

        First those after it in its shard, then the first ones of each further shard that opens, and of its own last; at
        most MAX_NEIGHBOURS of each.
        """
        bounds, count = self._bounds(seq_len), len(self._shards)
        own = int(np.searchsorted(bounds, position, side="right")) - 1
        for turn in range(count + 1):
            shard = (own + turn) % count
            try:
                self.files(shard)
            except DataError:
                continue
            first = int(bounds[shard]) if turn else position + 1
            end = int(bounds[shard]) + self._readable(shard, seq_len)
            yield from range(first, min(first + MAX_NEIGHBOURS, end))

    def _readable(self, shard: int, seq_len: int) -> int:
        """The windows of an open shard that end before its tokens do."""
        return max(self._tokens_in[shard] - 1, 0) // seq_len

    def _unreadable(self, shard: int, text: str, value: int | None = None) -> DataError:
        where = f"{self._stem(shard)}.bin"
        return DataError(text, where=where, value=value, allowed=shard_files.REMEDY)

    def _stem(self, shard: int) -> Path:
        return self.directory / str(self._shards[shard]["stem"])

    def verify(
        self,
        how: Literal["off", "sampled", "full"],
        *,
        seed: int | None = None,
        report: Callable[[Fault], None] | None = None,
    ) -> None:
        """Raise DataError at the first of `faults`. report: receives those of the shards instead."""
        for fault in self._tokenizer_faults(how):
            raise DataError([fault])
        for fault in self._shard_faults(how, seed):
            if report is None:
                raise DataError([fault])
            report(fault)

    def faults(self, how: Literal["off", "sampled", "full"], *, seed: int | None = None) -> Iterator[Fault]:
        """Yield what is wrong with the split's files.

        Both: the tokenizer's hash, with the train split. full: every byte is hashed, so any change is found. sampled:
        all sizes, and the hashes of SAMPLED_BLOCKS blocks of a MiB, drawn anew by every call unless `seed` is given. A
        corrupt block of a split with B blocks is found with probability min(1, SAMPLED_BLOCKS / B), and after k starts
        with 1 - (1 - 64 / B)^k.
        """
        yield from self._tokenizer_faults(how)
        yield from self._shard_faults(how, seed)

    def _tokenizer_faults(self, how: Literal["off", "sampled", "full"]) -> Iterator[Fault]:
        made_by = self.manifest["tokenizer"]
        if how == "off" or self.split != "train":
            return
        if fault := _tried(shard_files.tokenizer_fault, self.directory, made_by):
            yield fault

    def _shard_faults(self, how: Literal["off", "sampled", "full"], seed: int | None) -> Iterator[Fault]:
        if how == "off":
            return
        check = shard_files.hash_fault if how == "full" else shard_files.size_fault
        sound = []
        for shard in self._shards:
            if fault := _tried(check, self.directory, shard):
                yield fault
            else:
                sound.append(shard)
        if how == "full" or not sound:
            return
        ends = np.cumsum([shard_files.num_blocks(shard) for shard in sound])
        for block in _sample(int(ends[-1]), int.from_bytes(os.urandom(8)) if seed is None else seed).tolist():
            shard = int(np.searchsorted(ends, block, side="right"))
            before = int(ends[shard - 1]) if shard else 0
            if fault := _tried(shard_files.block_fault, self.directory, sound[shard], block - before):
                yield fault


def _tried(check: Callable[..., Fault | None], directory: Path, written: dict[str, Any], *which: int) -> Fault | None:
    """Call `check`; a file that cannot be read is a fault like the others."""
    try:
        return check(directory, written, *which)
    except OSError as error:
        where = str(error.filename or directory)
        return Fault(f"{where} cannot be read: {error.strerror or error}", where, None, shard_files.REMEDY)


def _sample(n: int, seed: int) -> Ints:
    """Return SAMPLED_BLOCKS different numbers below n, each equally likely; all of them if n is not larger."""
    if n <= SAMPLED_BLOCKS:
        return np.arange(n)
    drawn: dict[int, None] = {}
    turn = 0
    while len(drawn) < SAMPLED_BLOCKS:
        drawn[int(mix64(seed, turn)[0] % np.uint64(n))] = None
        turn += 1
    return np.sort(np.array([*drawn], np.int64))


def _reader(name: Literal["octavo", "megatron"], cut_short: bool) -> Callable[[Path], TokenFiles]:
    if name == "octavo":
        return functools.partial(IndexedTokens, cut_short=cut_short)
    from trainer.data.shards.megatron_reader import MegatronTokens

    return MegatronTokens
