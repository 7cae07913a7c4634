"""Steps above a gradient norm, in runs."""

from itertools import pairwise

import pytest

from tests.distributed.pool import on_ranks
from tests.trainer.rl.toy import run_toy, steps_that_change, toy_config
from tests.trainer.tiny_run import steps as steps_of
from trainer.run.process import train


def test_a_step_above_the_limit_of_the_norm_is_skipped_and_counted(tmp_path):
    """The first step is, and the next rollouts are of the weights that the run started with. Not all norms of this seed
    are above the first: a run whose every step is skipped ends."""
    seed = "train.seed=2"
    limit = 0.999 * run_toy(tmp_path / "usual", seed, "train.steps=1")[0]["grad_norm"]
    steps = run_toy(tmp_path / "run", seed, f"rl.skip_grad_norm={limit}")
    assert steps[0]["grad_norm"] > limit
    assert steps[0]["skipped"] == 1
    for before, after in pairwise(steps):
        assert after["skipped"] - before["skipped"] == (after["grad_norm"] > limit)


def test_a_run_whose_steps_are_all_above_the_limit_ends_with_the_key(tmp_path, capsys):
    assert train(toy_config(tmp_path / "run", "rl.skip_grad_norm=1e-9")) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert "rl.skip_grad_norm=1e-09" in line


def changes_of(directory, words, ranks):
    with steps_that_change() as changed:
        assert train(toy_config(directory, *words, world_size=ranks)) == 0
    return changed


@pytest.mark.parametrize(
    "layout",
    [
        pytest.param(["parallel.dp_shard=2", "parallel.ep=2"], id="experts"),
        pytest.param(["parallel.pp=2"], id="stages"),
    ],
)
def test_ranks_skip_the_same_steps_and_keep_weights_and_moments(tmp_path, layout):
    """The norm that is compared is of all ranks: each one's own is below the limit."""
    seed = "train.seed=2"
    limit = 0.999 * run_toy(tmp_path / "one", seed, "train.steps=1")[0]["grad_norm"]
    words = [seed, f"rl.skip_grad_norm={limit}", *layout]
    first, other = on_ranks(2, changes_of, tmp_path / "run", words, 2, timeout_s=120.0)
    lines = steps_of(tmp_path / "run")
    assert first == other == [line["grad_norm"] <= limit for line in lines]
    assert not first[0]
    assert any(first)
    assert [line["skipped"] for line in lines] == [first[: n + 1].count(False) for n in range(3)]
