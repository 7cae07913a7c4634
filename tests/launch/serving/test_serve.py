"""`octavo serve` as a process: its options, and its end by SIGTERM, Ctrl-C and SIGKILL."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from launch.serving import serve
from launch.serving.http.kept import version_of
from launch.serving.http.run import listen
from tests.launch.refused import refused
from tests.launch.serving import tiny_server
from tests.trainer.data.small_mixture import make_mixture
from tests.trainer.tiny_run import tiny_config
from trainer.chat.template import ChatTemplate
from trainer.config.errors import CommandError
from trainer.engine.engine import Engine
from trainer.engine.load import open_source
from trainer.engine.request import Request, Sampling
from trainer.run.process import train

PROMPT = "a text about"
LONG = 1900  # tokens: longer than a test waits


@contextlib.contextmanager
def serving(run: Path, *words: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process and its address."""
    command = [sys.executable, "-m", "launch.cli", "serve", str(run), "--port", "0", *words]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=Path(serve.__file__).parents[2]
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stderr is not None
            line = process.stdout.readline()
            address = re.search(r"http://127\.0\.0\.1:\d+\S*", line)
            assert address, process.stderr.read()
            yield process, address[0]
        finally:
            process.kill()


def answers(run: Path, *requests: dict[str, Any]) -> list[str]:
    """Computed here, of bodies with prompt, max_tokens and seed."""
    source = open_source(run)
    engine = Engine(source.load(torch.device("cpu")), decode=source.tokenizer.decode)
    asked = [
        Request(source.prompt(one["prompt"]), one["max_tokens"], Sampling(seed=one["seed"]), source.stop_ids)
        for one in requests
    ]
    return [done.text for done in engine.generate(asked)]


def body(seed: int, tokens: int, **more: Any) -> dict[str, Any]:
    return {"prompt": PROMPT, "max_tokens": tokens, "seed": seed, **more}


@pytest.mark.slow
def test_what_runs_at_sigterm_is_finished(text_run):
    with serving(text_run, "--grace", "100") as (process, url), httpx.Client(base_url=url, timeout=60) as client:
        (listed,) = client.get("/models").json()["data"]
        assert (listed["id"], listed["version"]) == ("run", version_of(open_source(text_run)))
        found = client.post("/completions", json=body(1, 9)).json()["choices"][0]["text"]
        with socket.create_connection(("127.0.0.1", httpx.URL(url).port)) as gone:  # which leaves before its answer
            content = json.dumps(body(0, LONG, ignore_eos=True)).encode()
            head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            gone.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
            while not client.get(f"{url.removesuffix('/v1')}/health").json()["pending"]:
                time.sleep(0.02)
        while client.get(f"{url.removesuffix('/v1')}/health").json()["pending"]:
            time.sleep(0.02)
        with client.stream("POST", "/completions", json=body(2, 150, stream=True, ignore_eos=True)) as answer:
            lines = (line for line in answer.iter_lines() if line)
            first = next(lines)
            process.send_signal(signal.SIGTERM)
            rest = [*lines]
        assert rest.pop() == "data: [DONE]"
        assert process.wait(60) == 0
        assert process.stderr.read() == ""
    assert found == answers(text_run, body(1, 9))[0]
    chunks = [json.loads(line.removeprefix("data: "))["choices"][0] for line in [first, *rest]]
    assert chunks[-1]["finish_reason"] == "length"


@pytest.mark.slow
def test_ctrl_c_ends_what_runs_after_the_grace_period(text_run):
    with serving(text_run, "--grace", "0") as (process, url), httpx.Client(base_url=url, timeout=60) as client:
        with client.stream("POST", "/completions", json=body(2, LONG, stream=True, ignore_eos=True)) as answer:
            lines = (line for line in answer.iter_lines() if line)
            next(lines)
            process.send_signal(signal.SIGINT)
            last = [*lines][-1]
        assert "shut down" in json.loads(last.removeprefix("data: "))["error"]["message"]
        assert process.wait(60) == 130


@pytest.mark.slow
def test_a_killed_server_loses_nothing_that_was_answered(text_run, tmp_path):
    """Every answer that arrived is whole and right, what did not arrive is seen to be missing, and none is computed
    twice."""
    asked = [body(seed, 40 * (seed + 1)) for seed in range(12)]
    three = threading.Semaphore(0)

    def ask(one: dict[str, Any]) -> str | None:
        try:
            answer = httpx.post(f"{url}/completions", json={**one, "ignore_eos": False}, timeout=60)
        except httpx.TransportError:
            return None
        three.release()
        return answer.json()["choices"][0]["text"]

    kept = tmp_path / "answers.jsonl"
    with (
        serving(text_run, "--answers", str(kept)) as (process, url),
        ThreadPoolExecutor(len(asked)) as threads,
    ):
        arriving = [threads.submit(ask, one) for one in asked]
        for _ in range(3):
            three.acquire()
        os.kill(process.pid, signal.SIGKILL)
        found = [one.result() for one in arriving]
    assert 3 <= sum(one is not None for one in found) < len(asked)
    expected = answers(text_run, *asked)
    assert all(one in (None, right) for one, right in zip(found, expected, strict=True))
    lines = kept.read_text().splitlines()
    assert len(lines) >= sum(one is not None for one in found)
    with serving(text_run, "--answers", str(kept)) as (process, url):
        assert [ask(one) for one in asked] == expected
    assert kept.read_text().splitlines()[: len(lines)] == lines
    assert len(kept.read_text().splitlines()) == len(asked)


def test_the_listed_version_changes_with_the_weights(tmp_path, monkeypatch):
    model = {"vocab_size": 320, "router_groups": 1, "positions": "rope", "init_std": 0.3}
    cfg = tiny_config(tmp_path / "run", model=model, steps=2, every=1, keep=2)
    (tmp_path / "mixture").mkdir()
    cfg.data = make_mixture(tmp_path / "mixture", monkeypatch)
    assert train(cfg) == 0
    steps = sorted((tmp_path / "run" / "checkpoints").glob("step-*"))
    first, second, of_run = (version_of(open_source(path)) for path in (*steps, tmp_path / "run"))
    assert first != second == of_run
    spoken = [version_of(open_source(steps[0]), ChatTemplate({"default": text})) for text in ("a", "b")]
    assert len({first, *spoken}) == 3
    with tiny_server.client(replace(tiny_server.served(), version=first)) as client:
        assert client.get("/v1/models").json()["data"][0]["version"] == first
        assert client.get(f"/v1/models/{tiny_server.NAME}").json()["version"] == first


def test_what_cannot_be_served_is_refused(text_run, tmp_path, monkeypatch):
    assert refused("serve", str(tmp_path / "none")).where == str(tmp_path / "none")
    assert refused("serve", str(text_run), "--port", "70000").where == "--port"
    assert refused("serve", str(text_run), "--api-key", " a").where == "--api-key"
    fault = refused("serve", str(text_run), "--api-key-file", str(tmp_path / "none"))
    assert (fault.where, fault.allowed) == ("--api-key-file", "a file with the token")
    (tmp_path / "empty").touch()
    assert refused("serve", str(text_run), "--api-key-file", str(tmp_path / "empty")).where == "--api-key-file"
    assert refused("serve", str(text_run), "--api-key", "a", "--api-key-file", "b").where == "--api-key"
    assert refused("serve", str(text_run), "--chat-template", str(tmp_path / "none")).where == "--chat-template"
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "uvicorn" else found(name))
    fault = refused("serve", str(text_run))
    assert (fault.where, fault.value, fault.allowed) == ("octavo serve", ["uvicorn"], "pip install -e '.[serve]'")


def test_an_address_that_is_taken_is_refused():
    with listen("127.0.0.1", 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(CommandError) as caught:
            listen("127.0.0.1", port)
    assert (caught.value.where, caught.value.value) == ("--port", port)
    with pytest.raises(CommandError) as caught:
        listen("no such host.invalid", 0)
    assert caught.value.where == "--host"


def test_a_full_server_refuses_and_a_late_answer_is_cut(monkeypatch):
    server = tiny_server.served(most=2, limits=tiny_server.Limits(seconds=0.5))
    step = server.worker.engine.step
    monkeypatch.setattr(server.worker.engine, "step", lambda: (time.sleep(0.01), step())[1])
    with tiny_server.client(server) as client:
        answer = client.post("/v1/completions", json=body(1, 900, ignore_eos=True))
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "timeout")
        with client.stream("POST", "/v1/completions", json=body(1, 900, ignore_eos=True, stream=True)) as stream:
            lines = [line for line in stream.iter_lines() if line]
        assert json.loads(lines[-1].removeprefix("data: "))["error"]["code"] == "timeout"
        assert client.get("/health").json()["pending"] == 0
        with ThreadPoolExecutor(3) as threads:
            asked = [body(seed, 900, ignore_eos=True) for seed in range(3)]
            asking = [threads.submit(client.post, "/v1/completions", json=one) for one in asked]
            found = sorted(one.result().status_code for one in asking)
        assert found == [400, 400, 429]


def test_a_failure_of_the_engine_reaches_every_client(monkeypatch):
    server = tiny_server.served()
    monkeypatch.setattr(server.worker.engine, "step", lambda: 1 / 0)
    with tiny_server.client(server) as client:
        answers = [client.post("/v1/completions", json=body(1, 5)) for _ in range(2)]
        assert [answer.status_code for answer in answers] == [500, 500]
        assert "division by zero" in answers[0].json()["error"]["message"]
        assert client.get("/health").status_code == 500


def test_two_versions_of_the_weights_share_no_prefix():
    """The same prompt before and after the weights changed: the second answer is that of the new weights alone."""
    server, prompt = tiny_server.served(), "kalo mi ren " * 20
    engine, asked = server.worker.engine, {"prompt": prompt, "max_tokens": 8, "temperature": 0, "logprobs": 1}
    with tiny_server.client(server) as client:
        first = client.post("/v1/completions", json=asked).json()
        again = client.post("/v1/completions", json=asked).json()
        assert first["usage"]["prompt_tokens_details"] == {"cached_tokens": 0}
        assert again["usage"]["prompt_tokens_details"]["cached_tokens"] >= 64
        new = tiny_server.decoder(seed=1)
        engine.model.load_state_dict(new.state_dict())
        engine.use_version(1)
        changed = client.post("/v1/completions", json=asked).json()
    assert changed["usage"]["prompt_tokens_details"] == {"cached_tokens": 0}
    with tiny_server.client(tiny_server.served(model=tiny_server.decoder(seed=1))) as client:
        alone = client.post("/v1/completions", json=asked).json()
    assert changed["choices"] == alone["choices"] != first["choices"] == again["choices"]


@pytest.mark.gpu
def test_a_model_on_a_gpu_is_served():
    model = tiny_server.decoder().to("cuda")
    with tiny_server.client(tiny_server.served(model=model)) as client:
        found = [client.post("/v1/completions", json=body(1, 8)).json()["choices"][0]["text"] for _ in range(2)]
    assert found[0] == found[1] != ""
