"""Documents of parts as ids: a medium becomes its markers and placeholders, and its bytes are kept beside them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from trainer.corpora.tokenize.media.parts import Medium
from trainer.data.errors import DataError
from trainer.data.media.rules import MediaRules
from trainer.data.media.store import Stored

Where = Callable[[], str]


@dataclass(frozen=True)
class Bad:
    """A document with media that cannot be used. where: called for its place, which may take a pass over the file."""

    where: Where
    problem: str
    value: Any = None  # what was found in place of what would work


@dataclass(frozen=True)
class Interleaved:
    """A document: texts, and media with their placeholders still at 0."""

    parts: tuple[str | Stored, ...]
    where: Where  # its place in the input

    def __len__(self) -> int:
        """Characters and bytes."""
        return sum(len(part if isinstance(part, str) else part.data) for part in self.parts)

    @property
    def texts(self) -> list[str]:
        return [part for part in self.parts if isinstance(part, str)]

    def origin(self) -> str:
        """A name that copies of the document have, too."""
        whole = hashlib.sha256()
        for part in self.parts:
            whole.update(hashlib.sha256(part.encode()).digest() if isinstance(part, str) else part.digest)
        return whole.hexdigest()

    def place(self, texts: Sequence[list[int]], rules: MediaRules) -> tuple[list[int], list[Stored]]:
        """The ids of the document, and its media with their places. texts: the ids of each of its texts."""
        ids: list[int] = []
        media: list[Stored] = []
        encoded = iter(texts)
        for part in self.parts:
            if isinstance(part, str):
                ids += next(encoded)
                continue
            rule = rules.of(part.kind)
            ids += rule.before
            media.append(replace(part, first=len(ids)))
            ids += [rule.token] * part.tokens
            ids += rule.after
        return ids, media


def interleaved(parts: Sequence[str | Medium], rules: MediaRules, where: Where) -> Interleaved:
    """A document whose media can be decoded and prepared. Raises DataError, with the number of the part."""
    found: list[str | Stored] = []
    for part in parts:
        if isinstance(part, str):
            found.append(part)
            continue
        name = f"part {part.number}"
        rule = rules.kinds.get(part.kind)
        if rule is None:
            text = f"{name}: there is no rule for the type {part.kind}; give one with --media or --{part.kind}"
            raise DataError(text, where=name, value=part.kind, allowed=tuple(rules.kinds))
        found.append(rule.store(part.data, name))
    return Interleaved(tuple(found), where)
