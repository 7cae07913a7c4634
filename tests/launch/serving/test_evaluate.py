"""`octavo evaluate` with the embedded engine on a suite of the tests' own."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path

import pytest

from launch.cli import main
from launch.serving import evaluate
from tests.launch.refused import refused
from tests.launch.serving.own_suite import OWN, SUITES, start, write_rows
from tests.trainer.data.small_mixture import DOCUMENTS, make_mixture, texts
from tests.trainer.tiny_run import records, tiny_config
from trainer.evaluation.perplexity import PERPLEXITY
from trainer.run.process import train
from trainer.weights.export import export

MODEL = {"vocab_size": 320, "router_groups": 1, "positions": "rope", "max_position": 200, "init_std": 0.3}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("runs") / "run"
    cfg = tiny_config(directory, model=MODEL, steps=1)
    with pytest.MonkeyPatch.context() as patch:
        cfg.data = make_mixture(tmp_path_factory.mktemp("mixture"), patch)
    assert train(cfg) == 0
    return directory


@pytest.fixture(autouse=True)
def _own_suites(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "SUITES", (*SUITES, PERPLEXITY))


@pytest.fixture
def words(run: Path, tmp_path: Path) -> list[str]:
    data = write_rows(tmp_path / "data", 5)
    return [str(run), "suite=own_rows", "--data", str(data), "--out", str(tmp_path / "out"), "--raw"]


def entries(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]


def test_a_suite_from_rows_to_results(run, tmp_path, words, capsys):
    assert main(["evaluate", *words, "--max-tokens", "9"]) == 0
    assert "Own-Rows" in capsys.readouterr().out
    found = json.loads((tmp_path / "out/results.json").read_text())
    result = found["suites"]["own_rows"]
    answers = entries(tmp_path / "out")
    scored = [json.loads(line) for line in (tmp_path / "out/own_rows.scored.jsonl").read_text().splitlines()]
    assert [one["id"] for one in scored] == [f"q{n}" for n in range(5)]
    assert result["value"] == 100 * sum("e" in one["answer"] for one in scored) / 5
    assert result["low"] <= result["value"] <= result["high"]
    assert (result["items"], result["answers"], result["failures"], result["reported"]) == (5, 5, 0, 50.0)
    assert result["truncated"] == sum(one["finish"] == "length" for one in answers)
    assert result["answer_tokens"] == sum(one["tokens"] for one in answers) <= 45
    assert result["categories"] == {"c": {"value": result["value"], "reported": None}}
    assert (found["settings"]["temperature"], found["settings"]["max_tokens"]) == (0.0, 9)
    page = (tmp_path / "out/results.html").read_text()
    assert "Own-Rows" in page
    assert "http" not in page.replace("<!doctype html>", "")  # nothing from elsewhere


def test_a_model_whose_answers_depend_on_others_is_a_warning(words, monkeypatch, capsys):
    for found, warned in ([], False), (["64 x 7 x 9"], True):
        monkeypatch.setattr("trainer.model.exact.check.dependent_products", lambda model, found=found: found)
        assert main(["evaluate", *words, "--max-tokens", "2", "--limit", "1", "--seed", str(len(found))]) == 0
        assert ("64 x 7 x 9" in capsys.readouterr().err) == warned


def test_answers_are_those_of_generate(run, tmp_path, words, capsys):
    assert main(["evaluate", *words, "--max-tokens", "9", "--limit", "1"]) == 0
    capsys.readouterr()
    assert main(["generate", str(run), "question number 0 about", "--max-tokens", "9", "--temperature", "0"]) == 0
    assert entries(tmp_path / "out")[0]["text"] + "\n" == capsys.readouterr().out


def test_what_is_answered_is_not_asked_again_and_what_has_changed_is(tmp_path, words):
    assert main(["evaluate", *words, "--max-tokens", "9", "--limit", "3"]) == 0
    first = entries(tmp_path / "out")
    assert main(["evaluate", *words, "--max-tokens", "9"]) == 0
    assert entries(tmp_path / "out")[:3] == first
    assert len(entries(tmp_path / "out")) == 5
    assert main(["evaluate", *words, "--max-tokens", "8"]) == 0
    assert len(entries(tmp_path / "out")) == 10
    rows = tmp_path / "data/own_rows/rows.jsonl"
    rows.write_text(rows.read_text().replace("number 2", "number two"))
    assert main(["evaluate", *words, "--max-tokens", "9"]) == 0
    assert [one["key"].split("/")[1] for one in entries(tmp_path / "out")[10:]] == ["q2"]


def test_half_a_line_is_asked_again(tmp_path, words):
    assert main(["evaluate", *words, "--max-tokens", "9"]) == 0
    path = tmp_path / "out/answers.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-7])
    assert main(["evaluate", *words, "--max-tokens", "9"]) == 0
    assert path.read_bytes() == whole


@pytest.mark.slow  # two starts of torch; test_evaluate_server.py has the same with a server
def test_a_killed_evaluation_loses_no_answer_and_asks_none_twice(run, tmp_path):
    data, out = write_rows(tmp_path / "data", 16), tmp_path / "out"
    words = (run, "suite=own_rows", "--data", data, "--out", out, "--raw", "--max-tokens", 40, "--concurrency", 2)
    killed = start(*words)
    deadline = time.monotonic() + 60
    while not (out / "answers.jsonl").exists() or len(entries_written(out)) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    killed.kill()
    killed.communicate(timeout=30)
    before = entries_written(out)
    assert 3 <= len(before) < 16
    resumed = start(*words)
    printed = resumed.communicate(timeout=120)
    assert resumed.returncode == 0, printed
    after = entries_written(out)
    assert after[: len(before)] == before
    keys = [json.loads(line)["key"] for line in after]
    assert len(keys) == len(set(keys)) == 16
    assert json.loads((out / "results.json").read_text())["suites"]["own_rows"]["answers"] == 16


def entries_written(out: Path) -> list[bytes]:
    return [line for line in (out / "answers.jsonl").read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]


def test_two_processes_do_not_write_one_ledger(tmp_path, words):
    from trainer.storage.ledger import Ledger

    with Ledger(tmp_path / "out/answers.jsonl"):
        assert main(["evaluate", *words]) == 1


def test_mistakes_are_refused_before_anything_starts(run, tmp_path, words):
    assert refused("evaluate").where == "MODEL"
    assert refused("evaluate", str(run)).where == "suite"
    fault = refused("evaluate", str(run), "suite=own")
    assert (fault.where, fault.value) == ("suite", "own")
    assert refused("evaluate", str(run), "mmlu").where == "mmlu"
    assert refused("evaluate", str(run), "suite=judged", "--data", str(tmp_path)).where == "--judge"
    fault = refused("evaluate", str(run), "suite=own_rows", "--data", str(tmp_path / "none"))
    assert (fault.where, fault.allowed) == (str(tmp_path / "none/own_rows"), ("rows.jsonl",))
    for option, value in (
        ("--timeout", "3"), ("--retries", "0"), ("--model", "m"), ("--omit", "top_k"), ("--api-key-env", "HOME"),
        ("--judge-model", "m"), ("--judge-key-env", "HOME"), ("--chat-template", "file"),
    ):  # fmt: skip
        assert refused("evaluate", *words, option, value).where == option
    assert refused("evaluate", *words, "--markdown").where == "--markdown"
    fault = refused("evaluate", *words[:-1])  # without --raw
    assert fault.where == str(run)
    assert "--raw" in fault.allowed
    rows = tmp_path / "data" / OWN.folder / "rows.jsonl"
    rows.write_text(rows.read_text() + rows.read_text())
    assert refused("evaluate", *words).value[0] == "q0"
    rows.write_text("")
    assert refused("evaluate", *words).value == 0


def perplexity(out: Path, *words: object) -> dict:
    assert main(["evaluate", *map(str, words), "suite=perplexity", "--out", str(out), "--raw"]) == 0
    return json.loads((out / "results.json").read_text())["suites"]["perplexity"]


def test_perplexity_of_held_out_data_is_that_of_the_runs_record(run, tmp_path):
    found = perplexity(tmp_path / "out", run)
    recorded = [record["heldout"] for record in records(run) if record.get("event") == "evaluation"][-1]
    assert found["categories"].keys() == recorded.keys()
    for domain, loss in recorded.items():
        assert found["categories"][domain]["value"] == pytest.approx(math.exp(loss), rel=1e-6)
    assert found["low"] < found["value"] < found["high"]
    assert found["metrics"] == {}
    answers = entries(tmp_path / "out")
    assert perplexity(tmp_path / "out", run) == found
    assert entries(tmp_path / "out") == answers  # nothing was scored twice


def test_texts_that_the_run_was_trained_on_are_reported(run, tmp_path, capsys):
    (tmp_path / "data/perplexity").mkdir(parents=True)
    name, count = next(iter(DOCUMENTS.items()))
    for domain, rows in {"known": texts(name, count), "new": ["a text of words that no document has " * 3]}.items():
        lines = "".join(json.dumps({"text": row}) + "\n" for row in rows)
        (tmp_path / f"data/perplexity/{domain}.jsonl").write_text(lines)
    perplexity(tmp_path / "out", run, "--data", tmp_path / "data", "--limit", 30)
    (warning,) = [line for line in capsys.readouterr().err.splitlines() if "data.sources" in line]
    assert "known" in warning
    assert f"data.sources.{name}" in warning


@pytest.mark.gpu
def test_on_a_gpu(run, tmp_path, words):
    """Answers, and the perplexity that the run recorded, by the engine on the device."""
    import torch

    torch.cuda.reset_peak_memory_stats()
    assert evaluate._device().type == "cuda"
    assert main(["evaluate", *words, "--max-tokens", "9", "--temperature", "0.8", "--concurrency", "3"]) == 0
    assert [one["tokens"] > 0 for one in entries(tmp_path / "out")] == [True] * 5
    found = perplexity(tmp_path / "heldout", run)
    recorded = [record["heldout"] for record in records(run) if record.get("event") == "evaluation"][-1]
    for domain, loss in recorded.items():
        assert found["categories"][domain]["value"] == pytest.approx(math.exp(loss), rel=1e-3)
    assert torch.cuda.max_memory_allocated() > 0


def test_perplexity_of_files_is_that_of_transformers(run, tmp_path):
    """Also of a text that is longer than the context, whose pieces share a token."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    export(run, tmp_path / "exported", dtype="fp32")
    texts = {"short": ["the first text", "another, with ä"], "long": ["many words of a text " * 40]}
    (tmp_path / "data/perplexity").mkdir(parents=True)
    for domain, rows in texts.items():
        lines = "".join(json.dumps({"text": row}) + "\n" for row in rows)
        (tmp_path / f"data/perplexity/{domain}.jsonl").write_text(lines)
    found = perplexity(tmp_path / "out", tmp_path / "exported", "--data", tmp_path / "data")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "exported").eval().requires_grad_(False)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "exported")
    for domain, rows in texts.items():
        nats = tokens = 0
        for row in rows:
            ids = torch.tensor(tokenizer(row)["input_ids"])
            assert (len(ids) > 200) == (domain == "long")
            for first in range(0, len(ids) - 1, 199):
                piece = ids[first : first + 200]
                log_probs = torch.log_softmax(model(piece[None]).logits[0, :-1].double(), -1)
                nats -= float(log_probs.gather(1, piece[1:, None]).sum())
                tokens += len(piece) - 1
        assert found["categories"][domain]["value"] == pytest.approx(math.exp(nats / tokens), rel=1e-5)
        size = sum(len(row.encode()) for row in rows)
        assert found["metrics"][f"bits per byte, {domain}"] == pytest.approx(nats / math.log(2) / size, rel=1e-5)
