"""Rollouts ahead of training of ranks that train on the same ones, because they share sequences or a pipeline."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.distributed.pool import on_ranks
from tests.trainer.rl.asynchronous.records import FROZEN
from tests.trainer.rl.toy import run_toy, toy_config
from tests.trainer.tiny_run import steps
from trainer.run.process import train

WORDS = ("rl.max_staleness=2", *FROZEN, "train.micro_batch=1", "rl.group_size=3")
ONE_TURN = ("rl.max_tokens=24", "rl.reward=overlap")
EPISODES = ("rl.max_tokens=12", "data.seq_len=72")
SAME = (
    "questions", "groups", "groups/dropped", "tokens", "length/mean", "reward/mean", "staleness/mean", "staleness/max",
    "rollout/unfinished", "rollout/waiting", "rollout/discarded_tokens",
)  # fmt: skip


def run_over(directory: Path, recipe: str, words: tuple[str, ...]) -> None:
    assert train(toy_config(directory, *words, world_size=2, recipe=recipe)) == 0


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("layout", ["parallel.cp=2", "parallel.pp=2"])
@pytest.mark.parametrize(("recipe", "more"), [("rl_toy", ONE_TURN), ("rl_tools_toy", EPISODES)], ids=["turn", "tools"])
def test_ranks_with_the_same_rollouts_draw_them_ahead_as_one_process_does(tmp_path, layout, recipe, more):
    """Also those that a checkpoint had under way. Sums over ranks differ from those of one process in the last bits, so
    the weights stay as they are, lest a draw differs."""
    words = (*WORDS, *more)
    alone = run_toy(tmp_path / "one" / "run", *words, "train.steps=4", recipe=recipe)
    for count in (2, 4):
        given = (*words, layout, f"train.steps={count}")
        on_ranks(2, run_over, tmp_path / "two" / "run", recipe, given, timeout_s=240.0)
    both = steps(tmp_path / "two" / "run")
    assert max(line["staleness/max"] for line in both if line["tokens"]) > 0
    assert sum(line["rollout/unfinished"] for line in both) > 0
    for name in SAME:
        assert [line[name] for line in both] == [line[name] for line in alone], name
    assert [line["loss"] for line in both] == pytest.approx([line["loss"] for line in alone], rel=1e-4, abs=1e-7)
