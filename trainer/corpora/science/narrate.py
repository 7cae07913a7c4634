"""A record as prose or as a data sheet, with every value as its source writes it."""

import json
from collections.abc import Sequence
from functools import cache

from trainer.corpora.science import fields, phrases
from trainer.corpora.science.draw import Draw
from trainer.corpora.science.records import Property, Record, Table

ALL_OF = 4  # properties; a record with more leaves some out
CARD = 6  # one text in this many is a data sheet
TOGETHER = 5  # values of one label in a text, at most
ON_ONE_LINE = 5  # rows of a data sheet, at most
LONG = 60  # characters; longer values get a sentence of their own
Words = dict[str, str]


def narrate(record: Record, table: Table, draw: Draw) -> tuple[str, str]:
    """(text, the templates it is made of). The text has the record's name and two or more of its properties, or the
    only one."""
    keys = draw.shuffled([key for key in table.properties if key in record.values], "properties")
    if len(keys) > ALL_OF:
        keys = keys[:2] + [key for key in keys[2:] if draw.below(4, f"use {key}")]
    keys.sort(key=lambda key: table.properties[key].follows)
    if draw.below(CARD, "card") == 0:
        return _card(record, table, keys, draw)
    return _Prose(record, table, draw).write(keys)


class _Prose:
    """A paragraph about one record; `used` collects the templates."""

    def __init__(self, record: Record, table: Table, draw: Draw) -> None:
        self._record, self._table, self._draw = record, table, draw
        self._words = fields.of_record(record, table)
        self._named = False  # the text so far has the name, so that "it" can follow
        self._last_opening = ""  # the first word of the last sentence
        self._about_value = False  # the last sentence is about a value, so that "it" would be that value
        self.used: list[str] = []

    def write(self, keys: Sequence[str]) -> tuple[str, str]:
        draw, several = self._draw, len(keys) > 1
        kind = ("none", "none", "title", "sentence")[draw.below(4, "opening")]
        title = self._say("TITLES", phrases.TITLES) if kind == "title" else ""
        if kind == "sentence":
            openings = phrases.OPENINGS_OF_SEVERAL if several else phrases.OPENINGS
            more = {} if self._table.quantities else {"properties": "properties"}
            title = self._say("OPENINGS", openings, **more)
            self._named = True
        sentences = self._sentences(_bundles(keys, self._table))
        authority = self._table.authority
        if authority and draw.below(3, "authority") == 0 and not any(authority in one for one in (title, *sentences)):
            self._words["These_values"] = "These values are" if several else "This value is"
            sentences.append(self._say("SOURCES", phrases.SOURCES, source=authority.removeprefix("the ")))
        body = " ".join(sentences)
        shape = draw.below(2, "shape") + (kind == "title")  # a title takes a line of its own
        if kind != "none":
            body = phrases.SHAPES[shape].format(opening=title, body=body)
        return body + "\n", f"prose {kind} {shape} {' '.join(self.used)}"

    def _say(self, what: str, templates: Sequence[str], **more: str) -> str:
        words = self._words | more
        usable = phrases.usable(templates, words)
        # No two sentences in a row open with the same word, where there is a choice.
        varied = [place for place in usable if _first_word(templates[place]) != self._last_opening] or usable
        if self._about_value:
            varied = [place for place in varied if not phrases.says_it(templates[place])] or varied
        place = varied[self._draw.below(len(varied), f"{what} {len(self.used)}")]
        self.used.append(f"{what[:5]}{place}")
        self._last_opening = _first_word(templates[place])
        self._about_value = templates[place].startswith(phrases.ABOUT_VALUE)
        return phrases.fill(templates[place], words)

    def _sentences(self, bundles: Sequence[list[str]]) -> list[str]:
        """A sentence for each bundle; two short ones are sometimes joined."""
        sentences: list[str] = []
        place = 0
        while place < len(bundles):
            key, *others = bundles[place]
            place += 1
            if others:
                sentences += self._under_conditions([key, *others])
                continue
            words = fields.of_value(self._record, self._table, key, self._draw.part(key))
            prop = self._table.properties[key]
            first, self._named = not self._named, True
            alone = place == len(bundles) or len(bundles[place]) > 1
            able = "predicate" in words and (not first or "Opening" in words)
            if not alone and (sentence := self._followed(words, bundles[place][0], first)):
                place += 1
                sentences.append(sentence)
                continue
            able = able and (first or not (self._last_opening == "It" or self._about_value))
            if not alone and able and self._draw.below(3, f"join {place}") == 0:
                next_key = bundles[place][0]
                next_words = fields.of_value(self._record, self._table, next_key, self._draw.part(next_key))
                also = next_words.get("predicate", "")
                other = self._table.properties[next_key]
                twice = prop.label in other.condition or other.label in prop.condition  # "at the normal boiling point"
                if also and not twice and len(words["predicate"] + also) <= 2 * LONG and not (prop.quoted and first):
                    place += 1
                    also = also.removeprefix("has ") if words["predicate"].startswith("has ") else also
                    pair = phrases.FIRST_PAIR if first else phrases.PAIR
                    sentences.append(self._say("PAIR", (pair,), **words, also=also))
                    continue
            templates: Sequence[str]
            if prop.several:
                templates = phrases.ONE_OF_SEVERAL_FIRST if first else phrases.ONE_OF_SEVERAL
            elif prop.classed and first:
                templates = phrases.CLASSED_FIRST
            elif prop.happened:
                templates = phrases.DATED_FIRST if first else phrases.DATED
            elif first:
                templates = phrases.FIRST + (phrases.FIRST_MEASURED if prop.number and prop.measured else ())
            elif prop.number:
                templates = phrases.STATEMENTS + (phrases.MEASURED if prop.measured else ())
            else:
                templates = phrases.TEXT_STATEMENTS
            sentences.append(self._say("FIRST" if first else "NEXT", templates, **words))
        return sentences

    def _followed(self, words: Words, key: str, first: bool) -> str:
        """The value with its uncertainty; "" where no uncertainty follows, or in half of the texts."""
        prop = self._table.properties[key]
        if not (prop.follows and prop.had) or "is" not in words or self._draw.below(2, f"follow {key}"):
            return ""
        following = f"{prop.article} {prop.label} of {prop.written(self._record.values[key])}"
        templates = phrases.FOLLOWED_FIRST if first else phrases.FOLLOWED
        return self._say("FOLLOWED", templates, **words, following=following)

    def _under_conditions(self, keys: Sequence[str]) -> list[str]:
        """The values of one label under several conditions, those in one phase together."""
        properties = self._table.properties
        parts = {key: _phase_and_point(properties[key]) for key in keys}
        phases = {phase: [key for key in keys if parts[key][0] == phase] for phase, _ in parts.values()}
        points = {point for _, point in parts.values()}
        if len(phases) == 1 and "" not in points:
            return [self._several(keys, shared=next(iter(phases)), rest=[parts[key][1] for key in keys])]
        if len(phases) > 1 and len(points) > 1 and max(len(some) for some in phases.values()) > 1:
            return [self._several(some, phase, [parts[key][1] for key in some]) for phase, some in phases.items()]
        if len(points) == 1 and points != {""}:
            return [self._several(keys, shared=points.pop(), rest=[parts[key][0] for key in keys])]
        return [self._several(keys, "", [properties[key].condition for key in keys])]

    def _several(self, keys: Sequence[str], shared: str, rest: Sequence[str]) -> str:
        prop = self._table.properties[keys[0]]
        values = [self._table.properties[key].written(self._record.values[key]) for key in keys]
        listed = _listed(list(zip(values, rest, strict=True)))
        words = {"label": prop.label, "a_label": f"{prop.article} {prop.label}", "values": listed}
        named, self._named = self._named, True
        if not shared:
            return self._say("SEVERAL", phrases.SEVERAL if named else phrases.SEVERAL_FIRST, **words)
        templates = phrases.SHARED if named else phrases.SHARED_FIRST
        return self._say("SHARED", templates, **words, Shared=fields.capital(shared))


def _bundles(keys: Sequence[str], table: Table) -> list[list[str]]:
    """The properties in the order of the text: those of one label together, in the order of the table."""
    bundles: dict[str, list[str]] = {}
    for key in keys:
        prop = table.properties[key]
        bundle = bundles.setdefault(prop.label if prop.condition and prop.number else key, [])
        if len(bundle) < TOGETHER:
            bundle.append(key)
    order = list(table.properties)
    return [sorted(bundle, key=order.index) if len(bundle) > 1 else bundle for bundle in bundles.values()]


def _listed(values: Sequence[tuple[str, str]]) -> str:
    """`2 J at 1 K and 3 J at 2 K`; equal values in a row are written once: `2 J at both 1 K and 2 K`."""
    runs: list[tuple[str, list[str]]] = []
    for value, at in values:
        if runs and runs[-1][0] == value and at.startswith("at "):
            runs[-1][1].append(at.removeprefix("at "))
        else:
            runs.append((value, [at]))
    listed = []
    for value, places in runs:
        *most, last = places
        if len(most) == 1:
            places = [f"at both {most[0].removeprefix('at ')} and {last}"]
        elif most:
            places = [f"{', '.join(most)} and {last}"]
        listed.append(f"{value} {places[0]}".rstrip())
    *most, last = listed
    if len(most) > 1 and any(len(places) > 1 for _, places in runs):
        return f"{'; '.join(most)}; and {last}"
    if most and any(len(places) > 2 for _, places in runs):
        return f"{most[0]}, and {last}"
    return f"{', '.join(most)} and {last}" if most else last


@cache
def _first_word(template: str) -> str:
    return template.partition(" ")[0].strip("{}").partition("_")[0]


def _phase_and_point(prop: Property) -> tuple[str, str]:
    """`in the gas phase at 298.15 K` -> (`in the gas phase`, `at 298.15 K`)."""
    phase, at, point = prop.condition.partition(" at ")
    return phase, f"at {point}" if at else ""


def _card(record: Record, table: Table, keys: Sequence[str], draw: Draw) -> tuple[str, str]:
    """A data sheet: rows of property and value, a line of all, or a JSON object."""
    style = draw.below(len(phrases.CARDS) + 2, "style")
    keys = [key for bundle in _bundles(keys, table) for key in bundle]
    rows = [(table.properties[key].label_here, table.properties[key].bare(record.values[key])) for key in keys]
    if style > len(phrases.CARDS):
        plain = {table.properties[key].label_here: table.properties[key].bare(record.values[key]) for key in keys}
        return json.dumps({table.heading: record.name} | plain, ensure_ascii=False) + "\n", "card json"
    rows.insert(0, (table.heading, record.name))
    if table.authority and draw.below(2, "authority"):
        rows.append(("source", table.authority.removeprefix("the ")))
    if style == len(phrases.CARDS):
        if len(rows) <= ON_ONE_LINE and not any(";" in value or "," in value for _, value in rows):
            (heading, name), *others = rows
            line = "; ".join((f"{fields.capital(heading)}: {name}", *(f"{label}: {value}" for label, value in others)))
            return line + "\n", "card line"
        style = 0
    before, row = phrases.CARDS[style]
    lines = [row.format(Label=fields.capital(label), value=value) for label, value in rows]
    return before + "\n".join(lines) + "\n", f"card {style}"
