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
from tests.trainer.rl.toy import toy_config
from tests.trainer.spread import whole
from tests.trainer.tiny_run import events, steps
from trainer.engine.request import Completion
from trainer.optim.native import NativeEngine
from trainer.rl.groups import Group
from trainer.rl.producer import Synchronous
from trainer.rl.rollout.embedded import Embedded
from trainer.rl.rollout.protocol import Rollout
from trainer.run.policy.trainer import PolicyTrainer
from trainer.run.process import train

SAME = (
    "loss", "grad_norm", "tokens", "reward/mean", "solve_rate", "groups", "groups/dropped", "length/mean", "entropy",
    "mismatch/k1", "mismatch/k3", "mismatch/abs", "mismatch/max", "mismatch/ess", "masked/mis_low", "masked/mis_high",
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
    second step's weights are the first's result."""
    words = ["train.steps=2", "optim.clip_norm=0", *words]
    alone = run_off(directory / "one", words, 1)
    of_ranks = on_ranks(ranks, run_off, directory / "several", [*words, *layout], ranks, timeout_s=120.0)
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
    assert 0 < of_one[0]["masked/mis_low"] + of_one[0]["masked/mis_high"] < 1
    for line, one in zip(lines, of_one, strict=True):
        expected = pytest.approx({name: one[name] for name in SAME}, rel=1e-5, abs=1e-7)
        assert {name: line[name] for name in SAME} == expected
        assert line["mismatch/histogram"] == one["mismatch/histogram"]


@pytest.mark.parametrize("denominator", ["all", "kept", "sequence"])
def test_two_ranks_equal_one_process(tmp_path, denominator):
    compare_runs(tmp_path, 2, [f"rl.denominator={denominator}"], TWO)


@pytest.mark.parametrize("layout", ["parallel.cp=2", "parallel.pp=2"])
def test_two_ranks_that_train_on_the_same_rollouts_equal_one_process(tmp_path, layout):
    """With log-probabilities of old weights, which ranks with other tokens or stages compute."""
    compare_runs(tmp_path, 2, ["rl.updates=2", "rl.denominator=kept", "train.micro_batch=1"], [layout])


@pytest.mark.slow
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
        assert train(toy_config(directory, *words, world_size=ranks)) == 0
    return counted


@pytest.mark.parametrize("layout", ["parallel.cp=2", "parallel.pp=2"])
def test_ranks_with_the_same_rollouts_agree_to_the_last_bit_and_one_rewards_them(tmp_path, layout):
    words = [layout, "optim.lr=2e-2", "model.num_layers=3", "precision=fp8_reference"]
    first, other = on_ranks(2, train_and_count, tmp_path / "run", words, 2, timeout_s=120.0)
    assert (first, other) == (3 * 16 + 4, 0)
    lines = steps(tmp_path / "run")
    assert sum(line["tokens"] for line in lines) > 0
    for line in lines:
        assert line["mismatch/max"] == 0.0
        assert line["replay/flip_rate"] in (0.0, None)


def train_taught(directory: Path, words: list[str], ranks: int, samples: Collection[int]) -> int:
    with teaching(samples):
        return train(toy_config(directory, *words, world_size=ranks))


@pytest.mark.parametrize("replay", ["replay", "record"])
def test_a_rank_whose_groups_are_all_dropped_takes_part(tmp_path, replay):
    """Rank 0 has the questions with even numbers."""
    words = [*TWO, f"rl.replay={replay}"]
    assert on_ranks(2, train_taught, tmp_path / "run", words, 2, range(0, 12, 2), timeout_s=120.0) == [0, 0]
    lines = steps(tmp_path / "run")
    assert sum(line["tokens"] for line in lines) > 0
    assert all(line["mismatch/max"] == 0.0 for line in lines)


def test_a_step_whose_groups_are_all_dropped_changes_neither_weights_nor_moments(tmp_path, monkeypatch):
    """The second of three steps; weight decay and momentum would move the weights without any gradient."""
    before_and_after: list[tuple[dict[str, Tensor], dict[str, Tensor]]] = []
    genuine = PolicyTrainer._train_step

    def state_of(trainer: PolicyTrainer) -> dict[str, Tensor]:
        held = {**trainer.parts.model.state_dict(), **trainer.parts.engine.state()}
        return {name: tensor.clone() for name, tensor in held.items()}

    def compared(trainer: PolicyTrainer, *given: Any) -> None:
        before = state_of(trainer)
        genuine(trainer, *given)
        before_and_after.append((before, state_of(trainer)))

    monkeypatch.setattr(PolicyTrainer, "_train_step", compared)
    words = ["optim.weight_decay=0.1", "rl.denominator=kept"]
    assert train_taught(tmp_path / "run", words, 1, (*range(4), *range(8, 12))) == 0
    changed = [any(not torch.equal(after[name], before[name]) for name in before) for before, after in before_and_after]
    lines = steps(tmp_path / "run")
    assert changed == [True, False, True]
    assert [line["empty"] for line in lines] == [0, 1, 0]
    assert lines[1]["groups/dropped"] == lines[1]["groups"] == 4
    assert (lines[1]["loss"], lines[1]["tokens"], lines[1]["grad_norm"], lines[1]["skipped"]) == (None, 0, 0.0, 0)
    (said,) = [event for event in events(tmp_path / "run", "warning") if "step 2" in event["message"]]
    assert "empty" in said["message"]
