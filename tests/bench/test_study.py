"""The study of specialists and a generalist: its arms, questions and scores, and the driver at a small size."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from tests.bench import study_tables as tables
from tests.bench.study import ARMS, QUICK, Scale, data_of, main, read, short, words_of
from tests.bench.study_records import (
    COLUMNS,
    FORMS,
    TASKS,
    Question,
    class_in,
    class_of,
    fluent_documents,
    formula_in,
    number_in,
    questions,
    raw_documents,
    without_names,
)
from tests.bench.study_tables import figures_of
from trainer import api
from trainer.corpora.packages import Document
from trainer.corpora.science.records import Table
from trainer.corpora.science.tables.user_files import read_table

DOCS = Path(__file__).parents[2] / "docs"
FACTS = {name: {"tokens": 1000} for name in ("raw", "fluent")} | {
    f"{name}_with_prefix": {"tokens": 1250} for name in ("fluent", "thermo", "code", "prose")
}


@pytest.fixture
def table(tmp_path: Path) -> Table:
    rows = [
        f"{n},alkane {'ab'[n % 2]}{n:02},hydrocarbon,C{n}H{2 * n + 2},{14 * n + 2}.1,{300 + 7 * n}.5"
        for n in range(2, 40)
    ]
    (tmp_path / "some.csv").write_text("\n".join(["cas,compound,class,formula,weight,tb", *rows]))
    (tmp_path / "columns.yaml").write_text(COLUMNS)
    return read_table(tmp_path / "some.csv", tmp_path / "columns.yaml")


def test_three_arms_read_equal_tokens_and_the_fourth_equal_records(tmp_path: Path):
    for name, arm in ARMS.items():
        path = tmp_path / "data" / f"{short(name)}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(yaml.safe_dump(data_of(arm, QUICK, FACTS)))
    total = QUICK.steps * QUICK.window * QUICK.batch
    drawn, found = {}, {name: read(arm, QUICK, FACTS) for name, arm in ARMS.items()}
    for name in ARMS:
        cfg = api.compose(*words_of(name, 0, QUICK, tmp_path, tmp_path / "runs"), config_dirs=[tmp_path])
        tokens = cfg.train.steps * cfg.train.global_batch * cfg.data.seq_len
        assert found[name]["tokens"] == tokens == (2 * total if "equal" in name else total)
        source = cfg.data.sources["raw" if name == "raw" else "fluent"]
        drawn[name] = source.tokens * tokens // cfg.data.phases["all"].tokens
    assert drawn == {"raw": total, "fluent": total, "mixture": total // 2, "mixture, equal records": total}
    # A fifth of what the mixture reads of records is prefixes.
    assert [one["of_records"] for one in found.values()] == [total, total, 0.4 * total, 0.8 * total]


def test_every_value_is_in_both_forms_and_no_question_has_its_answer(table: Table):
    raw, fluent = raw_documents(table), fluent_documents(table, 4)
    assert len(raw) == 5 * len(table.records)
    for record in table.records:
        for documents in (raw, fluent):
            text = "".join(one.text for one in documents if record.name in one.text.lower())
            assert all(value in text for value in record.values.values())
    asked = questions(table, table, fluent, 5)
    assert {(one.task, one.form) for one in asked} == {
        (task.name, form) for task in TASKS if not task.of for form in FORMS
    }
    known = [one.text for one in fluent]
    for one in asked:
        assert not any(text.startswith(one.prompt) for text in known) or "weight" in one.task
        assert one.answer.removeprefix("<NUMBER> ").removesuffix(" </NUMBER>") not in one.prompt
        assert one.name.lower() in one.prompt.lower()


def test_other_documents_name_none_of_the_compounds(table: Table):
    some = [Document(str(n), text) for n, text in enumerate(("Alkane a02 boils.", "Water boils.", "On alkanes.") * 4)]
    kept = without_names(iter(some), (table,), 20)
    assert [one.text for one in kept] == ["Water boils.", "On alkanes."] * 2  # of four origins


def test_a_class_follows_from_the_elements():
    assert [
        class_of(dict.fromkeys(one, 1)) for one in (("C", "S", "N"), ("C", "Br", "O"), ("N", "O"), ("O",), ("C",))
    ] == [*("sulfur compound", "halogen compound", "nitrogen compound", "oxygen compound", "hydrocarbon")]


def test_what_counts_as_an_answer():
    assert (
        number_in("The normal boiling point of 1,2-xylene is 417.6 K. Its weight is 106.2 g/mol.")
        == "<NUMBER> 417.6 </NUMBER>"
    )
    assert number_in("about 1-octene") == ""
    assert formula_in("Its molecular formula is C2H6O.") == "C2H6O"
    assert formula_in("The compound") == formula_in("NaCl") == ""
    assert class_in("It is classed as a sulfur compound. A hydrocarbon") == "sulfur compound"
    assert class_in("none") == ""


ANSWERS = {  # of two questions a task: right and wrong
    "tb": ("394.4 K", "The normal boiling point of 2-octyne is 411 K."),
    "formula": ("H6C2O", "C2H5O"),
    "class": ("an oxygen compound", "a hydrocarbon or an oxygen compound"),
    "weight": ("46.1 g/mol", "unknown"),
}
REFERENCES = {
    "tb": ("394.4", "400"),
    "formula": ("C2H6O",) * 2,
    "class": ("oxygen compound",) * 2,
    "weight": ("46.1", "50"),
}


def test_hand_made_answers_get_their_scores():
    asked = [
        Question(task.name, form, str(n), "?", task.parse(f"{REFERENCES[task.key][n]} x"))
        for task in TASKS
        for form in FORMS
        for n in range(2)
    ]
    answers = [ANSWERS[task.key][n] for task in TASKS for _ in FORMS for n in range(2)]
    right = [
        task.parse(REFERENCES[task.key][n]) and f"{REFERENCES[task.key][n]} x"
        for task in TASKS
        for _ in FORMS
        for n in range(2)
    ]
    cost = {"loss": 1.0, "cpu_seconds": {"training": 1, "asking": 1}}
    runs = [
        {"arm": "raw", "seed": 0, "answers": answers, **cost},
        {"arm": "raw", "seed": 1, "answers": answers, **cost},
        {"arm": "fluent", "seed": 1, "answers": answers, **cost},
        {"arm": "fluent", "seed": 0, "answers": right, **cost},
    ]
    found = figures_of(asked, runs)
    scores = {task.name: found["scores"][task.name]["new"] for task in TASKS}
    assert [one["raw"]["seeds"][0] for one in scores.values()] == [50, 50, 50, 50, 25, 50, 5.5, 100]
    assert scores["formula, held out"]["fluent"]["seeds"] == [100.0, 50.0]
    assert scores["formula, held out"]["fluent"]["mean"] == 75
    assert scores["weight from formula, held out"]["raw"]["unread"] == 0.5
    assert found["constant"]["boiling point, held out"] == pytest.approx(2.8)
    assert found["constant"]["formula, held out"] == 100
    differences = {(one["task"], one["asked"]): one for one in found["differences"]}
    assert differences["boiling point, held out", "own"]["mean"] == pytest.approx(2.75)  # a smaller error is better
    assert differences["formula, held out", "new"]["mean"] == 25
    assert {one["says"] for one in found["differences"]} == {"unclear"}  # one seed is the same as the other arm


def test_the_documented_figures_are_those_of_the_study():
    figures = json.loads((DOCS / "study.json").read_text())
    text = (DOCS / "study.md").read_text()
    for table in (tables.read, tables.scores, tables.compared):
        assert "\n".join(table(figures)) in text
    assert figures["scale"] == json.loads(json.dumps({**asdict(Scale()), "tokens": Scale().tokens}))
    assert figures["device"].split(",")[0] in text
    found = {(one["first"], one["second"], one["asked"], one["task"]): one["says"] for one in figures["differences"]}
    for task in ("boiling point, trained", "formula, trained"):
        assert found["fluent", "raw", "new", task] == "better"
        assert found["fluent", "raw", "own", task] == "worse"
        assert found["mixture", "fluent", "own", task] == found["mixture", "raw", "own", task] == "worse"
        assert found["mixture, equal records", "fluent", "own", task] == "worse"


@pytest.mark.slow
def test_a_quick_study_runs_to_the_table_and_repeats_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = ["--quick", "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]
    assert main([*words, "--only", "raw-0"]) == 0
    assert not (tmp_path / "out.json").exists()
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert [line for line in printed.splitlines() if line.startswith("-- ")] == [
        *("-- raw-0", "-- fluent-0", "-- mixture-0", "-- mixture_equal_records-0")
    ]
    figures = json.loads((tmp_path / "out.json").read_text())
    assert [*figures["read"]] == [*ARMS]
    for name in ("raw-0", "fluent-0", "mixture-0", "mixture_equal_records-0"):
        lines = [json.loads(line) for line in (tmp_path / "runs" / name / "metrics.jsonl").read_text().splitlines()]
        steps = [line["step"] for line in lines if "loss" in line]
        assert steps[-1] == (20 if "equal" in name else 10)
    assert main(words) == 0
    assert "\n-- " not in capsys.readouterr().out
    assert json.loads((tmp_path / "out.json").read_text()) == figures
