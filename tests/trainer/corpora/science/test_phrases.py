"""Mechanical rules of English for every template and every kind of record."""

import importlib.metadata
import itertools
import re
from collections.abc import Iterator, Sequence

import pytest

from trainer.corpora.science import fields, phrases
from trainer.corpora.science.draw import Draw
from trainer.corpora.science.names import in_lower_case, in_order, opening, with_capitals
from trainer.corpora.science.narrate import narrate
from trainer.corpora.science.records import Property, Record, Table, article
from trainer.corpora.science.tables.builtin import TABLES
from trainer.corpora.science.tasks import tasks
from trainer.corpora.science.texts import texts

PROPERTIES = {
    "mp": Property("melting point", unit="K", predicates=("melts at {value}", "has a melting point of {value}")),
    "hf": Property("enthalpy of formation", "in the gas phase at 298.15 K", "J/mol"),
    "hf0": Property("enthalpy of formation", "in the gas phase at 0 K", "J/mol"),
    "hfl": Property("enthalpy of formation", "in the liquid phase at 298.15 K", "J/mol"),
    "n": Property("refractive index", "at room temperature"),
    "rings": Property("number of rings", counted=("ring", "rings"), measured=False),
    "age": Property("age", unit="years", extremes=("smallest", "largest")),
    "smiles": Property("SMILES string", number=False, quoted=True, identifies=True),
    "organism": Property("organism", number=False, predicates=("comes from {value}",)),
    "isotope": Property(
        "mass of the most abundant isotope",
        unit="u",
        had=False,
        measured=False,
        possessive="the mass of its most abundant isotope",
        part=("most abundant isotope", "a mass of {value}"),
    ),
    "class": Property("class", number=False, classed=True),
    "x": Property("X-ray density", unit="kg/m^3"),
}
VALUES = {
    "mp": "454.10",
    "hf": "-277600",
    "n": "1.5",
    "rings": "1",
    "age": "1",
    "smiles": "C#N",
    "organism": "Vibrio sp.",
    "isotope": "207.98",
    "class": "amine",
}
RECORDS = (
    Record("1", "aniline", VALUES),
    Record(
        "2", "toluene", {**VALUES, "rings": "2", "age": "13", "mp": "0", "hf0": "-1.2e-30", "x": "-0.00000000000000001"}
    ),
    Record(
        "3",
        "n-hexane",
        {"class": "alkane", "hf": "-5", "hf0": "-6.022e23", "hfl": "1", "organism": "Homo sapiens", "mp": "0.0010"},
    ),
    Record("4", "(±)-2-butanol", {"hf": "1", "hfl": "2", "smiles": "CC(O)CC", "mp": "350"}),
    Record(
        "5",
        "N,N'-bis(2-hydroxyethyl)-1,2-ethanediamine; salt {1:1}, " + "very long " * 12 + "name",
        VALUES | {"mp": "700"},
    ),
    Record("6", "Bohr radius", {"n": "5.29e-11", "mp": "500"}, called="the Bohr radius"),
    Record("7", "CCO", {"rings": "0", "x": "1", "n": "2.5", "mp": "300"}, called='the molecule with SMILES "CCO"'),
    Record("8", "mp-149", {"organism": "E. coli", "class": "semiconductors"}),
)
TABLE_KINDS = (
    Table("plain", "compound", "compounds", PROPERTIES, RECORDS),
    Table("sourced", "alloy", "alloys", PROPERTIES, RECORDS, "the 2024 survey", heading="alloy"),
)
MADE = [(table, record) for table in TABLE_KINDS for record in table.records]


def wrong(text: str, record: Record) -> str | None:
    """The first breach of a rule that holds for all prose, whatever the values."""
    for name in (record.called, record.name, opening(record.name)):
        text = text.replace(name or "\0", "NAME")
    text = re.sub(r'\{"(?:name|alloy|SMILES)": .*\}', "JSON", text)
    rules = {
        "an unfilled or literal brace": r"[{}]",
        "two spaces": r"  ",
        "a space before punctuation": r"[^\n ] [.,:?!](?!\w)",
        "two marks": r"(?<!\.)\.\.(?!\.)|[?!:][.?!:]|,,",
        "an article": r"\b[Aa] (?=[aeio])|\b[Aa] (?=X-)|\b[Aa]n (?![aeiouhAEFHILMNORSXN])",
        "a word twice": r"(?<![-\w])([a-z]+) \1(?![-\w])",
        "two determiners": r"\b(?:the|its|an?) (?:the|its|an?)\b",
        "one of many": r"\b1 (?:rings|years|amino acids|atoms)\b|(?<![\d.])[02-9] (?:ring|year|atom)\b",
        "no value": r"\bNone\b",
        "a line with spaces around it": r"(?m)^ | $",
    }
    found = [(rule, match[0]) for rule, pattern in rules.items() if (match := re.search(pattern, text))]
    return f"{found[0]}: {text}" if found else None


def rendered(templates: Sequence[str], table: Table, record: Record) -> Iterator[str]:
    """Every template that the record has the fields for, with each of its values."""
    for key in record.values:
        prop = table.properties[key]
        words = fields.of_value(record, table, key, Draw("", key)) | {"question": f"What is the {prop.of_name('it')}?"}
        words |= {"also": "has a density of 2", "These_values": "This value is", "values": "2 K at 1 K and 3 K at 2 K"}
        words |= {"Shared": "At 5 K", "mark": "(A)", "line": "(A) 2", "extreme": "lowest", "order": "lowest first"}
        words |= {"from_to": "lowest first", "in_order": "in ascending order", "following": "an uncertainty of 2 K"}
        words |= {"properties": "properties", "source": "2024 survey", "by": prop.label_of_many}
        words |= {
            "in_line": "a < b",
            "by_line": "a\nb",
            "values_in_line": "a (1) < b (2)",
            "values_by_line": "a (1)\nb (2)",
        }
        words |= {"superior": "has the lowest mass", "superlative": "with the lowest mass"}
        words |= {"as_found": ": 2 K", "found": ": 2 K", "of_one": "mass of one of these things"}
        words |= {"name_and_value": "a (1)", "low": "lowest", "high": "highest"}
        for place in phrases.usable(templates, words):
            yield phrases.fill(templates[place], words)


SENTENCES = {
    name: getattr(phrases, name)
    for name in (
        *("OPENINGS", "OPENINGS_OF_SEVERAL", "FIRST", "FIRST_MEASURED", "STATEMENTS", "MEASURED", "TEXT_STATEMENTS"),
        "CLASSED_FIRST",
        *("SEVERAL_FIRST", "SEVERAL", "SHARED_FIRST", "SHARED", "SOURCES", "QUESTIONS", "WHOSE", "CHOICE_OF_VALUE"),
        *("CHOICE_OF_NAME", "EXTREMES", "RANKINGS"),
    )
} | {"PAIR": (phrases.PAIR, phrases.FIRST_PAIR), "FOLLOWED": phrases.FOLLOWED_FIRST + phrases.FOLLOWED}


@pytest.mark.parametrize("name", SENTENCES)
def test_a_sentence_starts_with_a_capital_and_ends_with_a_mark(name: str) -> None:
    seen = 0
    for table, record in MADE:
        for sentence in rendered(SENTENCES[name], table, record):
            assert sentence[0].isupper() or not sentence[0].isalpha(), sentence
            listed = name in ("EXTREMES", "RANKINGS")  # a colon and a list follow
            assert sentence[-1] in ".?:" or listed, sentence
            assert wrong(sentence, record) is None, wrong(sentence, record)
            seen += 1
    assert seen > len(SENTENCES[name])


def test_every_template_is_used_for_some_record() -> None:
    for name, templates in SENTENCES.items():
        used: set[int] = set()
        for (table, record), _ in itertools.product(MADE, [0]):
            for key in record.values:
                words = fields.of_value(record, table, key, Draw("")) | dict.fromkeys(
                    (
                        *("question", "also", "These_values", "values", "Shared", "extreme", "order"),
                        *(
                            "superior",
                            "superlative",
                            "of_one",
                            "from_to",
                            "in_order",
                            "following",
                            "properties",
                            "source",
                            "by",
                        ),
                    ),
                    "x",
                )
                used.update(phrases.usable(templates, words))
        assert used == set(range(len(templates))), name


def test_the_texts_of_edge_records_keep_the_rules() -> None:
    forms = set()
    for seed, (table, record) in itertools.product(range(60), MADE):
        draw = Draw(str(seed), record.key)
        text, _ = narrate(record, table, draw)
        assert wrong(text, record) is None, wrong(text, record)
        assert record.name.casefold() in text.casefold()
        assert text.endswith("\n")
        assert text == text.lstrip()
        for task in tasks(record, table, table.records, draw):
            forms.add(task.form)
            about = task.text
            for other in table.records:
                for name in (other.called, other.name, opening(other.name)):
                    about = about.replace(name or "\0", "NAME")
            assert wrong(about, record) is None, wrong(about, record)
    assert forms == {"qa", "completion", "choice", "ranking"}


@pytest.mark.parametrize("source", [pytest.param(s, marks=[pytest.mark.slow] * (s == "pubchem")) for s in TABLES])
def test_the_texts_of_each_source_keep_the_rules(source: str) -> None:
    try:
        tables = TABLES[source]()
    except Exception as error:
        if isinstance(error.__cause__ or error.__context__, importlib.metadata.PackageNotFoundError):
            pytest.skip(str(error))
        raise
    for table in tables:
        some = Table(
            table.name, table.thing, table.things, table.properties, table.records[::7][:400], table.authority,
            heading=table.heading,
        )  # fmt: skip
        records = {record.name: record for record in some.records}
        for text in texts(source, [some], seed=1, tasks_per_record=4):
            if source == "sequences" or text.form in ("choice", "ranking"):
                continue  # descriptions and names of other records have marks of their own
            prose = text.text
            for value in sorted(records[text.name].values.values(), key=len, reverse=True):
                prose = prose.replace(value, "VALUE") if not value.replace(".", "").isdigit() else prose
            assert wrong(prose, records[text.name]) is None, wrong(prose, records[text.name])


@pytest.mark.parametrize(
    ("noun", "expected"),
    [
        *(("melting point", "a"), ("enthalpy", "an"), ("uncertainty", "an"), ("unit cell", "a"), ("NMR shift", "an")),
        *(("X-ray dose", "an"), ("pH", "a"), ("SMILES string", "a"), ("InChI", "an"), ("U-value", "a")),
        *(("hour angle", "an"), ("useful life", "a"), ("one-electron energy", "a"), ("uranium content", "a")),
    ],
)
def test_the_article_follows_the_sound(noun: str, expected: str) -> None:
    assert article(noun) == expected


def test_a_unit_in_words_is_singular_after_one() -> None:
    age = PROPERTIES["age"]
    assert [age.written(value) for value in ("1", "0", "1.0", "11", "-1")] == [
        *("1 year", "0 years", "1.0 years", "11 years", "-1 years")
    ]
    assert Property("induction", unit="siemens").written("1") == "1 siemens"
    assert [PROPERTIES["rings"].predicate(value) for value in "012"] == ["has no rings", "has 1 ring", "has 2 rings"]


@pytest.mark.parametrize(
    ("listed", "written", "opens"),
    [
        ("Copper(I) bromide", "copper(I) bromide", "Copper(I) bromide"),
        ("2-Nonanol, (±)-", "(±)-2-nonanol", "(±)-2-Nonanol"),
        ("Vanadium boride [VB2]", "vanadium boride [VB2]", "Vanadium boride [VB2]"),
        ("N,N-Dimethylaniline", "N,N-dimethylaniline", "N,N-Dimethylaniline"),
        (
            "Glycine, ethyl ester, hydrochloride",
            "glycine ethyl ester hydrochloride",
            "Glycine ethyl ester hydrochloride",
        ),
        ("Lead(II) carbonate, basic", "basic lead(II) carbonate", "Basic lead(II) carbonate"),
        ("Congo Red", "Congo Red", "Congo Red"),
        ("p-Xylene", "p-xylene", None),
        ("sec-Butyl nitrite", "sec-butyl nitrite", None),
    ],
)
def test_a_listed_name_is_written_as_in_a_text(listed: str, written: str, opens: str | None) -> None:
    assert in_lower_case(in_order(listed)) == written
    assert opening(written) == opens


def test_lost_capitals_return_where_they_are_certain() -> None:
    for name, expected in {
        "n,n-dimethyl-1h-indole": "N,N-dimethyl-1H-indole",
        "(2r,3r)-2,3-bis(oxidanyl)butane": "(2R,3R)-2,3-bis(oxidanyl)butane",
        "beta-d-fructopyranose": "beta-D-fructopyranose",
        "copper(ii) acetate": "copper(II) acetate",
        "n-hexane": "n-hexane",
    }.items():
        assert with_capitals(name) == expected
