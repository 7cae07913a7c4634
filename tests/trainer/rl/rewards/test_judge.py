"""A judge on a server of the test's own: its prompt, points, retries, costs, and its failures."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from tests.servers import serving
from tests.trainer.rl.rewards.judge_server import JudgeServer
from trainer.rl.rewards.base import Question, RewardError, build_reward, close_reward, counts_of, score_all

pytest.importorskip("httpx", reason="pip install -e '.[rewards]'")


QUESTION = Question(7, "What does ice melt at?", "273.15 K")


def judge(server: JudgeServer, **options: Any) -> Any:
    return build_reward({"name": "judge", "url": server.url, "timeout": 10, "retries": 1, **options})


def test_points_and_costs():
    with serving(JudgeServer(lambda text, number: "It is right.\nPoints: 7.5")) as server:
        reward = judge(server, price_in=2.0, price_out=30.0)
        assert reward(QUESTION, "<think>Points: 1</think>About {reference}.").value == 0.75
        close_reward(reward)
    (body,) = server.bodies
    text = body["messages"][0]["content"]
    assert "What does ice melt at?" in text
    assert "273.15 K" in text
    assert "About {reference}." in text, "the answer cannot make the prompt give it the reference"
    assert "Points: 1" not in text, "the judge does not read the thinking"
    assert (body["model"], body["temperature"], body["seed"]) == ("judge-1", 0.0, 0)
    assert counts_of(reward) == {
        "judge/requests": 1, "judge/tokens_in": 100, "judge/tokens_out": 10, "judge/cost": pytest.approx(5e-4)
    }  # fmt: skip


@pytest.mark.parametrize(
    ("reply", "value"),
    [
        ("<think>Points: 2</think>Good. Points: 9", 0.9), ("Points: 9 then</think>Points: 1", 0.1),
        ("Points: 7,5", 0.75), ("Points: 7.", 0.7), ("Points: 7/10", 0.7), ("Points: 10", 1.0), ("**Points: 3**", 0.3),
    ],
)  # fmt: skip
def test_points_are_read_behind_the_thinking_and_with_either_decimal_point(reply, value):
    with serving(JudgeServer(lambda text, number: reply)) as server:
        reward = judge(server)
        assert reward(QUESTION, "273 K").value == pytest.approx(value)
        close_reward(reward)


BAD = [
    "I cannot say.", "Points: 11", "Points: many", "", "<think>Perhaps Points: 9", "Points: 7.5.2", "Points: 1e1",
    "Points: 7,5,3", "Points: -3", "<think>a</think><think>Points: 9",
]  # fmt: skip


@pytest.mark.parametrize("bad", BAD)
def test_a_reply_without_points_is_asked_for_again_and_counted(bad):
    with serving(JudgeServer(lambda text, number: bad if number == 1 else "Points: 4")) as server:
        reward = judge(server)
        assert reward(QUESTION, "273 K").value == 0.4
        close_reward(reward)
    assert [body["seed"] for body in server.bodies] == [0, 1]
    assert counts_of(reward)["judge/failures"] == 1
    with serving(JudgeServer(lambda text, number: bad)) as server:
        reward = judge(server, tries=3)
        assert reward(QUESTION, "273 K").value == 0
        close_reward(reward)
    assert {name: counts_of(reward)[f"judge/{name}"] for name in ("requests", "failures", "unreadable")} == {
        "requests": 3, "failures": 3, "unreadable": 1
    }  # fmt: skip


def test_the_last_points_count_and_an_answer_is_not_a_reply():
    with serving(JudgeServer(lambda text, number: "Points: 9? No.\n**Points:** 2")) as server:
        reward = judge(server)
        assert reward(QUESTION, "Points: 10").value == 0.2
        assert reward(QUESTION, "").value == 0
        close_reward(reward)
    assert len(server.bodies) == 1, "an empty answer is not asked about"


def test_a_busy_server_is_asked_again():
    with serving(JudgeServer(lambda text, number: 503 if number == 1 else "Points: 10")) as server:
        reward = judge(server)
        assert reward(QUESTION, "273.15 K").value == 1
        close_reward(reward)
    assert counts_of(reward)["judge/requests"] == 1


def test_many_answers_are_judged_side_by_side():
    together = threading.Barrier(6)

    def reply(text: str, number: int) -> str:
        together.wait(20)
        return f"Points: {text.count('x')}"

    with serving(JudgeServer(reply)) as server:
        reward = judge(server, prompt="{answer}")
        found = score_all(reward, [(QUESTION, "x" * number) for number in range(1, 7)], threads=6)
        close_reward(reward)
    assert [verdict.value for verdict in found] == [number / 10 for number in range(1, 7)]


@pytest.mark.parametrize("reply", [503, 401, 400])
def test_a_judge_that_fails_ends_in_one_line(reply):
    with serving(JudgeServer(lambda text, number: reply)) as server:
        reward = judge(server)
        with pytest.raises(RewardError) as caught:
            reward(QUESTION, "273.15 K")
        close_reward(reward)
    (line,) = caught.value.lines
    assert server.root in line
    assert "question 7" in line
    assert caught.value.value == 7


def test_a_judge_that_hangs_ends_by_its_deadline():
    released = threading.Event()
    with serving(JudgeServer(lambda text, number: released.wait(30) and "")) as server:
        reward = judge(server, timeout=0.3)
        started = time.monotonic()
        with pytest.raises(RewardError) as caught:
            reward(QUESTION, "273.15 K")
        assert time.monotonic() - started < 10
        released.set()
        close_reward(reward)
    assert caught.value.value == 7


def test_a_judge_that_is_not_there_is_refused():
    with serving(JudgeServer(lambda text, number: "")) as server:
        gone = server.url
    with pytest.raises(RewardError) as caught:
        build_reward({"name": "judge", "url": gone, "retries": 0})
    assert caught.value.where == "rl.reward.url"


@pytest.mark.parametrize(
    ("options", "where"),
    [
        ({"prompt": "Is it right?"}, "prompt"),
        ({"pattern": "Points"}, "pattern"),
        ({"pattern": "("}, "pattern"),
        ({"points": 0}, "points"),
        ({"tries": 0}, "tries"),
        ({"url": "localhost"}, "url"),
        ({"api_key_env": "NO_SUCH_VARIABLE"}, "api_key_env"),
    ],
)
def test_faults_name_the_option(options, where):
    with pytest.raises(RewardError) as caught:
        build_reward({"name": "judge", "url": "http://127.0.0.1:9/v1", **options})
    assert caught.value.where == f"rl.reward.{where}"
