"""The whole loop on the toy: rollouts by the embedded engine, groups, updates, the record."""

import re
from pathlib import Path

import pytest

from tests.trainer.rl.toy import run_toy
from tests.trainer.tiny_run import events
from trainer.weights.opened import open_checkpoint


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    directory = tmp_path_factory.mktemp("rl") / "run"
    return directory, run_toy(directory)


def test_rollouts_and_training_have_equal_log_probabilities(run):
    """The bins show that there was something to compare: all log-ratios are in the one around zero."""
    _, steps = run
    assert [step["step"] for step in steps] == [1, 2, 3]
    assert sum(step["tokens"] for step in steps) > 0
    for step in steps:
        assert step["mismatch/max"] == 0.0
        if step["tokens"]:
            assert (step["mismatch/k1"], step["mismatch/k3"], step["mismatch/ess"]) == (0.0, 0.0, 1.0)
            assert step["replay/flip_rate"] == 0.0
        histogram = list(step["mismatch/histogram"].values())
        assert histogram[4] == step["tokens"] == sum(histogram)


def test_every_line_has_the_metrics_of_rollouts(run):
    directory, steps = run
    for step in steps:
        assert 0 <= step["solve_rate"] <= 1
        assert 0 <= step["reward/mean"] <= 1
        assert step["groups"] == 4 >= step["groups/dropped"]
        assert 1 <= step["length/mean"] <= step["length/max"] <= 4
        assert step["rollout/tokens_per_second"] > 0 < step["train/seconds"]
        assert step["staleness/max"] == 0
        assert step["sync/bytes"] == 0 <= step["sync/seconds"]
    (evaluation,) = events(directory, "evaluation")
    assert evaluation["heldout_accuracy"].keys() == {"reverse"}
    assert 0 <= evaluation["heldout_accuracy"]["reverse"] <= 1


def documented():
    """The names in the table of docs/rl.md; behind one with a prefix, those without have it too."""
    text = (Path(__file__).parents[3] / "docs" / "rl.md").read_text()
    (table,) = re.findall(r"^## The record$.*?^\| name \|.*?\n\|---.*?\n((?:\|.*\n)+)", text, re.MULTILINE | re.DOTALL)
    found, prefix = set(), ""
    for row in table.splitlines():
        for name in re.findall(r"`([a-z0-9_/]+)`", row.split(" | ")[0]):
            prefix = f"{name.rpartition('/')[0]}/" if "/" in name else prefix
            found |= {name, name if "/" in name else prefix + name}
    return found


ALWAYS = {
    "reward/mean", "solve_rate", "questions", "groups", "groups/dropped", "empty", "length/mean", "length/max",
    "length/cut", "entropy", "mismatch/k1", "mismatch/k3", "mismatch/abs", "mismatch/max", "mismatch/ess",
    "mismatch/histogram", "mismatch/alarm", "mismatch/k3_early", "masked/mis_low", "masked/mis_high", "masked/off_low",
    "masked/off_high", "replay/flip_rate", "staleness/mean", "staleness/max", "rollout/seconds",
    "rollout/tokens_per_second", "train/seconds", "train/tokens_per_second", "reward/seconds", "sync/seconds",
    "sync/bytes",
}  # fmt: skip


def test_the_documented_names_are_on_every_line_and_no_others(run):
    """Also where a step has nothing to train on."""
    names = documented()
    assert names > ALWAYS
    for step in run[1]:
        assert step.keys() >= ALWAYS
        assert {name for name in step if "/" in name} <= names


def test_several_updates_of_a_round_have_the_log_probabilities_of_its_start(tmp_path):
    """The engines still agree in the second update, whose weights are newer by one."""
    steps = run_toy(tmp_path / "run", "rl.updates=2", "rl.denominator=kept", "optim.lr=2e-2")
    assert [step["staleness/max"] for step in steps] == [0, 1, 0]
    assert all(step["mismatch/max"] == 0.0 for step in steps)
    assert any(step["tokens"] for step in steps)


def weights_of(run):
    opened = open_checkpoint(run)
    whole = {name: tuple(slice(0, size) for size in shape) for name, shape in opened.shapes.items()}
    return {name: opened.state.read(f"model.{name}", box) for name, box in whole.items()}


def test_frozen_routers_stay_as_they_are_and_nothing_else_does(tmp_path):
    """The other weights of every block move, those of its experts among them."""
    run_toy(tmp_path / "start", "rl.freeze_router=true", "optim.lr=1e-12")
    run_toy(tmp_path / "run", "rl.freeze_router=true", "optim.lr=1e-2")
    before, after = (weights_of(tmp_path / name) for name in ("start", "run"))
    moved = {name: float((after[name] - before[name]).abs().max()) for name in before}
    routers = {name for name in moved if "router" in name}
    assert len(routers) == 2
    assert {name for name, by in moved.items() if by == 0.0} == routers
    assert all(by > 1e-3 for name, by in moved.items() if name not in routers)


@pytest.mark.slow
def test_experts_in_fp8_have_equal_log_probabilities_too(tmp_path):
    steps = run_toy(tmp_path / "run", "precision=fp8_reference")
    assert all(step["mismatch/max"] == 0.0 for step in steps)
    assert any(step["tokens"] for step in steps)
