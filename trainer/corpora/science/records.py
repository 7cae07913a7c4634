"""Structured records: named things with properties, whose values are kept as the characters of their source.

A number is never rounded: `454.10` stays `454.10`, so its digits, precision and unit in any text are those of the
source.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from functools import cached_property, lru_cache

from trainer.data.hashing import text_key

PER_GROUP = 64  # records; enough for distractors of similar magnitude, few enough for an even held-out split
MIN_GROUPS = 4  # even for a small source, so that it has groups to hold out
DAMAGED = re.compile(r"[abeg]-[a-z]{3}")  # a name that lost its Greek letter: "e-metal", "b-carotene"
PLURAL_UNIT = re.compile(r"(?<![A-Z])\b[a-z]{2,}[^us]s$(?<!siemens)(?<!celsius)")  # "amino acids", "years"
PLURAL_NOUN = re.compile(r"[a-z]{2}[^ius\W]s$")  # "magnets", and not "glass", "corpus" or "basis"
SAID_AS_WORDS = {"SMILES", "NIST", "NASA", "FASTA"}
SAID_WITH_A_CONSONANT = re.compile(r"uni(?!m|n)|u[st][aeiu]|eu|one\b|ura|ubi")
SAID_WITH_A_VOWEL = re.compile(r"hour|hono|heir")


@dataclass(frozen=True)
class Property:
    """The meaning of a column, in the words that sentences are made of.

    label: a noun phrase that takes "the", "its" or an article before it. condition: an adverbial that follows the
    value or the name, such as "in the gas phase at 298.15 K". predicates: verb phrases with {value} that follow a name
    or "it"; "has a LABEL of {value}" if there are none, except where `had` is False. questions: complete ones with
    {called}, for this property only.
    """

    label: str  # "melting point"
    condition: str = ""
    unit: str = ""  # written after the number; "" for a pure number or a text
    number: bool = True
    quoted: bool = False  # a text that could run into the sentence around it, such as a SMILES string
    identifies: bool = False  # a text that belongs to one thing, so that a task may ask for the thing
    asked: bool = True  # in tasks; False where the value is only a catalogue number
    counted: tuple[str, str] = ("", "")  # ("ring", "rings") for a number of rings
    had: bool = True  # False where nothing "has a LABEL of" the value: "the molecule type is DNA"
    classed: bool = False  # a thing "is classed as a VALUE"
    stated: bool = True  # False where "its LABEL is VALUE" reads badly, and only the predicates make a sentence
    follows: bool = False  # after all others, as an uncertainty follows its value
    part: tuple[str, str] = ("", "")  # what of the thing has what: ("most abundant isotope", "a mass of {value}")
    possessive: str = ""  # in place of "its LABEL": "the mass of its most abundant isotope"
    plural: bool = False  # "keywords"
    several: bool = False  # "an alternative name", as there may be others
    happened: str = ""  # of a year: what happened to the thing then, "introduced"
    measured: bool = True  # False for a number that is counted, calculated or defined
    predicates: tuple[str, ...] = ()
    questions: tuple[str, ...] = ()
    extremes: tuple[str, str] = ("lowest", "highest")

    @cached_property
    def label_here(self) -> str:
        """The label with its condition: "enthalpy of formation in the gas phase at 298.15 K"."""
        return f"{self.label} {self.condition}".rstrip()

    @cached_property
    def label_of_many(self) -> str:
        """The label as things are compared by it: "the mass of their most abundant isotope"."""
        return self.possessive.replace("its ", "their ") or self.label_here

    @cached_property
    def article(self) -> str:
        return article(self.label)

    def of_name(self, name: str) -> str:
        """`melting point of NAME`, `enthalpy of formation of NAME in the gas phase at 298.15 K`."""
        return f"{self.label} {'in' if self.counted[0] else 'of'} {name} {self.condition}".rstrip()

    def written(self, value: str) -> str:
        """The value in a sentence: its digits as they are, its unit after them, in quotes where it needs them."""
        return f'"{value}"' if self.quoted else self.bare(value)

    def bare(self, value: str) -> str:
        """The value with its unit, without quotes."""
        if not self.unit:
            return value
        one = value == "1" and PLURAL_UNIT.search(self.unit)
        return f"{value} {self.unit[:-1] if one else self.unit}"

    @cached_property
    def all_predicates(self) -> tuple[str, ...]:
        """The predicates with their conditions, {value} left open."""
        if self.classed:
            return ("is classed as {value}",)
        if not self.had and not self.predicates:
            return ()
        condition = f" {self.condition}" if self.condition else ""
        usual = f"has {self.article} {self.label} of {{value}}" if self.number else f"has the {self.label} {{value}}"
        return tuple(one + condition for one in self.predicates or (usual,))

    def predicate(self, value: str, which: int = 0) -> str:
        """`has a melting point of 454.10 K`, `has 2 rings`, `has no rings`."""
        if self.counted[0]:
            return f"has {'no' if value == '0' else value} {self.counted[value != '1']}"
        if self.classed:
            return f"is classed {f'among the {value}' if PLURAL_NOUN.search(value) else f'as {with_article(value)}'}"
        predicates = self.all_predicates
        return predicates[which % len(predicates)].replace("{value}", self.written(value))


def article(noun: str) -> str:
    """The indefinite article that a noun phrase takes, by how its first word is said."""
    word = re.split(r"[ \-]", noun, maxsplit=1)[0]
    if word.isupper() and word not in SAID_AS_WORDS:
        return "an" if word[0] in "AEFHILMNORSX" else "a"
    if SAID_WITH_A_CONSONANT.match(word.lower()):
        return "a"
    return "an" if word[:1].lower() in "aeiou" or SAID_WITH_A_VOWEL.match(word.lower()) else "a"


def with_article(phrase: str) -> str:
    """`permanent magnet` -> `a permanent magnet`; a plural, such as `stainless steels`, takes no article."""
    return phrase if PLURAL_NOUN.search(phrase) else f"{article(phrase)} {phrase}"


@dataclass(frozen=True)
class Record:
    key: str  # of the thing: shared by all its records in all tables of a source, so that they stay in one split
    name: str
    values: Mapping[str, str]  # property -> value as the source writes it; a missing one is absent
    called: str = ""  # in a sentence, where that is not the name: "the Bohr radius"

    @property
    def in_sentence(self) -> str:
        return self.called or self.name


@dataclass(frozen=True)
class Table:
    """Records of one kind from one place."""

    name: str
    thing: str  # "compound"
    things: str  # "compounds"
    properties: Mapping[str, Property]
    records: Sequence[Record]
    authority: str = ""  # a noun phrase, such as "the 1998 JANAF tables": tables differ in their values
    heading: str = "name"  # of a column with the names
    quantities: bool = False  # the things are quantities: they have values and no "properties"
    left_out: Mapping[str, int] = field(default_factory=dict)  # reason -> number of values or records

    @cached_property
    def shared(self) -> frozenset[tuple[str, str]]:
        """The pairs (property, value) that several records have although the property should identify one."""
        keys = [key for key, prop in self.properties.items() if prop.identifies]
        counts = Counter((key, record.values[key]) for record in self.records for key in keys if key in record.values)
        return frozenset(pair for pair, count in counts.items() if count > 1)


@dataclass(frozen=True)
class RecordGroup:
    """Records of a table that stay in one split, so that they can be compared with one another."""

    origin: str
    table: Table
    records: Sequence[Record]


@lru_cache(65536)  # the same few values are compared many times
def number(text: str) -> Decimal | None:
    """The number that a text represents, such as `1.5e-3`; None for other texts, such as `nan`, `>5` and ``."""
    try:
        value = Decimal(text)
    except InvalidOperation:
        return None
    return value if value.is_finite() else None


def groups(source: str, tables: Sequence[Table]) -> Iterator[RecordGroup]:
    """All records of a source, in groups, in the order of a hash.

    A text that compares things has information about all of them. If it were in the training split and one of them in
    the held-out split, the split would leak. So things are compared only within a group, and a group is one origin. The
    group of a record depends on its key and on the number of things in the source. Names that a table gives to several
    things are left out, since a question about them has no single answer, and so are damaged names.
    """
    keys = {record.key for table in tables for record in table.records}
    count = max(MIN_GROUPS, math.ceil(len(keys) / PER_GROUP))
    parts: dict[tuple[int, int], list[Record]] = {}
    for place, table in enumerate(tables):
        counts = Counter(record.name.casefold() for record in table.records)
        for record in table.records:
            if counts[record.name.casefold()] == 1 and not DAMAGED.match(record.name):
                part = text_key("group", source, record.key) % count
                parts.setdefault((part, place), []).append(record)
    order = sorted(range(count), key=lambda part: (text_key("order", source, str(part)), part))
    for part in order:
        for place, table in enumerate(tables):
            if (part, place) in parts:
                yield RecordGroup(f"{source}/{part}", table, sorted(parts[part, place], key=_hashed))


def _hashed(record: Record) -> tuple[int, str]:
    return text_key(record.key, record.name), record.name
