"""The table of docs/evaluation.md is what the command prints."""

import re
from pathlib import Path

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
