"""The records of the study (`tests.bench.study`), its documents in both forms, its questions, and its scores."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.corpora.packages import Document
from trainer.corpora.science.records import Record, Table
from trainer.corpora.science.tables.chemistry import materials
from trainer.corpora.science.tables.pubchem import identity_files, parse_record
from trainer.corpora.science.tables.user_files import read_table
from trainer.corpora.science.texts import texts
from trainer.data.hashing import text_key
from trainer.evaluation.scorers import chemistry
from trainer.evaluation.scorers.extract import numbers
from trainer.evaluation.scorers.metric import Metric, of_means

HELDOUT = "heldout"  # the origin of documents of records that are held out
HANDBOOK = "Physical Constants of Organic Compounds"
LONGEST_NAME = 18  # characters
ELEMENTS = {"C", "H", "N", "O", "S", "F", "Cl", "Br", "I"}
CLASSES = (  # of a compound, by the first of these elements that it has
    ({"S"}, "sulfur compound"),
    ({"F", "Cl", "Br", "I"}, "halogen compound"),
    ({"N"}, "nitrogen compound"),
    ({"O"}, "oxygen compound"),
    (set[str](), "hydrocarbon"),
)
COLUMNS = """
name: compound
key: cas
thing: compound
properties:
  class: {label: class, text: true}
  formula: {label: molecular formula, text: true}
  weight: {label: molecular weight, unit: g/mol, measured: false}
  tb: {label: normal boiling point, unit: K}
"""
UNITS = {"weight": " g/mol", "tb": " K"}
LABELS = {
    "class": "class",
    "formula": "molecular formula",
    "weight": "molecular weight",
    "tb": "normal boiling point",
}
FIRST_UNSEEN = 1000  # seeds of the questions; those of the training texts are below
ORIGINS = 4  # of a source, at least, so that some are held out
SEEDS = 60  # that a question is looked for in

Form = str  # "template", "question", "new"
FORMS: tuple[Form, ...] = ("template", "question", "new")


# ---- the records


def compounds(directory: Path, trained: int, heldout: int) -> tuple[Table, Table]:
    """The records that are trained on and those that are held out, written to `directory` as a user of
    `octavo science --records` would, and read back."""
    boiling = {
        record.key: record
        for record in next(table for table in materials() if table.name == HANDBOOK).records
        if "Tb" in record.values and len(record.name) <= LONGEST_NAME
    }
    rows: dict[str, tuple[str, ...]] = {}
    ((_, identities),) = identity_files()
    for line in identities.read_text(encoding="utf-8").splitlines():
        record = boiling.get(line.split("\t", 2)[1])
        if record is None:
            continue
        values = parse_record(line).values
        counts = chemistry.atoms(values["formula"])
        if counts is None or not {"C", "H"} <= {*counts} <= ELEMENTS or "." in values["smiles"]:
            continue
        weight = f"{float(values['weight']):.1f}"
        rows[record.name] = (record.key, record.name, class_of(counts), values["formula"], weight, record.values["Tb"])
    ordered = [rows[name] for name in sorted(rows, key=lambda name: text_key("study", name))]
    if len(ordered) < trained + heldout:
        raise ValueError(f"{len(ordered)} compounds are too few for {trained} and {heldout}")
    directory.mkdir(parents=True, exist_ok=True)
    columns = directory / "columns.yaml"
    columns.write_text(COLUMNS)
    tables = []
    for name, some in (("trained", ordered[:trained]), (HELDOUT, ordered[trained : trained + heldout])):
        path = directory / f"{name}.csv"
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("cas", "compound", *LABELS), *some])
        tables.append(read_table(path, columns))
    return tables[0], tables[1]


def class_of(elements: Mapping[str, int]) -> str:
    """The name of the class of a compound with these elements."""
    return next(name for those, name in CLASSES if not those or those & {*elements})


# ---- documents


def raw_documents(table: Table) -> list[Document]:
    """Every record in the same two templates: all its fields, and one document for each field. The table is the
    origin of each."""
    made = []
    for record in table.records:
        made.append(sheet(record, [*LABELS]))
        made += [f"{asked(record.name, key)} {record.values[key]}{UNITS.get(key, '')}\n" for key in LABELS]
    return [Document(table.name, text) for text in made]


def sheet(record: Record, keys: Sequence[str]) -> str:
    """The record as lines of fields."""
    lines = [f"{LABELS[key]}: {record.values[key]}{UNITS.get(key, '')}\n" for key in keys]
    return f"compound: {record.name}\n{''.join(lines)}"


def asked(name: str, key: str) -> str:
    """The template that asks for one field."""
    return f"compound: {name}\ntask: {LABELS[key]}\nanswer:"


def fluent_documents(table: Table, variants: int) -> list[Document]:
    """Narrations and tasks as `octavo science` writes them, with `variants` seeds."""
    made = {
        text.text: None for seed in range(variants) for text in texts("study", [table], seed=seed, tasks_per_record=2)
    }
    return [Document(table.name, text) for text in made]


def without_names(documents: Iterator[Document], tables: Sequence[Table], characters: int) -> list[Document]:
    """The first documents, with about as many characters and of several origins, that name none of the compounds of
    the tables."""
    names = re.compile("|".join(re.escape(record.name) for table in tables for record in table.records), re.IGNORECASE)
    kept, size, origins = [], 0, set[str]()
    for document in documents:
        if size >= characters and len(origins) >= ORIGINS:
            break
        if not names.search(document.text):
            kept.append(document)
            size += len(document.text)
            origins.add(document.origin)
    return kept


# ---- questions


@dataclass(frozen=True)
class Task:
    """One kind of question. trained: about records in the training text. key: the field that is asked for. of: the task
    whose answers this one scores in another way; empty: asks itself."""

    name: str
    trained: bool
    key: str
    unit: str
    metric: Metric
    parse: Callable[[str], str]
    given_formula: bool = False
    of: str = ""


@dataclass(frozen=True)
class Question:
    task: str
    form: Form
    name: str  # of the compound
    prompt: str
    answer: str


def formula_in(text: str) -> str:
    """The first formula in a text; "" without one."""
    found = [word for word in _words(text) if re.fullmatch(r"(?:[A-Z][a-z]?\d*)+", word)]
    return next((word for word in found if {*(chemistry.atoms(word) or {"?": 1})} <= ELEMENTS), "")


def number_in(text: str) -> str:
    """The first number that is a word of a text, in the tags that the metric reads; "" without one."""
    found = [word for word in _words(text) if re.fullmatch(r"\d+(?:\.\d+)?", word)]
    return f"<NUMBER> {found[0]} </NUMBER>" if found else ""


def class_in(text: str) -> str:
    """The first class that a text names; "" without one."""
    found = re.search("|".join(name for _, name in CLASSES), text)
    return found[0] if found else ""


def _words(text: str) -> list[str]:
    return [word.strip('.,;:"*()') for word in text.split()]


def _equal(answer: str, reference: str) -> dict[str, Any]:
    return {"score": answer != "" and answer == reference}


same = of_means(_equal, unit=100)
"""Percentage of answers that are the reference."""


def near(share: float) -> Metric:
    """Percentage of numbers that differ from the reference by at most this share of it."""

    def one(answer: str, reference: str) -> dict[str, Any]:
        (wanted,), found = numbers(reference), numbers(answer)
        return {"score": bool(found) and abs(found[0] - wanted) <= share * wanted}

    return of_means(one, unit=100)


TASKS = (
    Task("boiling point, trained", True, "tb", "% exact", same, number_in),
    Task("formula, trained", True, "formula", "% same atoms", chemistry.same_atoms, formula_in),
    Task("class, held out", False, "class", "% right", same, class_in),
    Task("formula, held out", False, "formula", "% same atoms", chemistry.same_atoms, formula_in),
    Task("weight from formula, held out", False, "weight", "MAE, g/mol", chemistry.absolute_error, number_in, True),
    Task("weight within 2 %, held out", False, "weight", "%", near(0.02), number_in,
         of="weight from formula, held out"),
    Task("boiling point, held out", False, "tb", "MAE, K", chemistry.absolute_error, number_in),
    Task("boiling point within 5 %, held out", False, "tb", "%", near(0.05), number_in, of="boiling point, held out"),
)  # fmt: skip
BY_NAME = {task.name: task for task in TASKS}


def questions(trained: Table, heldout: Table, seen: Sequence[Document], most: int) -> list[Question]:
    """The questions of all tasks in all forms, about up to `most` compounds each. No question of the form "question"
    is a document of `seen`, so that no fact was trained on in the words that ask for it."""
    made = []
    known = {document.text for document in seen}
    for table, tasks in (
        (trained, [task for task in TASKS if task.trained]),
        (heldout, [task for task in TASKS if not (task.trained or task.of)]),
    ):
        chosen = sorted(table.records, key=lambda one: text_key("asked", one.name))[:most]
        fluent = _fluent_prompts(table, chosen, tasks, known)
        for task in tasks:
            for record in (one for one in chosen if (one.name, task.name) in fluent):
                prompts = {
                    "template": _template_prompt(record, task),
                    "question": fluent[record.name, task.name],
                    "new": _new_prompt(record, task),
                }
                answer = task.parse(f"{record.values[task.key]} x")  # as answers are read
                made += [Question(task.name, form, record.name, prompts[form], answer) for form in FORMS]
    return made


def _template_prompt(record: Record, task: Task) -> str:
    if task.given_formula:
        return f"{sheet(record, ['class', 'formula'])}{LABELS[task.key]}:"
    return asked(record.name, task.key)


def _new_prompt(record: Record, task: Task) -> str:
    given = f" ({record.values['formula']})" if task.given_formula else ""
    return f"I looked up {record.name}{given} in a table. The {LABELS[task.key]} that it lists is"


def _fluent_prompts(
    table: Table, chosen: Sequence[Record], tasks: Sequence[Task], known: set[str]
) -> dict[tuple[str, str], str]:
    """(compound, task) -> a question as the fluent documents have them; where the formula is given, the start of a
    narration that has the formula before the value and does not have the boiling point before it. Few are missing."""
    found: dict[tuple[str, str], str] = {}
    values = {record.name: record.values for record in chosen}
    for seed in range(FIRST_UNSEEN, FIRST_UNSEEN + SEEDS):
        if len(found) == len(chosen) * len(tasks):
            break
        for text in texts("study", [table], seed=seed, tasks_per_record=4):
            if text.name not in values:
                continue
            for task in tasks:
                key, own = (text.name, task.name), values[text.name]
                if key in found or text.text in known:
                    continue
                if task.given_formula and text.task is None:
                    before, value, _ = text.text.partition(f"{own[task.key]}{UNITS.get(task.key, '')}")
                    if value and before.endswith(" ") and own["formula"] in before and own["tb"] not in before:
                        found[key] = before.rstrip()
                elif not task.given_formula and text.task and text.form == "qa" and text.task.key == task.key:
                    # With what the layout has before the answer, such as "Answer:": without it a model may continue
                    # the question, which often says in what unit to answer.
                    label = text.task.frame.partition("{answer}")[0].rstrip()
                    if label:
                        found[key] = text.task.prompt + label
    return found
