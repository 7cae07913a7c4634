"""SciTS: figures of the benchmark's own evaluation on 20 rows of each kind, and its files."""

from pathlib import Path
from typing import Any

import pytest

from tests.trainer.evaluation.suites.rows_signals import CLASSES, EVENTS, ONE_OR_MORE, SEEN, TIMES, WORDS
from tests.trainer.evaluation.suites.runs import answered, items_of, suite, write_lines
from trainer.evaluation.scorers import signals
from trainer.evaluation.suite import SuiteError


def test_classes_are_those_of_the_published_evaluation() -> None:
    answers = WORDS.split("|")
    assert len(answers) == len(ONE_OR_MORE) == 20
    figures = signals.classes(answers, ONE_OR_MORE)["default"]
    assert [figures.value, figures.extra["uar"], figures.extra["f1"]] == pytest.approx(CLASSES, abs=1e-9)


def test_rows_of_a_task_may_have_other_keys() -> None:
    keyed = [{"gt_class": {"rhythm": "SR"}}, {"gt_class": {"form": "NORM"}}, {"gt_class": {"form": "HYP"}}]
    figures = signals.classes(["sr", "norm", "norm"], keyed)
    assert {key: figure.value for key, figure in figures.items()} == {"rhythm": 1, "form": 0.5}


@pytest.mark.parametrize("data_set", ["STEAD", "MIMII Due"])
def test_events_are_those_of_the_published_evaluation(data_set: str) -> None:
    figures = signals.events(SEEN.split("|") * 2, TIMES, data_set)
    found = [figures.value, *(figures.extra[name] for name in ("f1", "decided", "mean_error", "median_error"))]
    assert found == pytest.approx(EVENTS[data_set], abs=1e-9)


def row(code: str, result: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "id": f"{code}_1",
        "task": "x",
        "input_text": ["What is it?", "Say it."],
        "input_ts": {"path": "raw/a.npy", "sampling_rate": 100},
        "gt_result": result,
        **more,
    }


def test_files_are_read_and_checked(tmp_path: Path) -> None:
    path = tmp_path / "meta_data.jsonl"
    rows = [
        row("ASU01", {"contain": True, "p": 10}, dataset_name="STEAD"),
        row("BIU03", {"gt_class": {"default": ["MI"]}}),
        row("MEU01", {"answer": "B"}),
        row("ASG02", {"answer": "B"}),
    ]
    write_lines(path, rows)
    with pytest.raises(SuiteError) as missing:
        [*suite("SciTS").read(tmp_path)]
    assert missing.value.where == str(tmp_path / "raw/a.npy")
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/a.npy").write_bytes(b"")
    items = items_of("SciTS", tmp_path)
    assert [item.meta["task"] for item in items] == ["ASU01", "BIU03", "MEU01"]  # tasks of generation are passed over
    signal, text = items[0].messages[0]["content"]
    assert signal["time_series_url"] == {"url": str(tmp_path / "raw/a.npy"), "sampling_rate": 100}
    assert text["text"] == "What is it?"
    result = answered("SciTS", items, lambda item: "mi, seen at 11; b" if item.meta["task"] != "MEU01" else "c")
    assert result.categories == pytest.approx({"ASU01": 100, "BIU03": 100, "MEU01": 0})
    assert result.metrics["ASU01 mean_error"] == pytest.approx(10)
    for wrong, value in (
        (row("XYZ", {"answer": "B"}), None),
        (row("ASU01", {"contain": True}, dataset_name="moon"), "moon"),
    ):
        write_lines(path, [wrong])
        with pytest.raises(SuiteError) as fault:
            [*suite("SciTS").read(tmp_path)]
        assert fault.value.where == f"{path}:1"
        assert value in (None, fault.value.value)
