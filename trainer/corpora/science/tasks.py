"""Records as tasks: question and answer, completion, multiple choice, ranking.

A task compares a record only with records of its group, so that what is held out is not told elsewhere. It has one
right answer: the values of its options, and those that it ranks, are `apart`.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal

from trainer.corpora.science import phrases
from trainer.corpora.science.draw import Draw
from trainer.corpora.science.records import Property, Record, Table, number

SEPARATION = Decimal("0.01")  # relative; nearer values may be one value measured twice
MAGNITUDE = 4  # a distractor is of the same sign and at most so many times larger or smaller
OPTIONS = 4
RANKED = (3, 5)  # at least and at most so many things are ranked
NEAR_IN_LENGTH = 8  # the distractors of a text are drawn from so many texts of like length
LISTED = re.compile(r"[;<>\n]")  # in a name: it can only stand on a line of its own


@dataclass(frozen=True)
class Task:
    """A prompt and what follows it. `finals` are short forms of the one right answer, for who checks another's."""

    form: str  # qa, completion, choice, ranking
    asked: str  # the property
    template: str  # which templates it is made of
    prompt: str
    follows: str  # the prompt: "{answer}" and what stands around it
    said: str  # the answer
    finals: tuple[str, ...]

    @property
    def answer(self) -> str:
        return self.follows.replace("{answer}", self.said)

    @property
    def text(self) -> str:
        return self.prompt + self.answer

    def reasoned(self, chain: str) -> str:
        """The text with a chain of reasoning before the answer, which stays as the record has it."""
        return self.prompt + self.follows.replace("{answer}", f"{chain}\n{self.said}")


def apart(a: str, b: str, prop: Property) -> bool:
    """Whether two values of a property are surely different: two numbers by SEPARATION, and by more than a unit of the
    last digit that either is written with."""
    if not prop.number:
        return a.casefold() != b.casefold()
    x, y = number(a), number(b)
    if x is None or y is None:
        raise ValueError(f"{prop.said}: '{a}' or '{b}' is no number")
    last_digit = Decimal(1).scaleb(max(int(value.as_tuple().exponent) for value in (x, y)))
    return abs(x - y) > max(last_digit, SEPARATION * max(abs(x), abs(y)))


def _alike(a: str, b: str) -> bool:
    """Whether two numbers are of one sign and magnitude."""
    x, y = float(a), float(b)
    return x * y > 0 and abs(x) <= MAGNITUDE * abs(y) and abs(y) <= MAGNITUDE * abs(x)


def tasks(record: Record, table: Table, companions: Sequence[Record], draw: Draw) -> Iterator[Task]:
    """The record in those of the four forms that can be made of it, in an order of its own.

    companions: the records of its group. A form is left out where the record lacks a value for it, or its companions
    have not enough values to compare.
    """
    forms: list[tuple[str, Callable[[_Subject, Draw], Task | None]]] = [
        ("qa", _question), ("completion", _completion), ("choice", _choice), ("ranking", _ranking)
    ]  # fmt: skip
    others = [other for other in companions if other.key != record.key]
    for name, make in draw.shuffled(forms, "forms"):
        part = draw.part(name)
        task = make(_Subject(record, table, others), part)
        if task is not None:
            yield task


@dataclass(frozen=True)
class _Subject:
    record: Record
    table: Table
    others: Sequence[Record]

    def pick(self, draw: Draw, wanted: Callable[[str], bool]) -> str | None:
        """A property that the record has, that tasks may ask for and that is wanted."""
        have = [(key, prop) for key, prop in self.table.properties.items() if key in self.record.values]
        keys = [key for key, prop in have if prop.asked and wanted(key)]
        return draw.one_of(keys, "property") if keys else None

    def identified_by(self, key: str) -> bool:
        """Whether this is the only record of its table with its value of the property."""
        return self.table.properties[key].identifies and (key, self.record.values[key]) not in self.table.shared

    def words(self, key: str) -> dict[str, str]:
        """What the templates may say of the record and this property of it."""
        prop, name = self.table.properties[key], self.record.name
        return {
            "name": name, "of": prop.of_name(name), "said": prop.said, "Said": prop.said[:1].upper() + prop.said[1:],
            "value": prop.written(self.record.values[key]), "unit": prop.unit, "authority": self.table.authority,
            "thing": self.table.thing, "things": self.table.things,
        }  # fmt: skip

    def final(self, key: str) -> str:
        """The value with its unit, without the quotes that a sentence needs."""
        prop, value = self.table.properties[key], self.record.values[key]
        return f"{value} {prop.unit}" if prop.unit else value


def _hints(subject: _Subject, prop: Property, words: dict[str, str], draw: Draw) -> str:
    hint = ""
    if prop.number and prop.unit and draw.below(2, "unit hint"):
        hint += draw.one_of(phrases.UNIT_HINTS, "unit words").format(**words)
    if subject.table.authority and draw.below(2, "source hint"):
        hint += draw.one_of(phrases.SOURCE_HINTS, "source words").format(**words)
    return hint


def _laid_out(
    form: str, key: str, template: str, prompt: str, answer: str, finals: tuple[str, ...], draw: Draw
) -> Task:
    layout = draw.below(len(phrases.LAYOUTS), "layout")
    before, after = phrases.LAYOUTS[layout]
    return Task(form, key, f"{template} in {layout}", before.format(prompt=prompt), after, answer, finals)


def _question(subject: _Subject, draw: Draw) -> Task | None:
    """Asks for a value, or for the thing that a value identifies."""
    key = subject.pick(draw, subject.identified_by) if draw.below(3, "whose") == 0 else None
    whose = key is not None
    key = key or subject.pick(draw, lambda _: True)
    if key is None:
        return None
    words = subject.words(key)
    asks, tells = (phrases.WHOSE, phrases.WHOSE_ANSWERS) if whose else (phrases.QUESTIONS, phrases.ANSWERS)
    ask, tell = draw.below(len(asks), "ask"), draw.below(len(tells), "tell")
    hints = "" if whose else _hints(subject, subject.table.properties[key], words, draw)
    prompt, answer = asks[ask].format(**words) + hints, tells[tell].format(**words)
    finals = (subject.record.name if whose else subject.final(key),)
    return _laid_out("qa", key, f"{'whose' if whose else 'what'} {ask} {tell}", prompt, answer, finals, draw)


def _completion(subject: _Subject, draw: Draw) -> Task | None:
    """A text that stops where a value comes, and its end."""
    key = subject.pick(draw, lambda _: True)
    if key is None:
        return None
    words = subject.words(key)
    quoted = {name: json.dumps(words[name], ensure_ascii=False) for name in ("name", "said")}
    quoted["value"] = json.dumps(subject.final(key), ensure_ascii=False)
    stem = draw.below(len(phrases.STEMS), "stem")
    fields = quoted if stem == phrases.JSON_STEM else words
    before, after = (part.format(**fields) for part in phrases.STEMS[stem])
    return Task("completion", key, f"stem {stem}", before, "{answer}\n", after, (subject.final(key),))


def _different(first: Record, others: Iterable[Record], key: str, prop: Property, count: int) -> list[Record]:
    """The first and up to `count` of the others, all with different names and values of the property that are apart."""
    chosen, names = [first], {first.name}
    for other in others:
        if len(chosen) > count:
            break
        if other.name not in names and all(apart(other.values[key], one.values[key], prop) for one in chosen):
            chosen.append(other)
            names.add(other.name)
    return chosen


def _distractors(subject: _Subject, key: str, draw: Draw) -> list[Record] | None:
    """Records whose value of this property is like the subject's, and apart from it and from one another."""
    prop, own = subject.table.properties[key], subject.record.values[key]
    able = draw.shuffled([other for other in subject.others if key in other.values], "distractors")
    if prop.number:
        able = [other for other in able if _alike(other.values[key], own)]
    else:
        able = sorted(able, key=lambda other: abs(len(other.values[key]) - len(own)))[:NEAR_IN_LENGTH]
        able = draw.shuffled(able, "near")
    chosen = _different(subject.record, able, key, prop, OPTIONS - 1)[1:]
    return chosen if len(chosen) == OPTIONS - 1 else None


def _choice(subject: _Subject, draw: Draw) -> Task | None:
    """The right one of four values of a thing, or of four things for a value."""
    key = subject.pick(draw, lambda _: True)
    distractors = _distractors(subject, key, draw) if key is not None else None
    if key is None or distractors is None:
        return None
    record, prop, words = subject.record, subject.table.properties[key], subject.words(key)
    by_name = draw.below(2, "by name") == 1
    right = draw.below(OPTIONS, "position")
    options = [*distractors[:right], record, *distractors[right:]]
    shown = [one.name if by_name else prop.written(one.values[key]) for one in options]
    style = draw.below(len(phrases.LABELS), "labels")
    line, name = phrases.LABELS[style]
    marks = [{"letter": "ABCD"[place], "number": str(place + 1)} for place in range(OPTIONS)]
    listed = [line.format(option=option, **mark) for option, mark in zip(shown, marks, strict=True)]
    asks = phrases.CHOICE_OF_NAME if by_name else phrases.CHOICE_OF_VALUE
    ask, tell = draw.below(len(asks), "ask"), draw.below(len(phrases.CHOICE_ANSWERS), "tell")
    prompt = asks[ask].format(**words) + "\n" + "\n".join(listed)
    label = name.format(**marks[right])
    answer = phrases.CHOICE_ANSWERS[tell].format(label=label, option=shown[right], **words)
    template = f"{'name' if by_name else 'value'} {ask} {style} {tell}"
    return _laid_out("choice", key, template, prompt, answer, (label, shown[right], listed[right]), draw)


def _ranking(subject: _Subject, draw: Draw) -> Task | None:
    """Several things in the order of a property, or the first of them."""
    key = subject.pick(draw, lambda key: subject.table.properties[key].number)
    if key is None:
        return None
    prop = subject.table.properties[key]
    others = draw.shuffled([other for other in subject.others if key in other.values], "ranked")
    count = RANKED[0] + draw.below(RANKED[1] - RANKED[0] + 1, "how many")
    chosen = _different(subject.record, others, key, prop, count - 1)
    if len(chosen) < RANKED[0]:
        return None
    rising = draw.below(2, "rising") == 0
    ranked = sorted(chosen, key=lambda one: number(one.values[key]) or Decimal(0), reverse=not rising)
    words = subject.words(key)
    words |= {"order": draw.one_of(phrases.ORDERS[rising], "order"), "extreme": phrases.EXTREME[rising]}
    words |= {"name": ranked[0].name, "value": prop.written(ranked[0].values[key])}
    inline = not any(LISTED.search(one.name) for one in chosen)
    style = draw.below(len(phrases.LISTS) if inline else phrases.LISTS_BY_LINE, "list")
    before, between = phrases.LISTS[style]
    shown = before + between.join(one.name for one in draw.shuffled(chosen, "shown"))
    extreme = draw.below(2, "extreme") == 1
    asks, tells = (phrases.EXTREMES, phrases.EXTREME_ANSWERS) if extreme else (phrases.RANKINGS, phrases.RANKED)
    ask, tell = draw.below(len(asks), "ask"), draw.below(len(tells), "tell")
    names = [one.name for one in ranked]
    sign = " < " if rising else " > "
    joint = draw.one_of((sign, "; ", "\n"), "joint") if inline else "\n"
    words["ranked"] = joint.join(names)
    words["valued"] = joint.join(f"{one.name} ({prop.written(one.values[key])})" for one in ranked)
    finals = (names[0],) if extreme else tuple(other.join(names) for other in (sign, "; ", "\n", ", "))
    template = f"{'extreme' if extreme else 'order'} {rising:d} {ask} {style} {tell}"
    return _laid_out(
        "ranking", key, template, asks[ask].format(**words) + shown, tells[tell].format(**words), finals, draw
    )
