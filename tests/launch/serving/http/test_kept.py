"""Answers on disk: given again as they were, to equal requests alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from launch.serving.http.kept import KeptAnswers, open_kept
from tests.launch.serving import tiny_server
from tests.trainer.chat.templates import FAMILIES
from trainer.config.errors import CommandError
from trainer.storage.ledger import Ledger

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
QUESTION = [{"role": "user", "content": "kalo"}]
REQUESTS: list[tuple[str, dict[str, Any]]] = [
    (COMPLETIONS, {"prompt": ["kalo", "mi"], "max_tokens": 9, "seed": 3, "n": 2, "logprobs": 2, "echo": True}),
    (COMPLETIONS, {"prompt": "kalo", "max_tokens": 0, "echo": True, "logprobs": 1, "temperature": 0}),
    (COMPLETIONS, {"prompt": "kalo", "max_tokens": 30, "temperature": 0, "stop": ["z"]}),
    (CHAT, {"messages": QUESTION, "max_tokens": 7, "seed": 1, "logprobs": True, "top_logprobs": 3}),
    ("/generate", {"prompt": "kalo", "max_tokens": 7, "seed": 1, "return_logprob": True}),
]


def start(path: Path, version: str = "a"):
    return tiny_server.served(template=FAMILIES["qwen3"].text, kept=KeptAnswers(Ledger(path), version))


def answers(client: TestClient) -> list[Any]:
    """To all requests, without what is new each time."""
    found = [client.post(path, json=body).json() for path, body in REQUESTS]
    return [{name: value for name, value in one.items() if name not in ("id", "created")} for one in found]


def test_equal_requests_get_the_same_without_being_computed(tmp_path):
    server = start(tmp_path / "kept.jsonl")
    with tiny_server.client(server) as client:
        first = answers(client)
    again = start(tmp_path / "kept.jsonl")
    with tiny_server.client(again) as client:
        assert answers(client) == first
        assert again.worker.engine._submitted == 0
        for path, body in REQUESTS[2:]:
            with client.stream("POST", path, json=body | {"stream": True}) as answer:
                streamed = [line for line in answer.iter_lines() if line]
            assert streamed[-1] == "data: [DONE]"
            assert len(streamed) > 3
        assert again.worker.engine._submitted == 0
        assert again.worker.pending == 0


def test_other_requests_are_computed(tmp_path):
    body = {"prompt": "kalo", "max_tokens": 7, "seed": 3}
    changes = [{"seed": 4}, {"max_tokens": 8}, {"prompt": "mi"}, {"stop": ["q"]}, {"top_k": 5}, {"logprobs": 1}]
    server = start(tmp_path / "kept.jsonl")
    with tiny_server.client(server) as client:
        for number, change in enumerate([{}, *changes, {"seed": None}], 1):
            for _ in range(2 if change != {"seed": None} else 1):
                assert client.post(COMPLETIONS, json=body | change).status_code == 200
            assert server.worker.engine._submitted == number


def test_routes_are_computed_each_time(tmp_path):
    body = {"prompt": "kalo", "max_tokens": 7, "seed": 3, "return_routed_experts": True}
    with tiny_server.client(start(tmp_path / "kept.jsonl")) as client:
        first, second = (client.post("/generate", json=body).json() for _ in range(2))
    assert first == second
    assert first["meta_info"]["routed_experts"]


def test_two_versions_of_the_weights_share_no_answer(tmp_path):
    for version in ("a", "b"):
        server = start(tmp_path / "kept.jsonl", version)
        with tiny_server.client(server) as client:
            client.post(COMPLETIONS, json={"prompt": "kalo", "max_tokens": 7, "seed": 3})
        assert server.worker.engine._submitted == 1


def test_a_file_that_cannot_be_used_is_refused(tmp_path):
    (tmp_path / "other").write_text("kalo\n")
    with pytest.raises(CommandError) as caught:
        open_kept(tmp_path / "other", "a")
    assert (caught.value.where, caught.value.allowed) == ("--answers", "another file")
    kept = open_kept(tmp_path / "kept", "a")
    with pytest.raises(CommandError) as caught:
        open_kept(tmp_path / "kept", "a")
    assert (caught.value.where, caught.value.value) == ("--answers", str(tmp_path / "kept"))
    kept.close()


@pytest.mark.parametrize("call", ["sync", "os.pwrite"])
def test_a_full_disk_loses_neither_the_answer_nor_the_file(tmp_path, monkeypatch, capsys, call):
    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    server = start(tmp_path / "kept.jsonl")
    with tiny_server.client(server) as client:
        with monkeypatch.context() as patch:
            patch.setattr(f"trainer.storage.ledger.{call}", full)
            assert client.post(COMPLETIONS, json={"prompt": "kalo", "seed": 1, "max_tokens": 30}).status_code == 200
        assert client.post(COMPLETIONS, json={"prompt": "kalo", "seed": 1, "max_tokens": 1}).status_code == 200
    assert "No space left" in capsys.readouterr().err
    with Ledger(tmp_path / "kept.jsonl") as ledger:
        assert len(ledger) == 1


@pytest.mark.parametrize("how", ["of another shape", "on a bad disk"])
def test_a_kept_answer_that_cannot_be_read_is_computed_again(tmp_path, monkeypatch, capsys, how):
    def fail(*args: Any) -> None:
        raise OSError(5, "Input/output error")

    path, body = tmp_path / "kept.jsonl", {"prompt": ["kalo", "mi"], "seed": 1, "max_tokens": 5}
    with tiny_server.client(start(path)) as client:
        first = client.post(COMPLETIONS, json=body).json()["choices"]
    if how == "of another shape":
        entries = [json.loads(line) for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps({"key": entry["key"]}) + "\n" for entry in entries))
    else:
        monkeypatch.setattr(Ledger, "get", fail)
    again = start(path)
    with tiny_server.client(again) as client:
        assert client.post(COMPLETIONS, json=body).json()["choices"] == first
        assert client.get("/health").json()["pending"] == 0
    assert again.worker.engine._submitted == 2
    assert len(capsys.readouterr().err.splitlines()) == 2
