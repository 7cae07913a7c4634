import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from decimal import Decimal

import pytest

from trainer.corpora.science import phrases
from trainer.corpora.science.names import opening
from trainer.corpora.science.records import Property, Record, Table, groups
from trainer.corpora.science.tasks import MAGNITUDE, SEPARATION
from trainer.corpora.science.texts import NARRATION, Text, texts

NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")
MASS, COLOUR = Property("mass", unit="kg"), Property("colour", number=False)


def things(count: int, **values: str) -> Table:
    records = [Record(f"k{n}", f"thing {'abcdefghij'[n]}", {"mass": f"{n + 1}.50", **values}) for n in range(count)]
    return Table("made", "object", "objects", {"mass": MASS, "colour": COLOUR}, records)


def named(name: str, text: str) -> bool:
    """True if the text has the name, as it is or as it opens a sentence."""
    return name in text or (opening(name) or name) in text


def of_form(made: list[Text], form: str) -> list[Text]:
    found = [text for text in made if text.form == form]
    assert len(found) > 500
    return found


def test_every_number_is_a_value_of_the_record_with_its_digits_and_unit(made: list[Text], tables: list[Table]) -> None:
    records = defaultdict(list)
    for table in tables:
        for record in table.records:
            records[record.key].append((table, record))
    numbers_seen = 0
    for text in of_form(made, NARRATION):
        (owner,) = (
            (table, record)
            for table, record in records[text.key]
            if record.name == text.name and table.name == text.table
        )
        table, record = owner
        rest = text.text.replace(record.name, "NAME").replace(opening(record.name) or "NAME", "NAME")
        conditions = {prop.condition for prop in table.properties.values()} - {""}
        conditions |= {f"at {condition.partition(' at ')[2]}" for condition in conditions if " at " in condition}
        for prop in sorted(table.properties.values(), key=lambda prop: -len(prop.label)):
            rest = rest.replace(prop.of_name("NAME"), "OF").replace(prop.label, "LABEL")
        for condition in sorted(conditions, key=len, reverse=True):
            rest = re.sub(re.escape(condition), "CONDITION", rest, flags=re.I)
        rest = re.sub(r"at both [\d.]+ K and [\d.]+ K", "CONDITIONS", rest)
        rest = re.sub(r"CONDITION(?:, [\d.]+ K(?= and |,))* and [\d.]+ K(?=[.;,])", "CONDITIONS", rest)
        rest = rest.replace(table.authority.removeprefix("the ") or "-", "-")
        units = {(value, table.properties[key].unit) for key, value in record.values.items()}
        for number in NUMBER.finditer(rest):
            unit = next(
                (u for v, u in units if v == number[0] and rest[number.end() :].startswith(f" {u}" if u else "")), None
            )
            assert unit is not None, (number[0], text.text)
            numbers_seen += 1
    assert numbers_seen > 10_000


def test_what_a_task_gives_as_the_answer_is_the_value_as_it_is_written(made: list[Text], tables: list[Table]) -> None:
    values = values_of(tables)
    properties = {table.name: table.properties for table in tables}
    for form in ("qa", "completion"):
        for text in of_form(made, form):
            assert text.task is not None
            prop, value = properties[text.table][text.task.key], values[text.table, text.name][text.task.key]
            written = f"{value} {prop.unit}" if prop.unit else value
            asked, answer = (text.task.prompt, text.name) if text.template.startswith("whose") else (text.name, written)
            assert named(asked, text.text)
            assert named(answer, text.task.answer)
            assert text.text == text.task.prompt + text.task.answer


def test_a_value_is_the_characters_of_its_cell(tables: list[Table]) -> None:
    from trainer.corpora.packages import package_files

    (path,) = (path for name, path in package_files("chemicals", ".tsv") if name.endswith("JANAF_1998.tsv"))
    rows = {line.split("\t")[0]: line.split("\t") for line in path.read_text().splitlines()}
    header = rows["CAS"]
    janaf = next(table for table in tables if table.name == "JANAF_1998")
    checked = 0
    for record in janaf.records:
        for key, value in record.values.items():
            assert value == rows[record.key][header.index(key)].removesuffix(".0")
            checked += 1
    assert checked > 2000


def test_sentences_are_whole(made: list[Text]) -> None:
    for text in made:
        words = text.text.replace(text.name, "NAME").replace("...", "").replace('{"', "").replace('"}', "")
        wrong = re.search(
            r"[{}]|  |[^\n ] [.:?](?!\w)|[.?!]{2}|\bNone\b|(?<![-\w])([a-z]+) \1(?![-\w])|\b(?:the|its) (?:the|its)\b",
            words,
        )
        assert wrong is None, (wrong, text.text)
        assert text.text.endswith("\n")
        assert not text.text[0].isspace()


def values_of(tables: list[Table]) -> dict[tuple[str, str], Mapping[str, str]]:
    return {(table.name, record.name): record.values for table in tables for record in table.records}


def test_a_choice_has_one_right_answer_among_likely_ones_at_any_place(made: list[Text], tables: list[Table]) -> None:
    values = values_of(tables)
    properties = {table.name: table.properties for table in tables}
    places: Counter[int] = Counter()
    by_name = 0
    for text in of_form(made, "choice"):
        task = text.task
        assert task is not None
        label, right, line = task.finals
        lines = [line for line in task.prompt.split("\n") if re.match(r"\(?\[?[ABCD1234][.:)\]] ", line)]
        assert len(lines) == 4, task.prompt
        assert line == lines["ABCD1234".index(label.strip("[]()")) % 4]
        assert label in task.answer
        mark = len(line) - len(right)
        options = [line[mark:] for line in lines]
        places[options.index(right)] += 1
        prop, own = properties[text.table][task.key], values[text.table, text.name][task.key]
        if right == text.name:
            by_name += 1
            others = [values[text.table, name][task.key] for name in options if name != right]
        else:
            assert right == prop.written(own)
            assert all(option.endswith(" " + prop.unit) for option in options if prop.unit)
            others = [option.removesuffix(" " + prop.unit) for option in options if option != right]
        assert len(others) == len(set(others)) == 3
        assert own not in others
        if prop.number:
            for ratio in (Decimal(other) / Decimal(own) for other in others):
                assert Decimal(1) / MAGNITUDE <= ratio <= MAGNITUDE
                assert abs(ratio - 1) > SEPARATION / MAGNITUDE
    assert by_name > 500
    expected = sum(places.values()) / 4
    assert sum((places[place] - expected) ** 2 / expected for place in range(4)) < 16.3  # chi-squared, p = 0.001


def test_what_is_ranked_is_in_order_and_without_ties(made: list[Text], tables: list[Table]) -> None:
    values = values_of(tables)
    orders = 0
    for text in of_form(made, "ranking"):
        task = text.task
        assert task is not None
        rising = bool(
            re.search(
                "(?:lowest|smallest) (?:first|to)|increasing|ascending|the (?:lowest|smallest|lightest) ", task.prompt
            )
        )
        if task.template.startswith("order"):
            orders += 1
            names = task.finals[2].split("\n")
            ranked = [Decimal(values[text.table, name][task.key]) for name in names]
            assert 3 <= len(names) <= 5
            assert all(a < b if rising else a > b for a, b in itertools.pairwise(ranked))
            rest = task.answer
            for name in names:
                rest = rest[rest.index(name) + len(name) :]
        else:
            (first,) = task.finals
            listed = re.split(r"(?:\? |\. |: )(?=[^?]*; )|\n[-*] |\n|; ", task.prompt)
            others = [values[text.table, name] for name in listed if name != first and (text.table, name) in values]
            assert len(others) >= 2
            best = Decimal(values[text.table, first][task.key])
            assert all((Decimal(other[task.key]) > best) == rising for other in others)
            assert named(first, task.answer)
    assert orders > 500


def test_a_task_names_only_things_of_its_own_group(made: list[Text], tables: list[Table]) -> None:
    group = {(one.table.name, record.name): one.origin for one in groups("thermo", tables) for record in one.records}
    assert len(set(group.values())) > 20
    keys = defaultdict(set)
    for text in made:
        keys[text.key].add(text.origin)
        if text.task is not None and text.template.startswith("order"):
            for name in text.task.finals[2].split("\n"):
                assert group[text.table, name] == text.origin
    assert all(len(origins) == 1 for origins in keys.values())  # in whatever table a thing is


def test_texts_do_not_depend_on_the_order_of_records_and_do_on_the_seed() -> None:
    table = things(10)
    turned = Table(table.name, "object", "objects", table.properties, table.records[::-1])
    first = list(texts("s", [table], seed=3, tasks_per_record=4))
    assert first == list(texts("s", [turned], seed=3, tasks_per_record=4))
    other = list(texts("s", [table], seed=4, tasks_per_record=4))
    assert len({text.text for text in first} & {text.text for text in other}) < len(first) / 4


def test_a_record_of_one_value_has_a_narration_and_no_form_that_needs_more() -> None:
    alone = Table(
        "made", "object", "objects", {"mass": MASS, "colour": COLOUR}, [Record("k", "the thing", {"colour": "red"})]
    )
    made = list(texts("s", [alone], seed=0, tasks_per_record=4))
    assert {text.form for text in made} == {NARRATION, "qa", "completion"}
    assert all("red" in text.text and "thing" in text.text and "mass" not in text.text for text in made)
    same = things(10)
    equal = Table(
        "made", "object", "objects", {"mass": MASS}, [Record(r.key, r.name, {"mass": "1.50"}) for r in same.records]
    )
    assert {text.form for text in texts("s", [equal], seed=0, tasks_per_record=4)} == {NARRATION, "qa", "completion"}


def test_a_name_of_two_things_is_left_out() -> None:
    table = things(8)
    twice = Table("made", "object", "objects", {"mass": MASS}, [*table.records, Record("k9", "Thing A", {"mass": "7"})])
    names = {text.name for text in texts("s", [twice], seed=0, tasks_per_record=4)}
    assert names == {f"thing {letter}" for letter in "bcdefgh"}


def test_no_question_asks_for_the_owner_of_a_value_that_several_things_have() -> None:
    formula = Property("formula", number=False, identifies=True)
    records = [Record(f"k{n}", f"thing {n}", {"formula": f"F{n // 2}" if n < 20 else f"G{n}"}) for n in range(40)]
    table = Table("made", "object", "objects", {"formula": formula}, records)
    made = list(texts("s", [table], seed=0, tasks_per_record=4))
    whose = {text.name for text in made if text.template.startswith("whose")}
    assert len(whose) > 3
    assert all(int(name.removeprefix("thing ")) >= 20 for name in whose)


@pytest.mark.parametrize(
    ("form", "distinct", "share"),
    [
        (NARRATION, 2500, 0.05),
        ("qa", 1000, 0.01),
        ("completion", 12, 0.12),
        ("choice", 1000, 0.01),
        ("ranking", 1000, 0.01),
    ],
)
def test_no_template_dominates(made: list[Text], form: str, distinct: int, share: float) -> None:
    templates = Counter(text.template for text in of_form(made, form))
    assert len(templates) >= distinct
    assert max(templates.values()) <= share * sum(templates.values())
    openings = Counter(" ".join(text.text.split()[:3]) for text in of_form(made, form))
    assert max(openings.values()) <= 0.15 * sum(openings.values())


def test_every_template_is_used(made: list[Text]) -> None:
    asked = {text.template.split()[1] for text in of_form(made, "qa") if text.template.startswith("what")}
    assert len(asked) == len(phrases.QUESTIONS)
    stems = {text.template for text in of_form(made, "completion")}
    assert len(stems) == len(phrases.STEMS)
    layouts = {text.template.split(" in ")[1] for text in made if " in " in text.template}
    assert len(layouts) == len(phrases.LAYOUTS)
