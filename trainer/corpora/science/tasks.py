"""Records as tasks: question and answer, completion, multiple choice, ranking.

A task compares a record only with records of its group, so that nothing held out appears in another split. It has one
right answer: the values of its options and those that it ranks are `distinct`.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import lru_cache

from trainer.corpora.science import fields, phrases
from trainer.corpora.science.draw import Draw
from trainer.corpora.science.records import Property, Record, Table, number

SEPARATION = Decimal("0.01")  # relative; nearer values may be one value measured twice
MAGNITUDE = 4  # a distractor has the same sign and is at most this many times larger or smaller
OPTIONS = 4
RANKED = (3, 5)  # at least and at most this many things are ranked
NEAR_IN_LENGTH = 8  # the distractors of a text are drawn from this many texts of similar length
SEPARATOR = re.compile(r"[;<>\n]")  # a name with one of these needs a line of its own in a list


@dataclass(frozen=True)
class Task:
    """A prompt with one right answer."""

    form: str  # qa, completion, choice, ranking
    key: str  # the property
    template: str  # names the templates that it is made of
    prompt: str
    frame: str  # follows the prompt: "{answer}" and the text around it
    short: str  # the answer without reasoning
    finals: tuple[str, ...]  # short forms of the right answer, for checking the answers of others
    asked: str = ""  # the prompt without the layout around it; empty for a completion
    options: tuple[str, ...] = ()  # of a choice, in their order
    value_of: Property | None = None  # the property whose value a question asks for

    @property
    def answer(self) -> str:
        return self.frame.replace("{answer}", self.short)

    @property
    def text(self) -> str:
        return self.prompt + self.answer

    def reasoned(self, chain: str) -> str:
        """The text with a chain of reasoning before the answer, which stays as the record has it."""
        return self.prompt + self.frame.replace("{answer}", f"{chain}\n{self.short}")


def distinct(a: str, b: str, prop: Property) -> bool:
    """True if two values of a property are surely different: two numbers by SEPARATION and by more than one unit of the
    last digit of either."""
    if not prop.number:
        return a.casefold() != b.casefold()
    x, y = number(a), number(b)
    if x is None or y is None:
        raise ValueError(f"{prop.label}: '{a}' or '{b}' is not a number")
    return abs(x - y) > max(_last_digit(a), _last_digit(b), SEPARATION * max(abs(x), abs(y)))


@lru_cache(65536)  # the same few values are compared many times
def _last_digit(value: str) -> Decimal:
    """One unit of the last digit that a number is written with."""
    return Decimal(1).scaleb(int(Decimal(value).as_tuple().exponent))


def _similar(a: str, b: str) -> bool:
    """True if two numbers have the same sign and are within a factor of MAGNITUDE."""
    x, y = float(a), float(b)
    return x * y > 0 and abs(x) <= MAGNITUDE * abs(y) and abs(y) <= MAGNITUDE * abs(x)


def tasks(record: Record, table: Table, companions: Sequence[Record], draw: Draw) -> Iterator[Task]:
    """The record in those of the four forms that it has the values for, in an order of its own.

    companions: the records of its group. A form is left out where the record lacks a value for it or its companions
    have too few values to compare.
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
        """One of the record's properties that tasks may ask for and that are wanted."""
        have = [(key, prop) for key, prop in self.table.properties.items() if key in self.record.values]
        keys = [key for key, prop in have if prop.asked and wanted(key)]
        return draw.one_of(keys, "property") if keys else None

    def identified_by(self, key: str) -> bool:
        """True if this is the only record of its table with its value of the property."""
        return self.table.properties[key].identifies and (key, self.record.values[key]) not in self.table.shared

    def words(self, key: str, draw: Draw) -> dict[str, str]:
        """The fields of the templates for this property of the record."""
        return fields.of_value(self.record, self.table, key, draw)

    def final(self, key: str) -> str:
        """The value with its unit, without the quotes that a sentence needs."""
        return self.table.properties[key].bare(self.record.values[key])


def _drawn(templates: Sequence[str], words: Mapping[str, str], draw: Draw, what: str) -> tuple[int, str]:
    """(place, text) of one of the templates that have all their fields."""
    places = phrases.usable(templates, words)
    place = places[draw.below(len(places), what)]
    return place, phrases.fill(templates[place], words)


def _hints(words: Mapping[str, str], prompt: str, draw: Draw) -> str:
    hint = ""
    if "unit" in words and draw.below(2, "unit hint"):
        hint += _drawn(phrases.UNIT_HINTS, words, draw, "unit words")[1]
    if "authority" in words and words["authority"] not in prompt and draw.below(2, "source hint"):
        hint += _drawn(phrases.SOURCE_HINTS, words, draw, "source words")[1]
    return hint


def _laid_out(
    form: str,
    key: str,
    template: str,
    prompt: str,
    answer: str,
    finals: tuple[str, ...],
    draw: Draw,
    options: tuple[str, ...] = (),
) -> Task:
    layout = draw.one_of(phrases.layouts(prompt, form == "choice"), "layout")
    before, after = phrases.LAYOUTS[layout]
    whole = before.format(prompt=prompt)
    return Task(form, key, f"{template} in {layout}", whole, after, answer, finals, prompt, options)


def _question(subject: _Subject, draw: Draw) -> Task | None:
    """Asks for a value, or for the thing that a value identifies."""
    key = subject.pick(draw, subject.identified_by) if draw.below(3, "whose") == 0 else None
    whose = key is not None
    key = key or subject.pick(draw, lambda _: True)
    if key is None:
        return None
    words = subject.words(key, draw)
    asks, answers = (phrases.WHOSE, phrases.WHOSE_ANSWERS) if whose else (phrases.QUESTIONS, phrases.ANSWERS)
    ask, prompt = _drawn(asks, words, draw, "ask")
    if not whose and (prompt.startswith(phrases.CONVERSATION) or "?" not in prompt):
        del words["noun"]  # "The answer is" answers a question, not a request
    answered, answer = _drawn(answers, words, draw, "answer")
    if not whose:
        prompt += _hints(words, prompt, draw)
    finals = (subject.record.name if whose else subject.final(key),)
    made = _laid_out("qa", key, f"{'whose' if whose else 'what'} {ask} {answered}", prompt, answer, finals, draw)
    return made if whose else replace(made, value_of=subject.table.properties[key])


def _completion(subject: _Subject, draw: Draw) -> Task | None:
    """A text that stops before a value, and its end."""
    key = subject.pick(draw, lambda _: True)
    if key is None:
        return None
    words = subject.words(key, draw)
    places = phrases.usable(tuple(map("".join, phrases.STEMS)), words)
    stem = places[draw.below(len(places), "stem")]
    if stem == phrases.JSON_STEM:
        words = {one: json.dumps(words[one], ensure_ascii=False) for one in ("heading", "name", "full")}
        words["value"] = json.dumps(subject.final(key), ensure_ascii=False)
    before, after = (phrases.fill(part, words) for part in phrases.STEMS[stem])
    return Task("completion", key, f"stem {stem}", before, "{answer}\n", after, (subject.final(key),))


def _different(first: Record, others: Iterable[Record], key: str, prop: Property, count: int) -> list[Record]:
    """The first and up to `count` of the others, all with different names and distinct values of the property."""
    chosen, names = [first], {first.name}
    for other in others:
        if len(chosen) > count:
            break
        if other.name not in names and all(distinct(other.values[key], one.values[key], prop) for one in chosen):
            chosen.append(other)
            names.add(other.name)
    return chosen


def _distractors(subject: _Subject, key: str, draw: Draw) -> list[Record] | None:
    """Records with values of this property that are similar to the subject's and distinct from it and each other."""
    prop, own = subject.table.properties[key], subject.record.values[key]
    able = draw.shuffled([other for other in subject.others if key in other.values], "distractors")
    if prop.number:
        able = [other for other in able if _similar(other.values[key], own)]
    else:
        able = sorted(able, key=lambda other: abs(len(other.values[key]) - len(own)))[:NEAR_IN_LENGTH]
        able = draw.shuffled(able, "near")
    chosen = _different(subject.record, able, key, prop, OPTIONS - 1)[1:]
    return chosen if len(chosen) == OPTIONS - 1 else None


def _choice(subject: _Subject, draw: Draw) -> Task | None:
    """Four values of one thing, or four things for one value."""
    key = subject.pick(draw, lambda _: True)
    distractors = _distractors(subject, key, draw) if key is not None else None
    if key is None or distractors is None:
        return None
    record, prop, words = subject.record, subject.table.properties[key], subject.words(key, draw)
    by_name = draw.below(2, "by name") == 1
    right = draw.below(OPTIONS, "position")
    options = [*distractors[:right], record, *distractors[right:]]
    shown = [one.name if by_name else prop.written(one.values[key]) for one in options]
    style = draw.below(len(phrases.LABELS), "labels")
    line, mark = phrases.LABELS[style]
    marks = [{"letter": "ABCD"[place], "number": str(place + 1)} for place in range(OPTIONS)]
    listed = [line.format(option=option, **one) for option, one in zip(shown, marks, strict=True)]
    words["of_one"] = prop.of_name(f"one of these {subject.table.things}")
    words |= {"mark": mark.format(**marks[right]), "line": listed[right]}
    ask, prompt = _drawn(phrases.CHOICE_OF_NAME if by_name else phrases.CHOICE_OF_VALUE, words, draw, "ask")
    answered, answer = _drawn(phrases.CHOICE_ANSWERS, words, draw, "answer")
    template = f"{'name' if by_name else 'value'} {ask} {style} {answered}"
    finals = (words["mark"], shown[right], listed[right])
    return _laid_out("choice", key, template, "\n".join((prompt, *listed)), answer, finals, draw, tuple(shown))


def _with_values(records: Sequence[Record], key: str, prop: Property) -> list[str]:
    """`toluene (178.1 K)`, or `ammonia (NH3): 195.4 K` where one of the names ends with a bracket."""
    bracket = any(one.name.endswith((")", "]")) for one in records)
    pairs = [(one.name, prop.written(one.values[key])) for one in records]
    return [f"{name}: {value}" if bracket else f"{name} ({value})" for name, value in pairs]


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
    rising = draw.below(2, "rising")
    ranked = sorted(chosen, key=lambda one: number(one.values[key]) or Decimal(0), reverse=not rising)
    first = _Subject(ranked[0], subject.table, subject.others)
    words = first.words(key, draw) | {"low": prop.extremes[0], "high": prop.extremes[1]}
    words |= fields.of_extreme(prop, ranked[0].values[key], prop.extremes[not rising])
    orders = [one.format(**words) for one in phrases.ORDERS[rising]]
    which = draw.below(len(orders), "order")
    words |= {"order": orders[which], "from_to": orders[which % 2], "in_order": orders[which or 1]}
    words["by"] = prop.label_of_many
    inline = not any(SEPARATOR.search(one.name) for one in chosen)
    names = [one.name for one in ranked]
    with_values = _with_values(ranked, key, prop)
    words |= {"by_line": "\n".join(names), "values_by_line": "\n".join(with_values), "name_and_value": with_values[0]}
    if inline:
        joint = "; " if prop.happened else draw.one_of((" < " if rising else " > ", "; "), "joint")
        words |= {"in_line": joint.join(names), "values_in_line": joint.join(with_values)}
        words["series" if joint == "; " else "chain"] = words["in_line"]
    # "The heaviest most abundant isotope" would say two superlatives.
    extreme = not prop.part[0] and draw.below(2, "extreme") == 1
    asks, answers = (phrases.EXTREMES, phrases.EXTREME_ANSWERS) if extreme else (phrases.RANKINGS, phrases.RANKED)
    ask, prompt = _drawn(asks, words, draw, "ask")
    answered, answer = _drawn(answers, words, draw, "answer")
    by_line = not inline or prompt.endswith("?")
    style = draw.below(phrases.LISTS_BY_LINE if by_line else len(phrases.LISTS), "list")
    before, between = phrases.LISTS[style]
    prompt += before.removeprefix(":") if prompt.endswith("?") else before
    prompt += between.join(one.name for one in draw.shuffled(chosen, "shown"))
    finals = (
        (names[0],) if extreme else tuple(other.join(names) for other in (" < " if rising else " > ", "; ", "\n", ", "))
    )
    template = f"{'extreme' if extreme else 'order'} {rising} {ask} {style} {answered}"
    return _laid_out("ranking", key, template, prompt, answer, finals, draw)
