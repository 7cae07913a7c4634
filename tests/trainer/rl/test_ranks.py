"""Runs on several ranks against one process, and steps that have nothing to train on."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.distributed.pool import on_ranks
from tests.trainer.model.tiny import assert_close
from tests.trainer.rl.toy import steps_that_change, toy_config
from tests.trainer.spread import whole
from tests.trainer.tiny_run import events, steps
from trainer.config.compose import compose
from trainer.engine.request import Completion
from trainer.model.numerics import router_weights
from trainer.model.router import Router
from trainer.optim.native import NativeEngine
from trainer.rl.groups import Group
from trainer.rl.producer import Produced, Synchronous
from trainer.rl.rollout.embedded import Embedded
from trainer.rl.rollout.protocol import Rollout, RolloutError
from trainer.run.policy import trainer as policy
from trainer.run.process import train

SAME = (
    "loss", "grad_norm", "tokens", "reward/mean", "solve_rate", "groups", "groups/dropped", "length/mean", "entropy",
    "mismatch/k1", "mismatch/k3", "mismatch/abs", "mismatch/max", "mismatch/ess",
    "replay/flip_rate", "empty",
)  # fmt: skip
TWO = ["parallel.dp_shard=2", "parallel.ep=2"]


@contextmanager
def teaching(samples: Collection[int]) -> Iterator[None]:
    """Groups of other questions teach nothing."""
    genuine = Group.teaches
    assert genuine.fget is not None
    of_group = genuine.fget
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Group, "teaches", property(lambda self: self.sample in samples and of_group(self)))
        yield


@contextmanager
def another_engine() -> Iterator[None]:
    """Rollouts whose log-probabilities are off, by so much that some tokens are masked, and by none for others."""
    genuine = Embedded._rollout

    def off(self: Embedded, found: Completion, *routes: Any) -> Rollout:
        rollout = genuine(self, found, *routes)
        return replace(rollout, log_probs=rollout.log_probs + np.float32(1.0) * np.sin(rollout.ids, dtype=np.float32))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Embedded, "_rollout", off)
        yield


@contextmanager
def noisy_selection() -> Iterator[None]:
    """Rollouts whose routers select by noisy logits."""
    generate, route = Embedded.generate, Router.route

    def noisy(router: Router, z_TE: Tensor) -> tuple[Tensor, Tensor]:
        ids, _ = route(router, z_TE + 0.3 * torch.randn_like(z_TE))
        return ids, router_weights(z_TE, ids, router.gradient, router.temperature)

    def with_noise(engine: Embedded, *given: Any, **more: Any) -> list[Rollout]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Router, "route", noisy)
            return generate(engine, *given, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Embedded, "generate", with_noise)
        yield


@dataclass
class Gradients:
    """Those of every step, whole and summed over the ranks, as the optimizer gets them."""

    of_steps: list[dict[str, Tensor]] = field(default_factory=list)

    @contextmanager
    def kept(self) -> Iterator[None]:
        genuine = NativeEngine._gradient_norm

        def keep(engine: NativeEngine) -> Tensor:
            named = engine.named.items()
            self.of_steps.append({name: whole(p.grad).clone() for name, p in named if p.grad is not None})
            return genuine(engine)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(NativeEngine, "_gradient_norm", keep)
            yield


def run_off(directory: Path, words: list[str], ranks: int) -> list[dict[str, Tensor]]:
    """The gradients of a run whose rollouts are off."""
    found = Gradients()
    with another_engine(), found.kept():
        assert train(toy_config(directory, *words, world_size=ranks)) == 0
    return found.of_steps


def compare_runs(directory: Path, ranks: int, words: list[str], layout: list[str]) -> None:
    """Two steps in one process, and on ranks in a layout: losses, every gradient, its norm, and what is logged. The
    second step's weights are the first's result; with AdamW's usual eps those of the smallest gradients would be the
    rounding of these, at full size."""
    words = ["train.steps=2", "optim.clip_norm=0", "optim.eps=1e-3", *words]
    alone = run_off(directory / "one", words, 1)
    of_ranks = on_ranks(ranks, run_off, directory / "several", [*words, *layout], ranks, timeout_s=150.0)
    # with the parts of the model that the stages of a pipeline have
    spread = [
        {name: found for of_rank in of_step for name, found in of_rank.items()}
        for of_step in zip(*of_ranks, strict=True)
    ]
    assert len(alone) == 2
    for ours, theirs in zip(spread, alone, strict=True):
        assert_close(ours, theirs, 2e-5)
    lines, of_one = steps(directory / "several"), steps(directory / "one")
    assert sum(line["tokens"] for line in lines) > 50
    masked = [name for name in of_one[0] if name.startswith("masked/")]
    assert 0 < sum(of_one[0][name] for name in masked) < 1
    for line, one in zip(lines, of_one, strict=True):
        names = [*SAME, *masked]
        expected = pytest.approx({name: one[name] for name in names}, rel=1e-5, abs=1e-7)
        assert {name: line[name] for name in names} == expected
        assert line["mismatch/histogram"] == one["mismatch/histogram"]


@pytest.mark.parametrize("denominator", ["all", "kept", "sequence"])
def test_two_ranks_equal_one_process(tmp_path, denominator):
    compare_runs(tmp_path, 2, [f"rl.denominator={denominator}"], TWO)


@pytest.mark.parametrize("layout", ["parallel.cp=2", "parallel.pp=2"])
def test_two_ranks_that_train_on_the_same_rollouts_equal_one_process(tmp_path, layout):
    """With log-probabilities of old weights, which ranks with other tokens or stages compute."""
    compare_runs(tmp_path, 2, ["rl.updates=2", "rl.denominator=kept", "train.micro_batch=1"], [layout])


@pytest.mark.parametrize("level", ["sequence", pytest.param("geometric", marks=pytest.mark.slow)])
def test_ratios_of_whole_rollouts_are_the_same_on_ranks_with_parts_of_them(tmp_path, level):
    words = [f"rl.level={level}", "rl.veto_low=0.4", "rl.updates=2"]
    compare_runs(tmp_path, 2, words, ["parallel.cp=2"])


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("denominator", ["all", "kept", "sequence"])
@pytest.mark.parametrize(
    "layout",
    [
        ["parallel.dp_shard=4", "parallel.ep=4"],
        ["parallel.dp_replicate=2", "parallel.dp_shard=2", "parallel.ep=2"],
        ["parallel.cp=2", "parallel.dp_shard=2", "parallel.ep=4"],
        ["parallel.cp=2", "parallel.dp_shard=2", "parallel.ep=2", "train.recompute=full"],
        ["parallel.pp=2", "parallel.dp_shard=2", "parallel.ep=2", "train.recompute=selective"],
        ["parallel.pp=2", "parallel.cp=2", "parallel.ep=2"],
        ["parallel.pp=2", "parallel.dp_replicate=2", "parallel.schedule=interleaved_1f1b"],
        ["parallel.pp=2", "parallel.dp_shard=2", "parallel.ep=2", "parallel.schedule=zbv"],
    ],
)
def test_four_ranks_equal_one_process(tmp_path, layout, denominator):
    words = [f"rl.denominator={denominator}", "rl.updates=2", "model.num_layers=4", "train.micro_batch=1"]
    compare_runs(tmp_path, 4, words, layout)


def train_and_count(directory: Path, words: list[str], ranks: int) -> int:
    """The answers that this rank rewards."""
    genuine, counted = Synchronous._score, 0

    def score(producer: Synchronous, asked: Any, rollouts: Any) -> Any:
        nonlocal counted
        counted += len(asked)
        return genuine(producer, asked, rollouts)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Synchronous, "_score", score)
        with noisy_selection():
            assert train(toy_config(directory, *words, world_size=ranks)) == 0
    return counted


@pytest.mark.parametrize("layout", ["parallel.cp=2", "parallel.pp=2"])
def test_ranks_with_the_same_rollouts_replay_them_to_the_last_bit_and_one_rewards_them(tmp_path, layout):
    words = [layout, "optim.lr=2e-2", "model.num_layers=3", "precision=fp8_reference"]
    first, other = on_ranks(2, train_and_count, tmp_path / "run", words, 2, timeout_s=120.0)
    assert (first, other) == (3 * 16 + 4, 0)
    lines = steps(tmp_path / "run")
    assert sum(line["tokens"] for line in lines) > 0
    for line in lines:
        assert line["mismatch/max"] == 0.0
        assert line["replay/flip_rate"] is None or 0.05 < line["replay/flip_rate"] < 0.95


def train_until_the_judge_dies(directory: Path, words: list[str], ranks: int) -> int:
    """It answers for one step. Returns the exit code."""
    genuine, calls = Synchronous._score, 0

    def score(producer: Synchronous, asked: Any, rollouts: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise RolloutError("the judge does not answer request 3; start it", where="judge", value=3)
        return genuine(producer, asked, rollouts)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Synchronous, "_score", score)
        return train(toy_config(directory, *words, world_size=ranks))


def test_an_error_of_the_rank_that_rewards_ends_all_and_nothing_trained_is_lost(tmp_path):
    """The other rank gets the error, so that both save the step that was trained."""
    words = ["parallel.cp=2", "train.steps=2"]
    codes = on_ranks(2, train_until_the_judge_dies, tmp_path / "run", words, 2, timeout_s=120.0)
    assert codes == [1, 1]
    assert (tmp_path / "run" / "checkpoints" / "step-1").is_dir()
    assert train(toy_config(tmp_path / "run", "train.steps=2")) == 0
    assert [line["step"] for line in steps(tmp_path / "run")] == [1, 2]


def train_with_tools(directory: Path, words: list[str], ranks: int) -> int:
    return train(toy_config(directory, *words, world_size=ranks, recipe="rl_tools_toy"))


@pytest.mark.parametrize(
    "layout",
    [pytest.param(TWO, id="experts"), pytest.param(["parallel.cp=2"], id="parts", marks=pytest.mark.slow)],
)
def test_episodes_of_unequal_numbers_of_turns_are_those_of_one_process(tmp_path, layout):
    """A rank whose episodes are done takes part in the turns of the others."""
    words, names = ["optim.lr=0.01", "train.steps=2"], ("turns/mean", "tools/calls", "tools/malformed", *SAME)
    assert train_with_tools(tmp_path / "one", words, 1) == 0
    alone = steps(tmp_path / "one")
    assert any(1 < line["turns/mean"] < 2 for line in alone)
    assert on_ranks(2, train_with_tools, tmp_path / "two", [*words, *layout], 2, timeout_s=120.0) == [0, 0]
    for line, one in zip(steps(tmp_path / "two"), alone, strict=True):
        expected = pytest.approx({name: one[name] for name in names}, rel=1e-4, abs=1e-7)
        assert {name: line[name] for name in names} == expected
        assert line["mismatch/max"] == 0.0


def train_taught(directory: Path, words: list[str], ranks: int, samples: Collection[int]) -> int:
    with teaching(samples):
        return train(toy_config(directory, *words, world_size=ranks))


@pytest.mark.parametrize("replay", ["replay", pytest.param("record", marks=pytest.mark.slow)])
def test_a_rank_whose_groups_are_all_dropped_takes_part(tmp_path, replay):
    """Rank 0 has the questions with even numbers."""
    words = [*TWO, f"rl.replay={replay}"]
    assert on_ranks(2, train_taught, tmp_path / "run", words, 2, range(0, 12, 2), timeout_s=120.0) == [0, 0]
    lines = steps(tmp_path / "run")
    assert sum(line["tokens"] for line in lines) > 0
    assert all(line["mismatch/max"] == 0.0 for line in lines)


def test_a_step_whose_groups_are_all_dropped_changes_neither_weights_nor_moments(tmp_path):
    """The second of three steps; weight decay and momentum would move the weights without any gradient."""
    words = ["optim.weight_decay=0.1", "rl.denominator=kept"]
    with steps_that_change() as changed:
        assert train_taught(tmp_path / "run", words, 1, (*range(4), *range(8, 12))) == 0
    lines = steps(tmp_path / "run")
    assert changed == [True, False, True]
    assert [line["empty"] for line in lines] == [0, 1, 0]
    assert lines[1]["groups/dropped"] == lines[1]["groups"] == 4
    assert (lines[1]["loss"], lines[1]["tokens"], lines[1]["grad_norm"], lines[1]["skipped"]) == (None, 0, 0.0, 0)
    (said,) = [event for event in events(tmp_path / "run", "warning") if "step 2" in event["message"]]
    assert "empty" in said["message"]


def whole_run(directory: Path, words: list[str], ranks: int) -> int:
    fixed = ["train.eval_every=0", "rl.exact=true", "train.device=cpu", "logging.console=off"]
    cache = f"data.cache_dir={directory.parent / 'cache'}"
    return train(compose(["recipe=rl_toy", *fixed, cache, f"run.dir={directory}", *words], world_size=ranks))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("precision", ["fp32", "fp8_reference"])
@pytest.mark.parametrize("ranks", [1, 4])
def test_a_whole_run_has_equal_log_probabilities_on_both_sides(tmp_path, ranks, precision):
    """200 steps of the toy, on several ranks with each expert on one of them."""
    words = [f"precision={precision}", "train.steps=200"]
    if ranks == 1:
        assert whole_run(tmp_path / "run", words, 1) == 0
    else:
        spread = [*words, "parallel.dp_shard=4", "parallel.ep=4", "model.router_groups=4", "model.experts_per_token=4"]
        spread += ["train.micro_batch=6"]
        assert on_ranks(4, whole_run, tmp_path / "run", spread, 4, timeout_s=1800.0) == [0] * 4
    lines = steps(tmp_path / "run")
    assert len(lines) == 200
    assert sum(line["tokens"] for line in lines) > 20_000
    assert max(line["mismatch/max"] for line in lines) == 0.0
    assert lines[-1]["reward/mean"] > 4 * lines[0]["reward/mean"]


def run_and_keep(directory: Path, words: list[str], ranks: int) -> list[tuple[int, list[Rollout]]]:
    """The groups of this rank's questions, by number."""
    genuine, found = policy.measure_groups, list[tuple[int, list[Rollout]]]()

    def keep(groups: Produced, version: int) -> dict[str, float]:
        found.extend((group.sample, list(group.rollouts)) for group in groups.groups)
        return genuine(groups, version)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(policy, "measure_groups", keep)
        assert train(toy_config(directory, *words, world_size=ranks)) == 0
    return found


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("precision", ["fp32", "fp8_reference"])
def test_log_probabilities_differ_by_less_than_1e_6_between_numbers_of_ranks(tmp_path, precision):
    """In each of them training has the numbers of the rollouts; so these need to be compared alone."""
    words = [
        f"precision={precision}",
        "model.router_groups=4",
        "model.experts_per_token=4",
        "train.steps=1",
        "train.micro_batch=1",
    ]
    alone = dict(run_and_keep(tmp_path / "one", words, 1))
    for layout in (["parallel.dp_shard=4", "parallel.ep=4"], ["parallel.dp_shard=2", "parallel.cp=2", "parallel.ep=4"]):
        directory = tmp_path / layout[1]
        of_ranks = on_ranks(4, run_and_keep, directory, [*words, *layout], 4, timeout_s=400.0)
        spread = dict(group for of_rank in of_ranks for group in of_rank)
        assert spread.keys() == alone.keys()
        for sample, rollouts in alone.items():
            for ours, theirs in zip(spread[sample], rollouts, strict=True):
                assert ours.ids == theirs.ids
                assert np.abs(ours.log_probs - theirs.log_probs).max() < 1e-6
        assert all(line["mismatch/max"] == 0.0 for line in steps(directory))
