"""Structured records: named things with properties whose values are kept as the characters of their source.

A number is never parsed and printed again: `454.10` stays `454.10`, so its digits, its precision and its unit in any
text made from it are those of the source.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from functools import cached_property, lru_cache

from trainer.data.hashing import text_key

PER_GROUP = 64  # records; enough of a kind for distractors of like magnitude, few enough for an even held-out split
MIN_GROUPS = 4  # of a small source, so that it still has a split to hold out


@dataclass(frozen=True)
class Property:
    """What a column means. `said` is a noun phrase that takes "the" or "its" before it and "of NAME" after it."""

    said: str  # "melting point"
    of: str = ""  # with {name}, where "of NAME" is not at the end: "enthalpy of formation of {name} at 298.15 K"
    unit: str = ""  # written after the number; "" for a pure number or a text
    number: bool = True
    quoted: bool = False  # a text that could run into the sentence around it, such as a SMILES string
    identifies: bool = False  # a text that belongs to one thing, so that it may be asked what it belongs to
    asked: bool = True  # in tasks; not where the value is a mere number of a catalogue

    def of_name(self, name: str) -> str:
        return (self.of or self.said + " of {name}").replace("{name}", name)

    def written(self, value: str) -> str:
        """The value as it stands in a text: its digits as they are, its unit after them."""
        if self.quoted:
            return f'"{value}"'
        return f"{value} {self.unit}" if self.unit else value


@dataclass(frozen=True)
class Record:
    key: str  # of the thing: what all its records in all tables of a source share, so that they stay in one split
    name: str
    values: Mapping[str, str]  # property -> value as the source writes it; a missing one is absent


@dataclass(frozen=True)
class Table:
    """Records of one kind from one place."""

    name: str
    thing: str  # "compound"
    things: str  # "compounds"
    properties: Mapping[str, Property]
    records: Sequence[Record]
    authority: str = ""  # a noun phrase, such as "the JANAF tables of 1998": tables differ in their values

    @cached_property
    def shared(self) -> frozenset[tuple[str, str]]:
        """Property and value wherever several records have a value that should identify one."""
        keys = [key for key, prop in self.properties.items() if prop.identifies]
        bearers = Counter((key, record.values[key]) for record in self.records for key in keys if key in record.values)
        return frozenset(pair for pair, count in bearers.items() if count > 1)


@dataclass(frozen=True)
class Group:
    """Some records of a table that stay together in one split, so that they can be compared with one another."""

    origin: str
    table: Table
    records: Sequence[Record]


@lru_cache(65536)  # the same few values are compared many times
def number(text: str) -> Decimal | None:
    """The number that a text is, None where it is none: `1.5e-3` is one, `nan`, `>5` and `` are not."""
    try:
        value = Decimal(text)
    except InvalidOperation:
        return None
    return value if value.is_finite() else None


def groups(source: str, tables: Sequence[Table]) -> Iterator[Group]:
    """All records of a source, in groups, in the order of a hash.

    A text that compares things tells something of all of them. If it stood in the training split and one of them in the
    held-out split, the split would leak; so things are compared inside a group, and a group is one origin. Which group
    a record is in depends on its key and on the number of things in the source. Names that a table gives to several
    things are left out: what is asked of them has no one answer.
    """
    keys = {record.key for table in tables for record in table.records}
    count = max(MIN_GROUPS, math.ceil(len(keys) / PER_GROUP))
    parts: dict[tuple[int, int], list[Record]] = {}
    for place, table in enumerate(tables):
        bearers = Counter(record.name.casefold() for record in table.records)
        for record in table.records:
            if bearers[record.name.casefold()] == 1:
                part = text_key("group", source, record.key) % count
                parts.setdefault((part, place), []).append(record)
    order = sorted(range(count), key=lambda part: (text_key("order", source, str(part)), part))
    for part in order:
        for place, table in enumerate(tables):
            if (part, place) in parts:
                yield Group(f"{source}/{part}", table, sorted(parts[part, place], key=_hashed))


def _hashed(record: Record) -> tuple[int, str]:
    return text_key(record.key, record.name), record.name
