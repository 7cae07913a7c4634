"""Counts of a reward on the lines of the record, and the end of its connections."""

from __future__ import annotations

import pytest

from tests.servers import serving
from tests.trainer.rl.rewards.judge_server import JudgeServer
from tests.trainer.rl.toy import run_toy
from tests.trainer.tiny_run import events
from trainer.rl.rewards.judge import Judge

pytest.importorskip("httpx", reason="pip install -e '.[rewards]'")
PRICE = 2.0  # for a million tokens; the server counts 100 of each prompt


def test_the_lines_add_up_to_what_the_judge_was_asked(tmp_path, monkeypatch):
    closed, close = [], Judge.close
    monkeypatch.setattr(Judge, "close", lambda judge: (closed.append(judge), close(judge)))
    with serving(JudgeServer(lambda text, number: "Points: 4" if number % 3 else "none")) as server:
        reward = f"{{name: product, parts: [{{name: judge, url: '{server.url}', tries: 1, price_in: {PRICE}}}]}}"
        steps = run_toy(tmp_path / "run", f'rl.reward="{reward}"', "rl.updates=2")
        asked = len(server.bodies)
    assert len(closed) == 1
    (evaluation,) = events(tmp_path / "run", "evaluation")
    lines = [*steps, evaluation]
    assert min(steps[0]["reward/judge/requests"], evaluation["reward/judge/requests"]) > 0
    assert steps[1]["reward/judge/requests"] == 0, "the first line of a round has all of it"
    assert sum(line["reward/judge/requests"] for line in lines) == asked
    assert sum(line["reward/judge/unreadable"] for line in lines) == asked // 3
    assert sum(line["reward/judge/cost"] for line in lines) == pytest.approx(asked * 100 * PRICE / 1e6)
