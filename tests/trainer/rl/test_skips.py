"""Steps above a gradient norm, in runs."""

from itertools import pairwise

from tests.trainer.rl.toy import run_toy, toy_config
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
