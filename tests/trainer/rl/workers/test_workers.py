"""Environments and rewards in worker processes: the same run as without them, and what happens to workers that die."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.printed import error_line
from tests.servers import serving
from tests.trainer.rl.kills.places import assert_equal_weights
from tests.trainer.rl.rewards.judge_server import JudgeServer
from tests.trainer.rl.toy import run_toy, toy_config
from tests.trainer.tiny_run import losses
from trainer.config.rl.keys import RlConfig
from trainer.rl.environments.base import Call, EnvironmentFailed, Said
from trainer.rl.rewards.base import Question, RewardError, score_all
from trainer.rl.workers.body import Body, Differs, Episode, Given
from trainer.rl.workers.choose import place_environment, place_reward
from trainer.rl.workers.pool import TRIES, Pool, WorkerError
from trainer.run.process import train

TOOLS = "{tools: [calculator], turns: 4}"


def call(expression: str) -> Said:
    return Said("", [Call("calculator", {"expression": expression})])


def question(number: int) -> Question:
    return Question(number, f"{number}*2=", str(2 * number))


def pids(pool: Pool) -> list[int]:
    return [place.worker._process.pid for place in pool._places]


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def all_end(processes: list[int]) -> bool:
    end = time.monotonic() + 20
    while any(map(lives, processes)) and time.monotonic() < end:
        time.sleep(0.02)
    return not any(map(lives, processes))


@contextmanager
def workers(reward: str, environment: str = "", count: int = 2, **keys: Any) -> Iterator[Any]:
    """The environment, or without one the reward, whose workers were started."""
    cfg = RlConfig(reward=reward, environment=environment, environment_workers=count, **keys)
    made = place_environment(cfg) if environment else place_reward(cfg)
    placed = made.reward if environment else made
    try:
        placed.start_workers()
        yield made
    finally:
        processes = pids(placed.pool)
        placed.close()
        assert all_end(processes)


@contextmanager
def judge(reply: Any) -> Iterator[str]:
    """The reward of a judge that replies so."""
    with serving(JudgeServer(reply)) as server:
        yield f"{{name: judge, url: '{server.url}', prompt: '{{question}} {{answer}}', points: 1, retries: 0}}"


def test_a_run_with_workers_equals_the_run_without(tmp_path):
    alone, placed = (tmp_path / name / "run" for name in ("alone", "placed"))
    expected = run_toy(alone, "train.steps=2", recipe="rl_tools_toy")
    found = run_toy(placed, "train.steps=2", "rl.environment_workers=2", recipe="rl_tools_toy")
    assert losses(placed) == losses(alone)
    assert_equal_weights(placed, alone)
    names = ("reward/mean", "turns/mean", "tools/calls", "tools/errors", "questions", "mismatch/max")
    assert [[line[name] for name in names] for line in found] == [[line[name] for name in names] for line in expected]
    assert [line["reward/workers/died"] for line in found] == [0, 0]


def test_sessions_continue_in_another_worker_when_their_own_is_killed():
    with workers("exact", TOOLS) as environment:
        pool = environment.reward.pool
        sessions = [environment.start(question(number)) for number in range(4)]
        assert [session.step(call("20+1"))[0]["content"] for session in sessions] == ["21"] * 4
        dead = pids(pool)[0]
        os.kill(dead, signal.SIGKILL)
        assert [session.step(call("20+2"))[0]["content"] for session in sessions] == ["22"] * 4
        for number, session in enumerate(sessions):
            assert not session.step(Said(str(2 * number)))
            assert session.reward().value == 1.0
            assert session.counts() == {"calls": 2, "malformed": 0, "errors": 0}
        assert pool.counts()["workers/died"] == 1
        assert 1 <= pool.counts()["workers/asked_again"] <= 2
        assert dead not in pids(pool)


def test_sessions_that_are_answered_in_another_way_when_they_are_played_again_are_refused():
    body = Body(Given(TOOLS, "exact", Path()))
    body.build()
    asked, turn = question(3), call("3*2")
    opening, _ = body.start(Episode("a", asked))
    for content, wrong in (("6", False), ("7", True)):
        told = [{"role": "tool", "name": "calculator", "content": content}]
        reply = body.answer("step", (Episode(f"of {content}", asked, opening, [turn], [told]), call("1")))
        assert isinstance(reply.error, Differs) == wrong


def test_an_answer_is_graded_again_when_its_worker_is_killed_over_it():
    killed = []

    def reply(text: str, number: int) -> Any:
        if number == 3:  # in the middle of five
            killed.append(pids(reward.pool))
            os.kill(killed[0][0], signal.SIGKILL)
            return threading.Event().wait(0.2) or 400
        return f"Points: {int(text.split()[-1]) % 2}"

    with judge(reply) as cfg, workers(cfg, count=1) as reward:
        verdicts = score_all(reward, [(question(number), str(number)) for number in range(5)])
        assert [verdict.value for verdict in verdicts] == [0, 1, 0, 1, 0]
        counts = reward.counts()
        assert (counts["workers/died"], len(killed)) == (1, 1)
        assert counts["workers/asked_again"] >= 1
        assert counts["judge/requests"] >= 5 - counts["workers/asked_again"]


@pytest.mark.slow
def test_an_answer_that_kills_every_worker_is_named():
    def reply(text: str, number: int) -> Any:
        for process in pids(reward.pool):
            os.kill(process, signal.SIGKILL)
        return 400

    with judge(reply) as cfg, workers(cfg, count=1) as reward:
        with pytest.raises(WorkerError) as caught:
            reward(question(7), "14")
        assert caught.value.value == "question 7"
        assert caught.value.where.startswith("worker 0 of 1")
        assert [len(fault.text.splitlines()) for fault in caught.value.faults] == [1]
        assert reward.counts()["workers/died"] == TRIES


def test_a_worker_that_is_late_is_killed_and_named():
    released = threading.Event()
    with judge(lambda text, number: released.wait(30) and 400) as cfg, workers(cfg, count=1, deadline_s=1.0) as reward:
        (late,) = pids(reward.pool)
        with pytest.raises(WorkerError) as caught:
            reward(question(7), "14")
        released.set()
        assert (caught.value.value, caught.value.allowed is not None) == ("question 7", True)
        assert all_end([late])


def test_what_cannot_be_built_in_a_worker_is_raised_as_without_one(tmp_path):
    records = tmp_path / "missing.csv"
    table = f"{{tools: [{{name: table, records: {records}, columns: {tmp_path / 'columns.yaml'}}}]}}"
    with pytest.raises(EnvironmentFailed) as caught, workers("exact", table):
        pass
    assert caught.value.where == str(tmp_path / "columns.yaml")
    with workers("choice") as reward, pytest.raises(RewardError) as caught_reward:
        reward(question(4), "A")
    assert caught_reward.value.where.startswith("question 4")


def test_workers_end_with_the_process_that_started_them(tmp_path):
    script = """
from trainer.config.rl.keys import RlConfig
from trainer.rl.workers.choose import place_reward
reward = place_reward(RlConfig(reward="exact", environment_workers=2))
reward.start_workers()
print(*[place.worker._process.pid for place in reward.pool._places], flush=True)
import time; time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    processes = [int(word) for word in process.stdout.readline().split()]
    assert [lives(one) for one in processes] == [True, True]
    process.kill()
    process.communicate()
    assert all_end(processes)


@pytest.mark.slow
def test_an_environment_that_hangs_in_a_worker_is_named_and_the_run_continues_from_its_checkpoint(tmp_path, capfd):
    released, waiting = threading.Event(), {"steps": 0}

    def reply(text: str, number: int) -> str:
        if number == 6:
            waiting["steps"] += 1
            released.wait(60)
        return f"Points: {sum(map(ord, text)) % 2}"

    words = ("rl.environment_workers=2", "rl.environment_s=2", "checkpoint.every=1", "train.steps=4")
    with judge(reply) as cfg:
        given = (*words, f'rl.reward="{cfg}"')
        run = tmp_path / "run"
        started = time.monotonic()
        assert train(toy_config(run, *given, recipe="rl_tools_toy")) == 1
        assert time.monotonic() - started < 30
        released.set()
        printed = "\n".join(line for line in capfd.readouterr().err.splitlines() if not line.startswith("questions: "))
        error_line(printed, "environment tools", "question ", "rl.environment_s")
        assert waiting["steps"] == 1
        assert train(toy_config(run, *given, recipe="rl_tools_toy")) == 0
