"""SciTS: figures of the benchmark's own evaluation on 20 rows of each kind, and its files."""

from pathlib import Path
from typing import Any

import pytest

from tests.trainer.evaluation.suites.runs import answered, items_of, suite, write_lines
from trainer.evaluation.scorers import signals
from trainer.evaluation.suite import SuiteError

_WORDS = "mi|norm|cd norm|hyp|the mi|NORM||mi cd|a hypothesis|normal|cd|MI and CD|no idea|norm|hyp|cd|mi|x|norm cd"
_WORDS += "|mi hyp"
LABELS = ["MI", "NORM", "CD", "HYP", "MI", "NORM", "CD", ["MI", "CD"], "HYP", "NORM", ["CD", "HYP"], ["MI", "CD"], "MI"]
LABELS += ["MI", "HYP", "CD", "MI", "NORM", ["NORM", "HYP"], "MI"]
ONE_OR_MORE = [{"gt_class": {"default": label}} for label in LABELS]
_EVENTS = "no event|at 12 and 30|an anomaly|normal|event at 44|nothing|maybe 3 7|P at 10, S at 25|not seen|yes 5"
TIMES: list[dict[str, Any]] = [
    {"contain": True, "p": 10 + place, "s": 20 + place} if place % 3 else {"contain": False} for place in range(20)
]


def test_classes_are_those_of_the_published_evaluation() -> None:
    answers = _WORDS.split("|")
    assert len(answers) == len(ONE_OR_MORE) == 20
    figures = signals.classes(answers, ONE_OR_MORE)["default"]
    assert [figures.value, figures.extra["uar"], figures.extra["f1"]] == pytest.approx(CLASSES, abs=1e-9)


def test_rows_of_a_task_may_have_other_keys() -> None:
    keyed = [{"gt_class": {"rhythm": "SR"}}, {"gt_class": {"form": "NORM"}}, {"gt_class": {"form": "HYP"}}]
    figures = signals.classes(["sr", "norm", "norm"], keyed)
    assert {key: figure.value for key, figure in figures.items()} == {"rhythm": 1, "form": 0.5}


@pytest.mark.parametrize("data_set", ["STEAD", "MIMII Due"])
def test_events_are_those_of_the_published_evaluation(data_set: str) -> None:
    figures = signals.events(_EVENTS.split("|") * 2, TIMES, data_set)
    found = [figures.value, *(figures.extra[name] for name in ("f1", "decided", "mean_error", "median_error"))]
    assert found == pytest.approx(EVENTS[data_set], abs=1e-9)


# of OpenTSLab/TimeOmni, eval_benchmark.py at 4d4a9f4: classification_eval and detection_eval of these rows
CLASSES = [0.75, 0.7458333333333333, 0.7711038961038961]
EVENTS = {
    "STEAD": [0.65, 0.6956521739130435, 1.0, 0.6087731053643405, 0.42857142857142855],
    "MIMII Due": [0.1, 0.5, 0.2, 0.0, 0.0],
}


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
