"""`octavo evaluate` with a server: retries, failures, a judge, media, and a kill in the middle."""

from __future__ import annotations

import base64
import importlib.util
import json
import math
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from launch.cli import main
from launch.serving import evaluate
from tests.launch.refused import refused
from tests.launch.serving.chat_server import chat_server
from tests.launch.serving.own_suite import JUDGED, OWN, SUITES, start, write_rows
from tests.servers import Handler, QuietServer, serving
from trainer.evaluation.asked import SETTINGS, Answer, Failure, Question, key_of
from trainer.evaluation.perplexity import PERPLEXITY
from trainer.evaluation.served import ServedModel


@pytest.fixture(autouse=True)
def _own_suites(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "SUITES", SUITES)


def result(out: Path, suite: str = "own_rows") -> dict[str, Any]:
    return json.loads((out / "results.json").read_text())["suites"][suite]


def keys(out: Path) -> list[str]:
    """The keys of the whole lines of the ledger."""
    lines = (out / "answers.jsonl").read_bytes().splitlines(keepends=True) if (out / "answers.jsonl").exists() else []
    return [json.loads(line)["key"] for line in lines if line.endswith(b"\n")]


def test_retries_failures_and_what_is_sent(tmp_path, monkeypatch, capsys):
    def behave(text: str, before: int) -> Any:
        if "number 0" in text:
            return [429, 500, None, "yes e"][before]
        if "number 1" in text:
            return 400
        return "cut e" if "number 2" in text else "no"

    monkeypatch.setattr("trainer.chat.server.LONGEST_WAIT", 0.01)
    monkeypatch.setenv("KEY", "secret")
    data, out = write_rows(tmp_path / "data", 4), tmp_path / "out"
    with chat_server(behave) as server:
        words = ["evaluate", server.url, "suite=own_rows", "--data", str(data), "--out", str(out), "--settings",
                 "thinking", "--api-key-env", "KEY"]  # fmt: skip
        assert main(words) == 1
        asked = dict(server.asked)
        assert server.keys == {"Bearer secret"}
        body = {name: value for name, value in server.bodies[0].items() if name != "messages"}
        assert main(words) == 1
        again = server.asked - type(server.asked)(asked)
    assert asked == {f"question number {n} about": 4 if n == 0 else 1 for n in range(4)}
    assert again == {"question number 1 about": 1}  # what failed, and nothing else
    assert body == {
        "model": "m", "max_tokens": 65_536, "temperature": 0.8, "top_p": 0.95, "top_k": 50, "seed": 0,
        "chat_template_kwargs": {"enable_thinking": True},
    }  # fmt: skip
    found = result(out)
    assert (found["answers"], found["failures"], found["truncated"], found["answer_tokens"]) == (3, 1, 1, 5)
    assert list(found["failed"]) == ["q1"]
    assert found["value"] is None
    assert "thought" in (out / "answers.jsonl").read_text()
    assert "thought" not in (out / "own_rows.scored.jsonl").read_text()


def test_half_a_character_of_an_answer_is_replaced(tmp_path):
    """An answer that a limit cut inside a character: the next try would be cut there as well."""
    data, out = write_rows(tmp_path / "data", 2), tmp_path / "out"
    with chat_server(lambda text, before: "yes e \ud83d") as server:
        assert main(["evaluate", server.url, "suite=own_rows", "--data", str(data), "--out", str(out)]) == 0
        assert sum(server.asked.values()) == 2
    assert "yes e \ufffd" in (out / "own_rows.scored.jsonl").read_text()


def test_a_killed_evaluation_loses_no_answer_and_asks_none_twice(tmp_path):
    data, out = write_rows(tmp_path / "data", 40), tmp_path / "out"
    with chat_server(lambda text, before: 0.05) as server:
        words = (server.url, "suite=own_rows", "--data", data, "--out", out, "--concurrency", 3)
        killed = start(*words)
        deadline = time.monotonic() + 60
        while len(keys(out)) < 10:
            assert time.monotonic() < deadline
            assert killed.poll() is None
            time.sleep(0.005)
        killed.kill()
        killed.communicate(timeout=30)
        before = keys(out)
        assert 10 <= len(before) < 40
        resumed = start(*words)
        printed = resumed.communicate(timeout=120)
        assert resumed.returncode == 0, printed
        asked = {text.split()[2]: times for text, times in server.asked.items()}
    assert keys(out)[: len(before)] == before
    assert len(set(keys(out))) == len(keys(out)) == 40
    assert all(asked[key.split("/")[1][1:]] == 1 for key in before)
    assert sum(asked.values()) <= 40 + 3  # those under way when it was killed
    assert result(out)["answers"] == 40


def test_ctrl_c_ends_requests_that_are_under_way(tmp_path):
    data, out = write_rows(tmp_path / "data", 3), tmp_path / "out"
    with chat_server(lambda text, before: "e" if "number 0" in text else 60.0) as server:
        words = (server.url, "suite=own_rows", "--data", data, "--out", out, "--concurrency", 2)
        running = start(*words)
        deadline = time.monotonic() + 60
        while sum(server.asked.values()) < 3 or len(keys(out)) < 1:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        running.send_signal(signal.SIGINT)
        printed = running.communicate(timeout=20)
    assert running.returncode == 130, printed
    assert printed[1].splitlines()[-1] == "interrupted"
    assert len(keys(out)) == 1


def test_a_server_needs_the_extra(tmp_path, monkeypatch):
    genuine = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "httpx" else genuine(name))
    data = str(write_rows(tmp_path / "data", 1))
    fault = refused("evaluate", "http://127.0.0.1:9/v1", "suite=own_rows", "--data", data)
    assert (fault.where, fault.allowed) == ("httpx", "pip install -e '.[evaluate]'")


def test_a_judge_is_asked_once_for_each_answer(tmp_path):
    data, out = write_rows(tmp_path / "data", 3, JUDGED), tmp_path / "out"
    with (
        chat_server(lambda text, before: "answer e") as server,
        chat_server(lambda text, before: "yes" if text.startswith("q1") else "no") as judge,
    ):
        words = ["evaluate", server.url, "suite=judged", "--data", str(data), "--out", str(out), "--judge", judge.url]
        assert main(words) == 0
        assert main(words) == 0
        assert judge.asked == {"q1 answer e": 1, "q2 answer e": 1}
        assert not {"top_k", "seed", "chat_template_kwargs"} & set(judge.bodies[0])
    assert result(out, "judged")["value"] == pytest.approx(100 / 3)


def test_media_are_sent_as_data_and_count_by_content(tmp_path):
    picture = tmp_path / "a.png"
    picture.write_bytes(b"pixels")
    part = {"type": "image_url", "image_url": {"url": str(picture)}}
    message = {"role": "user", "content": [part, {"type": "text", "text": "see"}]}
    settings = SETTINGS["non_thinking"]
    with chat_server(lambda text, before: "seen", {"m": 32_768}) as server:
        model = ServedModel(server.url)
        ((_, answer),) = model.answer([Question("k", [message], settings)])
        model.stop()
        model.close()
        assert (answer.text, answer.thinking) == ("seen", "thought")
        (body,) = server.bodies
    sent = base64.b64encode(b"pixels").decode()
    assert body["messages"][0]["content"][0]["image_url"] == {"url": f"data:image/png;base64,{sent}"}
    assert "max_tokens" not in body  # 32,768 tokens are the whole context: the server says where it ends
    key = key_of("s", "i", [message], settings, model.identity)
    picture.rename(tmp_path / "b.png")
    part["image_url"]["url"] = str(tmp_path / "b.png")
    assert key_of("s", "i", [message], settings, model.identity) == key
    (tmp_path / "b.png").write_bytes(b"others")
    assert key_of("s", "i", [message], settings, model.identity) != key


def test_a_limit_beyond_the_context_is_not_sent():
    """Neither where the model is named nor where the prompt alone takes the limit beyond the context."""
    settings = SETTINGS["non_thinking"]
    questions = [Question(name, [{"role": "user", "content": name}], settings) for name in ("near", "beyond")]
    refusal = (400, "max_tokens=32768 with a prompt of 9 tokens exceeds the context of 32769")

    def behave(text: str, before: int) -> Any:
        return "e" if text == "near" and before else refusal

    with chat_server(behave, {"m": 32_769, "small": 8}) as server:
        model, small = ServedModel(server.url, "m"), ServedModel(server.url, "small")
        answers = {question.key: answer for question, answer in model.answer(questions)}
        for one in (model, small):
            one.stop()
            one.close()
        sent = ["max_tokens" in body for body in server.bodies if body["messages"][0]["content"] == "near"]
    assert (model.context, small.context) == (32_769, 8)
    assert "max_tokens" not in small.body(questions[0])
    assert sent == [True, False]
    assert isinstance(answers["near"], Answer)
    assert isinstance(answers["beyond"], Failure)
    assert answers["beyond"].final
    assert server.asked == {"near": 2, "beyond": 2}


def test_texts_beyond_the_context_are_left_out_of_the_value(tmp_path, monkeypatch, capsys):
    """The value is that of the others, and says of how many."""
    monkeypatch.setattr(evaluate, "SUITES", (PERPLEXITY,))
    (tmp_path / "perplexity").mkdir()
    rows = ["one two", "three", "", "four five six"]
    (tmp_path / "perplexity/a.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    refusal = {"error": {"message": "a prompt of 9 tokens leaves no room for an answer in the context of 8"}}

    class Completions(Handler):
        def do_GET(self) -> None:
            self.send({"data": [{"id": "m"}]})

        def do_POST(self) -> None:
            tokens = (text := self.body()["prompt"]).split()
            found = {"tokens": tokens, "token_logprobs": [None, *[-1.0] * (len(tokens) - 1)]}
            reply = {"choices": [{"text": text, "logprobs": found}]}
            self.send(refusal if len(tokens) > 2 else reply, 400 if len(tokens) > 2 else 200)

    with serving(QuietServer(Completions)) as server:
        words = ["evaluate", server.url, "suite=perplexity", "--data", str(tmp_path), "--out", str(tmp_path / "out")]
        assert main(words) == 1
    found = result(tmp_path / "out", "perplexity")
    assert (found["items"], found["left_out"], found["failures"], list(found["without"])) == (3, 1, 0, ["a/4"])
    assert found["value"] == pytest.approx(math.e)
    assert "a.jsonl:3" in capsys.readouterr().err


def test_another_version_of_a_model_is_asked_anew(tmp_path):
    data, out = write_rows(tmp_path / "data", 1), tmp_path / "out"
    with chat_server(lambda text, before: "e") as server:
        for version in ("1", "1", "2"):
            server.version = version
            assert main(["evaluate", server.url, "suite=own_rows", "--data", str(data), "--out", str(out)]) == 0
        assert sum(server.asked.values()) == len(keys(out)) == 2


def test_servers_that_cannot_be_used_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("trainer.chat.server.LONGEST_WAIT", 0.01)
    data = str(write_rows(tmp_path / "data", 2))
    with chat_server(lambda text, before: 401, {"a": 8, "b": 9}) as server:
        words = (server.url, f"suite={OWN.name}", "--data", data, "--out", str(tmp_path / "out"))
        fault = refused("evaluate", *words)
        assert (fault.where, fault.allowed) == ("--model", ("a", "b"))
        assert main(["evaluate", *words, "--model", "a"]) == 1  # 401: an error at once, not one for each item
        assert sum(server.asked.values()) <= 2
        assert refused("evaluate", *words, "--model", "a", "--api-key-env", "NO_SUCH").where == "--api-key-env"
        assert refused("evaluate", *words, "--model", "a", "--omit", "messages").value == "messages"
        for option in (["--raw"], ["--chat-template", "file"], ["--cache-tokens", "64"]):
            assert refused("evaluate", *words, "--model", "a", *option).where == option[0]
    fault = refused("evaluate", "http://127.0.0.1:9/v1", *words[1:], "--retries", "0")
    assert fault.value == "http://127.0.0.1:9/v1"
