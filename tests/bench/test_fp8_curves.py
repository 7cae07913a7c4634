"""The figures of docs/fp8.md are those of the runs beside it, and all of them end within 1 % of fp32."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.bench.fp8_curves import ALLOWED, RUNS, end_of, picture, table

DOCS = Path(__file__).parents[2] / "docs"


def test_the_documented_runs_are_those_of_the_command_and_end_where_fp32_does():
    kept = json.loads((DOCS / "fp8_curves.json").read_text())
    runs = kept["runs"]
    assert list(runs) == list(RUNS)
    fp32 = end_of(runs["fp32"])
    for name, run in runs.items():
        assert (run["ranks"], run["overrides"]) == (RUNS[name][0], [*RUNS[name][1], "train.steps=300"])
        assert len(run["loss"]) == 300
        assert end_of(run) == pytest.approx(fp32, rel=ALLOWED - 1), name
    text = (DOCS / "fp8.md").read_text()
    assert "\n".join(table(runs)) in text
    assert kept["device"].split(",")[0] in text
    assert (DOCS / "fp8_curves.svg").read_text() == picture(runs)
