"""The table of docs/evaluation.md is what the command prints."""

import json
import os
import re
from pathlib import Path

import pytest

from launch.cli import main
from trainer.evaluation.output.listing import listing
from trainer.evaluation.registry import SUITES

PAGE = Path(__file__).resolve().parents[3] / "docs" / "evaluation.md"
REMEDY = "put the output of `octavo evaluate --list --markdown` between the marks"


def test_the_table_of_suites_is_that_of_the_command() -> None:
    found = re.search(r"<!-- suites -->\n(.*)<!-- /suites -->", PAGE.read_text(), re.S)
    assert found is not None
    assert found[1].strip() == listing(SUITES, markdown=True).strip(), REMEDY


def test_the_list_has_every_suite_with_its_metric_and_figure() -> None:
    text = listing(SUITES)
    for suite in SUITES:
        assert f"{suite.folder}  ({suite.name}; {suite.domain})" in text
        assert suite.metric in text


def test_the_list_has_the_newest_value_of_each_suite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    written = {
        "old": {
            "mmlu_pro": {"value": 11.25, "low": 10.5, "high": 12.0, "items": 40},
            "sfe": {"value": 31.5, "items": 9},
        },
        "new": {"mmlu_pro": {"value": 64.75, "low": 63.5, "high": 66.0, "items": 7}},
        "undefined": {"mmlu_pro": {"value": None, "low": None, "high": None, "items": 80}},
        "damaged": None,
    }
    for age, (name, suites) in enumerate(written.items()):
        path = tmp_path / "outputs/evaluations" / name / "results.json"
        path.parent.mkdir(parents=True)
        path.write_text("{" if suites is None else json.dumps({"model": {}, "settings": {}, "suites": suites}))
        os.utime(path, (1e9 + age, 1e9 + age))
    assert main(["evaluate", "--list"]) == 0
    blocks = {block.split()[0]: block for block in capsys.readouterr().out.split("\n\n")}
    own = {name: block.rpartition("\n  own ")[2].strip() for name, block in blocks.items() if "\n  own " in block}
    assert own.keys() == {"mmlu_pro", "sfe"}
    assert "64.75" in own["mmlu_pro"]
    assert "63.5" in own["mmlu_pro"]
    assert own["mmlu_pro"].endswith("outputs/evaluations/new")
    assert "31.5" in own["sfe"]
    assert own["sfe"].endswith("outputs/evaluations/old")
    assert main(["evaluate", "--list", "--markdown"]) == 0
    assert "outputs/evaluations" not in capsys.readouterr().out  # the document's table is the same everywhere
