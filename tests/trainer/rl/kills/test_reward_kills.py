"""Judges and environments that die or hang in the middle of a run: it ends in one line by their deadlines, with what
was trained saved, and continues when they are there again."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.printed import error_line
from tests.servers import serving
from tests.trainer.rl.kills.places import (
    BATCH,
    STEPS,
    Place,
    act_at,
    assert_equal_weights,
    trained_questions,
    words,
)
from tests.trainer.rl.rewards.judge_server import JudgeServer
from tests.trainer.rl.toy import toy_config
from tests.trainer.tiny_run import losses
from trainer.run.process import train

SLOW = pytest.mark.slow
EVERY = [*range(BATCH * STEPS)]
GOOD_ANSWERS = 20  # of the judge, before it fails: those of the first step and some of the second


def points(text: str, number: int) -> str:
    """The same for the same text, so that a run finds the same twice."""
    return f"Points: {sum(map(ord, text)) % 11}"


def judged(url: str) -> tuple[str, ...]:
    reward = f"{{name: judge, url: '{url}', prompt: '{{question}} {{answer}}', timeout: 4, retries: 0}}"
    return words(f'rl.reward="{reward}"', "rl.max_tokens=3", eval_every=0)


def last_lines(printed: str) -> str:
    """Without the line that says that the questions are made."""
    return "\n".join(line for line in printed.splitlines() if not line.startswith("questions: "))


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("whole") / "run"
    with serving(JudgeServer(points)) as server:
        assert train(toy_config(run, *judged(server.url))) == 0
    return run


@pytest.mark.parametrize("kind", ["dead", pytest.param("hung", marks=SLOW), pytest.param("500", marks=SLOW)])
def test_a_judge_that_fails(tmp_path, capfd, whole, kind):
    run, released = tmp_path / "run", threading.Event()

    def reply(text: str, number: int) -> Any:
        if number <= GOOD_ANSWERS:
            return points(text, number)
        if kind == "dead":
            raise ConnectionError  # the handler's thread ends, and the connection with it
        return 500 if kind == "500" else released.wait(60) and ""

    started = time.monotonic()
    with serving(JudgeServer(reply)) as server:
        assert train(toy_config(run, *judged(server.url))) == 1
        took = time.monotonic() - started
        released.set()
    error_line(last_lines(capfd.readouterr().err), f"judge judge-1 at {server.root}", "question ")
    assert took < 30
    assert (run / "checkpoints" / "latest").read_text() == "step-1\n"
    assert trained_questions(run) == EVERY[:BATCH]
    with serving(JudgeServer(points, port=server.server_address[1])) as again:
        assert train(toy_config(run, *judged(again.url))) == 0
    assert trained_questions(run) == EVERY
    assert losses(run) == losses(whole)
    assert_equal_weights(run, whole)


@pytest.mark.parametrize(
    ("kind", "method"),
    [
        ("hung", "step"),
        *(pytest.param(*more, marks=SLOW) for more in (("hung", "reward"), ("raises", "step"), ("raises", "reward"))),
    ],
)
def test_an_environment_that_fails(tmp_path, capfd, monkeypatch, kind, method):
    released = threading.Event()

    def act() -> None:
        if kind == "raises":
            raise KeyError("row 7")
        released.wait(60)

    given = words("rl.environment_s=1", eval_every=0)
    run, whole = tmp_path / "run", tmp_path / "whole"
    assert train(toy_config(whole, *given, recipe="rl_tools_toy")) == 0
    with monkeypatch.context() as patch:
        place = Place(f"trainer.rl.environments.tools:ToolSession.{method}", 4 * BATCH * 2 + 3)
        act_at(place, act, patch.setattr)
        started = time.monotonic()
        assert train(toy_config(run, *given, recipe="rl_tools_toy")) == 1
        took = time.monotonic() - started
    released.set()
    error_line(last_lines(capfd.readouterr().err), "environment ", "question ", method)
    assert took < 30
    before = trained_questions(run)
    assert before == EVERY[: len(before)]
    assert (run / "checkpoints" / "latest").read_text() == f"step-{len(before) // BATCH}\n"
    assert train(toy_config(run, *given, recipe="rl_tools_toy")) == 0
    assert trained_questions(run) == EVERY
    assert losses(run) == losses(whole)
    assert_equal_weights(run, whole)
