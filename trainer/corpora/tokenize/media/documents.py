"""The documents of a unit with their media, decoded once so that what is broken is found before any training."""

from __future__ import annotations

import gzip
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from trainer.corpora.tokenize import inputs
from trainer.corpora.tokenize.media import tars
from trainer.corpora.tokenize.media.encode import Bad, Interleaved, Where, interleaved
from trainer.corpora.tokenize.media.parts import Directory, Files, PartError, filled, parts_of, typed
from trainer.corpora.tokenize.units import Unit, bad
from trainer.data.errors import DataError
from trainer.data.media.rules import MediaRules

EXTRAS = (".[media]", ".[signals]")  # allowed by errors about packages that are not installed


@dataclass(frozen=True)
class PartsDocument:
    """A document in memory. origin: documents of one origin share their split. parts: as a row has them."""

    origin: str
    parts: Sequence[Any]

    def content(self, number: int, rules: MediaRules, root: Path | None) -> Interleaved | Bad:
        """The document, with media that can be used. number: among those of its source, from 1."""
        where: Where = partial(str, f"{self.origin} (document {number})")
        try:
            return _checked(parts_of([self.parts], Directory(root or Path())), rules, where)
        except PartError as error:
            return Bad(where, str(error), error.value)


def documents(
    unit: Unit, field: str, origin: str | None, rules: MediaRules, root: Path | None, unread: Counter[str]
) -> Iterator[tuple[int, str, Interleaved | Bad]]:
    """(bytes of the unit read so far, origin, document) for every document of a unit. Raises DataError for a file that
    cannot be read, as `inputs.documents` does.

    field: the names of those with the parts, with commas between them; `rules` may name others. root: the directory
    that paths in parts start from; None: that of the file. unread: counts the members of tars that are not read, by
    suffix.
    """
    files = Directory(Path(unit.path).parent if root is None else root)
    try:
        for read, where, its_origin, parts in _rows(unit, field, origin, files, rules, unread):
            document = parts if isinstance(parts, Bad) else _checked(parts, rules, where)
            if its_origin is None:
                its_origin = "" if isinstance(document, Bad) else document.origin()
            yield read, its_origin, document
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise bad(unit.path, f"is truncated or not a gzip file: {error}", value=str(error)) from error
    except OSError as error:
        raise bad(unit.path, f"cannot be read: {error.strerror or error}", value=error.strerror) from error


def _rows(
    unit: Unit, field: str, origin: str | None, files: Files, rules: MediaRules, unread: Counter[str]
) -> Iterator[tuple[int, Where, str | None, Any]]:
    """(bytes read so far, place, origin, texts and media or Bad) of each row."""
    if unit.kind == "tar":
        for read, key, its_origin, found in tars.documents(unit.path, field, origin, tuple(rules.kinds), unread):
            where: Where = partial(str, key)
            yield (
                read,
                where,
                its_origin,
                Bad(where, str(found), found.value) if isinstance(found, PartError) else found,
            )
        return
    fields, media = field.split(","), [(kind, rule.field) for kind, rule in rules.kinds.items() if rule.field]
    for read, where, values in inputs.records(unit, fields, [name for _, name in media], origin):
        its_origin = None if origin is None else values.pop()
        beside = [typed(kind, values[len(fields) + place]) for place, (kind, _) in enumerate(media)]
        try:
            if None in values[: len(fields)]:
                name = fields[values.index(None)]
                raise PartError(f"its {name!r} is null; fill or remove it", name, "a value")
            found = parts_of([*beside, *values[: len(fields)]], files)
        except PartError as error:
            found = Bad(where, str(error), error.value)
        yield read, where, its_origin, found


def _checked(parts: Any, rules: MediaRules, where: Where) -> Interleaved | Bad:
    try:
        return interleaved(filled(parts, rules), rules, where)
    except PartError as error:
        return Bad(where, str(error), error.value)
    except DataError as error:
        if error.allowed in EXTRAS:  # no fault of the document
            raise
        return Bad(where, error.faults[0].text, error.value)


def texts_of(unit: Unit, field: str, origin: str | None, rules: MediaRules, root: Path | None) -> Iterator[str]:
    """The texts of a unit whose documents have parts. Raises DataError."""
    files = Directory(Path(unit.path).parent if root is None else root)
    for _, _, _, parts in _rows(unit, field, origin, files, rules, Counter()):
        if not isinstance(parts, Bad):
            yield from (part for part in parts if isinstance(part, str))
