"""Images and signals of a request: prepared as in training, and put in the places of their placeholders. No torch here.

A text that spells a placeholder has a medium there. The markers around it that the checkpoint knows are added where the
text does not have them: some chat templates write them, others leave them to a processor. Media for a text without any
placeholder come before it.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from trainer.data.errors import DataError
from trainer.data.media.readers.read import read_recording
from trainer.data.media.readers.recording import Recording
from trainer.data.media.rules import ImageKind, MediaRules, SignalKind
from trainer.data.shards.tokenizer import Tokenizer

Ids = list[int]


@dataclass(frozen=True)
class Medium:
    """An image or signal as its tower takes it.

    kind: image or signal. tokens: placeholders of it in the prompt. value: what its rule's `prepare` returned. digest:
    of the value. Prompts share what is computed of a prefix only where the digests of its media are equal.
    """

    kind: str
    tokens: int
    value: Any = field(repr=False, compare=False)
    digest: bytes


def prepare_medium(kind: str, rule: ImageKind | SignalKind, given: bytes | Path | Recording, where: str) -> Medium:
    """given: an image file or its bytes; of a signal a file that `read_recording` reads, its bytes, or a recording.
    where: names it in errors. Raises DataError for what cannot be read or prepared."""
    if isinstance(rule, SignalKind):
        recording = given if isinstance(given, Recording) else read_recording(_existing(given, where), where=where)
        data = recording.to_bytes()
    elif isinstance(given, Recording):
        raise DataError(f"{where}: a recording is not an image; give a file", where=where, allowed="an image file")
    else:
        data = given if isinstance(given, bytes) else _read(given, where)
    value = rule.prepare(data, where)
    return Medium(kind, rule.tokens(data, where), value, _digest(kind, value))


def _existing(given: bytes | Path, where: str) -> bytes | Path:
    if isinstance(given, Path) and not given.exists():
        allowed = "a file that exists"
        raise DataError(f"{where}: no such file; give {allowed}", where=where, value=str(given), allowed=allowed)
    return given


def _read(path: Path, where: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        allowed = "a file that can be read"
        text = f"{where} cannot be read: {error.strerror or error}; give {allowed}"
        raise DataError(text, where=where, value=str(path), allowed=allowed) from error


def _digest(kind: str, value: Any) -> bytes:
    """value: arrays, numbers and tuples of them."""
    found = hashlib.blake2b(kind.encode(), digest_size=32)
    for part in value if isinstance(value, tuple) else (value,):
        if isinstance(part, np.ndarray):
            found.update(repr((part.dtype.str, part.shape)).encode())
            found.update(np.ascontiguousarray(part).data)
        else:
            found.update(repr(part).encode())
    return found.digest()


def place_media(ids: Ids, media: Sequence[Medium], rules: MediaRules, tokenizer: Tokenizer) -> Ids:
    """The ids of a text with a placeholder for every embedding of its media.

    ids: of the text, in which a placeholder stands for a medium of its kind, in their order.
    Raises DataError where the numbers differ.
    """
    kinds = {kind.token: (name, kind) for name, kind in rules.kinds.items()}
    if not any(token in kinds for token in ids):
        opening = len(tokenizer.before) if ids[: len(tokenizer.before)] == tokenizer.before else 0
        inside = [rules.kinds[medium.kind].token for medium in media]
        ids = [*ids[:opening], *inside, *ids[opening:]]
    waiting = {name: deque(medium for medium in media if medium.kind == name) for name in rules.kinds}
    for token, (name, _) in kinds.items():
        if (count := ids.count(token)) != (given := len(waiting[name])):
            spelled, remedy = tokenizer.token(token), f"{count} {name}{'' if count == 1 else 's'}"
            text = f"the prompt has {spelled} {count} times, and {given} {name}s are given; give {remedy}"
            raise DataError(text, where="prompt", value=given, allowed=remedy)
    found: Ids = []
    for at, token in enumerate(ids):
        if token not in kinds:
            found.append(token)
            continue
        name, kind = kinds[token]
        before, after = [*kind.before], [*kind.after]
        marked = (not before or ids[:at][-len(before) :] == before) and ids[at + 1 :][: len(after)] == after
        inside = [token] * waiting[name].popleft().tokens
        found += inside if marked else [*before, *inside, *after]
    return found


@dataclass
class Placed:
    """A medium of a prompt with the positions of its placeholders, in their order. rows: its embeddings, [tokens, H],
    while they are needed; None before that."""

    medium: Medium
    positions: Sequence[int]
    rows: Any = None

    def between(self, start: int, end: int) -> tuple[int, int]:
        """Numbers (first, last + 1) of its embeddings whose positions are in start .. end - 1."""
        first, last = np.searchsorted(self.positions, (start, end)).tolist()
        return first, last


def positions_of(prompt: Sequence[int], media: Sequence[Medium], tokens: dict[str, int]) -> list[Placed]:
    """The media with their places. tokens: the placeholder of each kind. The numbers of both are equal."""
    ids, found = np.asarray(prompt), []
    reached = dict.fromkeys(tokens, 0)
    at = {kind: np.flatnonzero(ids == token).tolist() for kind, token in tokens.items()}
    for medium in media:
        first = reached[medium.kind]
        reached[medium.kind] += medium.tokens
        found.append(Placed(medium, at[medium.kind][first : first + medium.tokens]))
    return found


def key_of(placed: Sequence[Placed], start: int, end: int) -> bytes:
    """Bytes that distinguish the media of the tokens start .. end - 1 from others; empty without any."""
    found = b""
    for one in placed:
        first, last = one.between(start, end)
        if last > first:
            found += one.medium.digest + first.to_bytes(8, "little") + one.positions[first].to_bytes(8, "little")
    return found
