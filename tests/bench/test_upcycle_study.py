"""The figures of docs/upcycling.md are those of the study beside it, and say what the text says that they do."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.bench.upcycle_study import ARMS, CHANGES, VOCABULARY, Scale, main
from tests.bench.upcycle_tables import arms, changes, nats, picture

DOCS = Path(__file__).parents[2] / "docs"


def test_the_documented_figures_are_those_of_the_study():
    figures = json.loads((DOCS / "upcycling.json").read_text())
    text = (DOCS / "upcycling.md").read_text()
    assert "\n".join(arms(figures)) in text
    assert "\n".join(changes(figures)) in text
    assert figures["device"].split(",")[0] in text
    assert (DOCS / "upcycling.svg").read_text() == picture(figures)
    assert figures["steps"] == Scale().steps
    assert set(figures["changes"]) == {"none", *CHANGES, VOCABULARY, "experts: the best 2 of the base alone"}
    for name, arm in figures["arms"].items():
        assert arm["expansion"] == (None if ARMS[name] is None else asdict(ARMS[name]))
        assert len(arm["loss"]) == figures["steps"]


def test_the_documented_order_is_that_of_the_figures():
    found = json.loads((DOCS / "upcycling.json").read_text())
    start, end = ({name: nats(arm[when]) for name, arm in found["arms"].items()} for when in ("start", "end"))
    assert sorted(end, key=end.__getitem__)[:2] == ["base", "halves, distinct cuts"]
    assert max(end, key=end.__getitem__) == "halves, no noise"
    assert sorted(start, key=start.__getitem__)[:2] == ["base", "spread"]
    assert abs(end["spread"] - end["halves"]) < 0.002
    assert found["survival"]["one cut"]["coactivation"] > found["survival"]["one cut"]["random"]


def test_the_documented_copies_part_with_noise_and_never_without():
    found = json.loads((DOCS / "upcycling.json").read_text())["arms"]
    for name, arm in found.items():
        way = list(arm["distance"].values())
        if ARMS[name] is None:
            assert way == []
        elif name == "halves, no noise":
            assert set(way) == {0}
        else:
            assert sorted(way) == way
            assert way[-1] > 2 * way[0]


@pytest.mark.slow
def test_a_quick_study_runs_from_the_base_to_the_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = ["--quick", "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]
    assert main(words) == 0
    figures = json.loads((tmp_path / "out.json").read_text())
    assert [*figures["arms"]] == ["base", "halves", "coactivation, distinct cuts", "halves, no noise"]
    assert figures["changes"]["experts: halves"] == figures["arms"]["halves, no noise"]["start"]
    assert figures["arms"]["base"]["start"] == figures["changes"]["none"]
    assert set(figures["arms"]["halves, no noise"]["distance"].values()) == {0}
    assert [len(arm["loss"]) for arm in figures["arms"].values()] == [4] * 4
    assert nats(figures["arms"]["halves"]["end"]) < nats(figures["arms"]["halves"]["start"])
    root = ElementTree.fromstring((tmp_path / "out.svg").read_text())
    curves = [element.get("points") for element in root.iter("{http://www.w3.org/2000/svg}polyline")]
    assert [len(points.split()) for points in curves] == [4] * 4 + [3] * 3
    # A second start finds everything done.
    capsys.readouterr()
    assert main(words) == 0
    assert "--" not in [line[:2] for line in capsys.readouterr().out.splitlines()]
    assert json.loads((tmp_path / "out.json").read_text()) == figures
