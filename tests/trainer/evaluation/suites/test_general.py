"""MMLU-Pro, MMMU-Pro, AIME, IMO-Answer-Bench, IFBench and the harness suites, on files that we write."""

import base64
import csv
import json
import shlex
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.trainer.evaluation.suites.runs import PIXEL, answered, images_of, items_of, suite, text_of, write_lines
from trainer.evaluation.registry import SUITES
from trainer.evaluation.scorers.mathematics.verify import MODULE, equal
from trainer.evaluation.scorers.worker import Worker
from trainer.evaluation.suite import SuiteError
from trainer.evaluation.suites.general import instructions, mathematics

# Benchmarks of the report's tables that this repository evaluates, by their names there.
OWN = {
    "SciReasoner", "SFE", "SmolInstruct", "MatBench", "Mol-Instructions", "MicroVQA", "Biology-Instructions",
    "XLRS-Bench", "MSEarth-MCQ", "SciTS", "MMMU-Pro", "MMLU-Pro", "AIME-2025", "IMO-Answer-Bench", "RefCOCO-avg",
    "ScreenSpot V2", "SArena-Icon", "IFBench",
}  # fmt: skip
HARNESS = {"LCB V6", "GAIA (text only)", "tau2-Bench"}


def test_every_benchmark_of_the_report_is_there_once() -> None:
    names = [one.name for one in SUITES]
    assert {*names} == {"Perplexity", *OWN, *HARNESS}
    assert {one.name for one in SUITES if one.harness} == HARNESS
    assert len(set(names)) == len(names) == len({one.folder for one in SUITES})
    assert all(one.harness or one.read for one in SUITES)
    for one in SUITES:
        assert one.domain
        assert one.metric
        assert one.metric_source
        assert one.where_data


def test_mmlu_pro(tmp_path: Path) -> None:
    rows = [
        {"question_id": 1, "question": "1+1?", "options": ["1", "2", "N/A"], "answer": "B", "category": "math"},
        {"question_id": 2, "question": "2+2?", "options": ["4", "5"], "answer": "A", "category": "math"},
        {"question_id": 3, "question": "Where?", "options": ["here", "there"], "answer": "B", "category": "law"},
    ]
    (tmp_path / "data").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "data/test-00000-of-00001.parquet")
    items = items_of("MMLU-Pro", tmp_path)
    assert "N/A" not in text_of(items[0])
    result = answered("MMLU-Pro", items, lambda item: "So the answer is (B).")
    assert result.value == pytest.approx(200 / 3)
    assert result.categories == pytest.approx({"law": 100, "math": 50})
    rows[0]["answer"] = "C"
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "data/test-00000-of-00001.parquet")
    with pytest.raises(SuiteError) as fault:
        [*suite("MMLU-Pro").read(tmp_path)]
    assert (fault.value.value, fault.value.allowed) == ("C", ("A", "B"))


def test_mmmu_pro_shows_images_where_the_question_names_them(tmp_path: Path) -> None:
    image = {"bytes": base64.b64decode(PIXEL), "path": None}
    standard = [
        {"id": "a", "question": "What is <image 1> beside <image 2>?", "options": "['<image 3>', 'red']", "answer": "B"}
        | {"subject": "Art", "image_1": image, "image_2": image, "image_3": image}
    ]
    seen = [{"id": "a", "image": image, "options": "['white', 'red']", "answer": "A", "subject": "Art"}]
    for folder, rows in (("standard (10 options)", standard), ("vision", seen)):
        (tmp_path / folder).mkdir()
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / folder / "test-00000-of-00001.parquet")
    items = items_of("MMMU-Pro", tmp_path)
    assert [len(images_of(item)) for item in items] == [3, 1]
    assert images_of(items[0])[0].read_bytes() == base64.b64decode(PIXEL)
    assert items[0].messages[0]["content"][0] == {"type": "text", "text": "What is"}
    result = answered("MMMU-Pro", items, lambda item: "I think so.\nAnswer: B")
    assert result.value == 50
    assert result.categories == {"standard": 100, "vision": 0}


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    yield mathematics.WORKER
    mathematics.WORKER.close()


def test_mathematics(tmp_path: Path, worker: Worker) -> None:
    write_lines(
        tmp_path / "aime/aime2025-I.jsonl", [{"question": "q", "answer": "70"}, {"question": "r", "answer": 588}]
    )
    items = items_of("AIME-2025", tmp_path / "aime")
    assert answered("AIME-2025", items, lambda item: r"hence \boxed{70}").value == 50
    write_lines(tmp_path / "aime/aime2025-I.jsonl", [{"question": "q", "answer": "1000"}])
    with pytest.raises(SuiteError) as fault:
        [*suite("AIME-2025").read(tmp_path / "aime")]
    assert fault.value.value == "1000"
    path = tmp_path / "imo/answerbench_v2.csv"
    path.parent.mkdir()
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["Problem ID", "Problem", "Short Answer", "Category", "Source"])
        table.writerow(["imo-1", "Find x, if any.", r"$\frac{1}{2}$", "Algebra", "here"])
        table.writerow(["imo-2", "Find f.", "$2^{n-1}$", "Combinatorics", "there"])
    items = items_of("IMO-Answer-Bench", tmp_path / "imo")
    result = answered("IMO-Answer-Bench", items, lambda item: r"The answer is \boxed{0.5}")
    assert result.categories == {"Algebra": 100, "Combinatorics": 0}
    assert answered("IMO-Answer-Bench", items, lambda item: "x", verdict="A").value == 100
    for verdict, value in (("Answer: B", 0), ("Answer: A", 100), ("Not B but **A**", 100), ("Agreed", 0)):
        assert answered("IMO-Answer-Bench", items, lambda item: "x", verdict=verdict).value == value
    one = suite("IMO-Answer-Bench")
    assert one.judge is not None
    assert r"\frac{1}{2}" in str(one.judge(items[0], "x"))


def test_an_answer_that_takes_too_long_is_wrong_and_ends_the_worker(worker: Worker) -> None:
    assert equal(worker, r"\boxed{(x+1)^2}", "x^2+2x+1") is True
    assert equal(worker, "no formula", "3") is None
    process = worker._process
    worker.seconds = 0.3
    try:
        assert equal(worker, r"\boxed{10^{10^{10^{10}}}}", "3") is False
    finally:
        worker.seconds = Worker(MODULE).seconds
    assert process is not None
    assert process.returncode is not None
    assert worker._process is None  # the next question starts another


def test_ifbench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instructions, "need_nltk", lambda *names: None)
    rows = [
        {"key": "0", "prompt": "p", "instruction_id_list": ["format:no_whitespace"], "kwargs": [{"N": None}]},
        {
            "key": "1",
            "prompt": "q",
            "instruction_id_list": ["count:numbers", "format:list"],
            "kwargs": [{"N": 2.0, "sep": None}, {"N": None, "sep": "..."}],
        },
    ]
    write_lines(tmp_path / "IFBench_test.jsonl", rows)
    items = items_of("IFBench", tmp_path)
    result = answered("IFBench", items, lambda item: "Sure!\n1 ... 2 ..." if item.id == "1" else "Sure!\nnone")
    assert result.value == 50
    assert result.metrics == pytest.approx(
        {"constraint_strict": 200 / 3, "prompt_loose": 100, "constraint_loose": 100, "mean_of_four": 950 / 12}
    )
    assert result.categories == {"count": 100, "format": 50}
    rows[0]["instruction_id_list"] = ["format:rhyme"]
    write_lines(tmp_path / "IFBench_test.jsonl", rows)
    with pytest.raises(SuiteError) as fault:
        [*suite("IFBench").read(tmp_path)]
    assert fault.value.value == "format:rhyme"


def test_suites_of_other_harnesses_name_a_command(tmp_path: Path) -> None:
    needed = {
        "LCB V6": {"--n": "1", "--temperature": "0.8", "--top_p": "0.95", "--max_tokens": "65536",
                   "--openai_timeout": "3600"},
        "GAIA (text only)": {"--temperature": "0.8", "--top-p": "0.95", "--max-tokens": "65536"},
        "tau2-Bench": {"--num-trials": "4", "--agent-llm": "openai/NAME"},
    }  # fmt: skip
    for name, options in needed.items():
        assert "http://127.0.0.1" in suite(name).harness
        words = shlex.split(suite(name).harness)
        assert options.items() <= dict(pairwise(words)).items()
        with pytest.raises(SuiteError):
            suite(name).read(tmp_path)
    agent = json.loads(words[words.index("--agent-llm-args") + 1])
    assert agent == {"temperature": 0.8, "api_base": "http://127.0.0.1:8000/v1", "api_key": "none"}
    assert "OPENAI_API_BASE" not in suite("tau2-Bench").harness  # the simulated user's model is elsewhere
