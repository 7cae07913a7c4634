"""Suites with images on files that we write."""

import base64
import csv
import json
from pathlib import Path
from typing import Any

import pytest

from tests.trainer.evaluation.suites.runs import PIXEL, answered, images_of, items_of, suite, text_of, write_lines
from trainer.evaluation.suite import SuiteError


def write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]), delimiter="\t")
        table.writeheader()
        table.writerows(rows)


QUESTIONS = [
    {"index": 1, "image": PIXEL, "question": "Which colour?", "A": "red", "B": "white", "C": "", "answer": "B"}
    | {"category": "colour", "hint": "It is a dot."},
    {"index": 2, "image": "1", "question": "Which shape?", "A": "dot", "B": "line", "C": "star", "answer": "A"}
    | {"category": "shape", "hint": ""},
]


@pytest.mark.parametrize(("name", "file"), [("MicroVQA", "MicroVQA.tsv"), ("MSEarth-MCQ", "MSEarthMCQ.tsv")])
def test_multiple_choice_over_images(name: str, file: str, tmp_path: Path) -> None:
    write_table(tmp_path / file, QUESTIONS)
    items = items_of(name, tmp_path)
    assert images_of(items[0]) == images_of(items[1])  # the second row points to the first
    assert images_of(items[0])[0].read_bytes() == base64.b64decode(PIXEL)
    assert items[0].meta["options"] == {"A": "red", "B": "white"}
    assert "It is a dot." in text_of(items[0])
    assert answered(name, items, lambda item: "B").categories == {"colour": 100, "shape": 0}
    one = suite(name)
    assert one.judge is not None
    assert one.judge(items[0], "B") is None
    assert "pale" in str(one.judge(items[0], "something pale"))
    assert answered(name, items, lambda item: "something pale", verdict="B").value == 50
    write_table(tmp_path / file, [{**QUESTIONS[0], "answer": "D"}])
    with pytest.raises(SuiteError) as fault:
        [*one.read(tmp_path)]
    where = f"{tmp_path / file}:1:answer"
    assert (fault.value.where, fault.value.value, fault.value.allowed) == (where, "D", ("A", "B"))
    write_table(tmp_path / file, [{**QUESTIONS[0], "image": "9"}])
    with pytest.raises(SuiteError) as lost:
        [*one.read(tmp_path)]
    assert lost.value.value == "9"


def test_xlrs_bench_wants_all_right_options_and_averages_tasks(tmp_path: Path) -> None:
    rows = [
        {
            "index": n,
            "image": PIXEL,
            "question": "Where?",
            "multi-choice options": " (A) here (B) there",
            "answer": answer,
        }
        | {"category": "perception", "l2-category": task}
        for n, (answer, task) in enumerate([("A", "count"), ("AB", "count"), ("B", "plan")])
    ]
    write_lines(tmp_path / "XLRS-Bench-lite_part0.jsonl", rows)
    items = items_of("XLRS-Bench", tmp_path)
    result = answered("XLRS-Bench", items, lambda item: "The answer is (B) and (A)")
    assert result.categories == {"perception/count": 50, "perception/plan": 0}
    assert result.value == 25
    assert result.metrics["micro"] == pytest.approx(100 / 3)


def test_sfe_is_marked_by_the_judge(tmp_path: Path) -> None:
    rows = [
        {"index": 0, "image": PIXEL, "question": "<image> Which line is stronger?", "question_type": "mcq"}
        | {"answer": "A", "category": "Astronomy", "A": "left", "B": "right"},
        {
            "index": 1,
            "image": str([PIXEL, PIXEL]),
            "question": "Compare <image> with <image>.",
            "question_type": "open_ended",
        }
        | {"answer": "equal", "category": "Materials", "A": "", "B": ""},
    ]
    write_table(tmp_path / "SFE.tsv", rows)
    items = items_of("SFE", tmp_path)
    assert [len(images_of(item)) for item in items] == [1, 2]
    assert "B. right" in text_of(items[0])
    assert [answered("SFE", items, lambda item: "x", verdict).value for verdict in ("9", "3", "nine", " 6\n")] == (
        pytest.approx([100, 100 / 3, 0, 200 / 3])
    )
    rows[1]["question"] = "Compare."
    write_table(tmp_path / "SFE.tsv", rows)
    with pytest.raises(SuiteError) as fault:
        [*suite("SFE").read(tmp_path)]
    assert (fault.value.value, fault.value.allowed) == (0, 2)


def test_refcoco_averages_the_splits(tmp_path: Path) -> None:
    box = {"bbox_x1": 10, "bbox_y1": 20, "bbox_x2": 30, "bbox_y2": 60}
    rows = [
        {"index": n, "image": PIXEL, "question": "the dot", "width": 100, "height": 200, "category": split, **box}
        for n, split in enumerate(["RefCOCO val", "RefCOCO val", "RefCOCO+ test-A", "RefCOCOg test"])
    ]
    write_table(tmp_path / "RefCOCO.tsv", rows)
    items = items_of("RefCOCO-avg", tmp_path)
    assert [item.meta["category"] for item in items] == [
        "RefCOCO_val",
        "RefCOCO_val",
        "RefCOCO+_testA",
        "RefCOCOg_test",
    ]
    # thousandths of the image, right; half of the box, just right; a third of it, wrong; pixels are not needed here
    texts = ["[100, 100, 300, 300]", "[100,100,200,300]", "0 0", "[.1,.1,.3,.3]"]
    result = answered("RefCOCO-avg", items, lambda item: texts[items.index(item)])
    assert result.categories == {"RefCOCO_val": 100, "RefCOCO+_testA": 0, "RefCOCOg_test": 100}
    assert result.value == pytest.approx(200 / 3)
    assert result.metrics["overlap"] == pytest.approx((0.75 + 0 + 1) / 3)
    for wrong in ("nan", "", "x"):
        write_table(tmp_path / "RefCOCO.tsv", [{**rows[0], "bbox_x1": wrong}])
        with pytest.raises(SuiteError) as fault:
            [*suite("RefCOCO-avg").read(tmp_path)]
        assert fault.value.where == f"{tmp_path}/RefCOCO.tsv:1:bbox_x1"
    write_table(tmp_path / "RefCOCO.tsv", [{**rows[0], "category": "Flickr val"}])
    with pytest.raises(SuiteError) as fault:
        [*suite("RefCOCO-avg").read(tmp_path)]
    assert fault.value.value == "Flickr_val"


def test_refcoco_without_sizes_and_with_an_index_in_each_split(tmp_path: Path) -> None:
    other = base64.b64encode(base64.b64decode(PIXEL) + b"more").decode()
    rows = [
        {"index": 0, "image": image, "question": "the dot", "split": split, "answer": "[0.1, 0.2, 0.3, 0.4]"}
        for image, split in ((PIXEL, "RefCOCO_val"), (other, "RefCOCO_testA"))
    ]
    write_table(tmp_path / "RefCOCO.tsv", rows)
    items = items_of("RefCOCO-avg", tmp_path)
    assert len({image for item in items for image in images_of(item)}) == 2
    assert answered("RefCOCO-avg", items, lambda item: "[100, 200, 300, 400]").value == 100
    write_table(tmp_path / "RefCOCO.tsv", [*rows, {**rows[0], "index": 1, "image": "0"}])  # of two rows
    with pytest.raises(SuiteError) as fault:
        [*suite("RefCOCO-avg").read(tmp_path)]
    assert fault.value.where == f"{tmp_path}/RefCOCO.tsv:3"
    write_table(tmp_path / "RefCOCO.tsv", [{**rows[0], "answer": "[10, 20, 30, 40]"}])
    with pytest.raises(SuiteError):
        [*suite("RefCOCO-avg").read(tmp_path)]


def test_screenspot_looks_for_the_click_in_the_box(tmp_path: Path) -> None:
    pillow = pytest.importorskip("PIL.Image")
    row = {"img_filename": "a.png", "bbox": [50, 50, 21, 11], "instruction": "open it", "data_type": "icon"}
    for kind in ("desktop", "mobile", "web"):
        (tmp_path / f"screenspot_{kind}_v2.json").write_text(json.dumps([row]))
    with pytest.raises(SuiteError) as missing:
        [*suite("ScreenSpot V2").read(tmp_path)]
    assert missing.value.where == str(tmp_path / "screenspotv2_image/a.png")
    (tmp_path / "screenspotv2_image").mkdir()
    pillow.new("RGB", (200, 100)).save(tmp_path / "screenspotv2_image/a.png")
    items = items_of("ScreenSpot V2", tmp_path)
    for click, share in (
        ("pyautogui.click(x=0.3, y=0.55)", 100),
        ("pyautogui.click(x=60, y=55)", 100),  # pixels
        ("pyautogui.click(x=70, y=60)", 100),  # the last pixel of the box
        ("pyautogui.click(x=71, y=60)", 0),
        ("pyautogui.click(x=0.36, y=0.55)", 0),
        ("nowhere", 0),
    ):
        assert answered("ScreenSpot V2", items, lambda item, text=click: text).value == share, click
