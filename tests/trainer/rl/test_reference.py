"""The divergence from a reference policy in runs: its anchor, its memory of it, and ranks."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed.pool import on_ranks
from tests.trainer.rl.toy import run_toy, toy_config
from tests.trainer.tiny_run import steps
from tests.trainer.weights.directories import checkpoint
from trainer.model.decoder import Decoder
from trainer.run.policy.trainer import PolicyTrainer
from trainer.run.process import train

KL = ("rl.kl_coef=0.1", "optim.lr=1e-2")


def lines_of(directory: Path) -> list[tuple[Any, ...]]:
    names = ("step", "loss", "kl/mean", "grad_norm", "tokens", "solve_rate")
    return [tuple(step[name] for name in names) for step in steps(directory)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    directory = tmp_path_factory.mktemp("kl") / "run"
    run_toy(directory, *KL, "train.steps=4")
    return directory


def test_the_divergence_is_from_the_weights_at_the_start(whole):
    """Exactly 0 at the first step, and then not; the run's own weights are back in place, bit for bit, as rollouts and
    training still agree."""
    found = steps(whole)
    assert found[0]["kl/mean"] == 0.0
    later = [step["kl/mean"] for step in found[1:] if step["tokens"]]
    assert later
    assert min(later) > 1e-6
    assert all(step["mismatch/max"] == 0.0 for step in found)


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_a_large_coefficient_holds_the_policy_near_the_reference(tmp_path, estimator):
    """Less than half as far: twelve questions and a rate at which a step moves little leave no noise of that size."""
    words = ["train.steps=24", "train.global_batch=12", "train.micro_batch=12", "optim.lr=2e-3"]
    words.append(f"rl.kl_estimator={estimator}")
    loose, held = (
        [
            step["kl/mean"]
            for step in run_toy(tmp_path / coefficient, *words, f"rl.kl_coef={coefficient}")[-8:]
            if step["kl/mean"] is not None
        ]
        for coefficient in ("1e-6", "1")
    )
    assert min(len(loose), len(held)) > 4
    assert 2 * max(held) < min(loose)


def test_a_resumed_run_keeps_its_reference(tmp_path, whole):
    """Bitwise the same lines, whatever the weights are at which it resumes."""
    run_toy(tmp_path / "run", *KL, "train.steps=2")
    before = {path.name: path.read_bytes() for path in (tmp_path / "run/reference/step-0").iterdir()}
    run_toy(tmp_path / "run", *KL, "train.steps=4")
    assert lines_of(tmp_path / "run") == lines_of(whole)
    assert {path.name: path.read_bytes() for path in (tmp_path / "run/reference/step-0").iterdir()} == before


@pytest.mark.parametrize("damage", ["gone", "flipped"])
def test_a_run_without_its_reference_does_not_resume(tmp_path, capsys, damage):
    run_toy(tmp_path / "run", *KL, "train.steps=1")
    if damage == "gone":
        shutil.rmtree(tmp_path / "run/reference")
    else:
        file = next((tmp_path / "run/reference/step-0").glob("*.distcp"))
        held = bytearray(file.read_bytes())
        held[len(held) // 2] ^= 1
        file.write_bytes(held)
    assert train(toy_config(tmp_path / "run", *KL, "train.steps=2")) != 0
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert str(tmp_path / "run/reference") in line
    assert "train.resume=never" in line


def test_the_reference_may_be_other_weights(tmp_path):
    """Those of a directory, which the resumed run needs no more."""
    words = [*KL, "model.positions=fope"]  # a model of router groups is published with it
    cfg = toy_config(tmp_path / "run", *words)
    model = Decoder(cfg.model, torch.float32)
    model.init_weights(seed=5)
    checkpoint(tmp_path / "other", model).write()
    words.append(f"rl.kl_reference={tmp_path / 'other'}")
    first, _ = run_toy(tmp_path / "run", *words, "train.steps=2")
    assert first["kl/mean"] > 1e-3
    assert first["mismatch/max"] == 0.0, "the rollouts' own weights are trained"
    shutil.rmtree(tmp_path / "other")
    resumed = run_toy(tmp_path / "run", *words, "train.steps=3")
    assert resumed[-1]["kl/mean"] > 1e-3


def test_another_model_cannot_be_the_reference(tmp_path, capsys):
    words = [*KL, "model.positions=fope"]
    cfg = toy_config(tmp_path / "run", *words)
    cfg.model.num_layers = 1
    model = Decoder(cfg.model, torch.float32)
    model.init_weights(seed=5)
    checkpoint(tmp_path / "other", model).write()
    assert train(toy_config(tmp_path / "run", *words, f"rl.kl_reference={tmp_path / 'other'}")) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert "rl.kl_reference" in line


def test_several_updates_of_a_round_have_one_reference_pass(tmp_path, monkeypatch):
    counted: list[int] = []
    genuine = PolicyTrainer._with_reference
    monkeypatch.setattr(
        PolicyTrainer, "_with_reference", lambda trainer, batch: (counted.append(1), genuine(trainer, batch))[1]
    )
    swaps: list[int] = []
    swap = PolicyTrainer._start_round
    monkeypatch.setattr(PolicyTrainer, "_start_round", lambda trainer: (swaps.append(1), swap(trainer))[1])
    found = run_toy(tmp_path / "run", *KL, "rl.updates=2", "train.steps=4")
    assert len(swaps) == 2
    assert len(counted) >= 4
    assert found[0]["kl/mean"] == 0.0
    assert found[1]["kl/mean"] > 0.0


def train_on(directory: Path, words: list[str], ranks: int) -> int:
    return train(toy_config(directory, *words, world_size=ranks))


@pytest.mark.parametrize(
    "layout",
    [
        pytest.param(["parallel.dp_shard=2", "parallel.ep=2"], id="experts"),
        pytest.param(["parallel.dp_shard=2"], id="shards", marks=pytest.mark.slow),
        pytest.param(["parallel.pp=2"], id="stages", marks=pytest.mark.slow),
        pytest.param(["parallel.cp=2"], id="parts of sequences", marks=pytest.mark.slow),
    ],
)
def test_two_ranks_have_the_divergence_of_one(tmp_path, layout):
    """And resume with the reference of the other layout."""
    words = [*KL, "train.steps=2", "rl.exact=false"]
    assert train_on(tmp_path / "one", words, 1) == 0
    assert on_ranks(2, train_on, tmp_path / "two", [*words, *layout], 2, timeout_s=120.0) == [0, 0]
    for ours, theirs in zip(steps(tmp_path / "two"), steps(tmp_path / "one"), strict=True):
        assert ours["kl/mean"] == pytest.approx(theirs["kl/mean"], rel=1e-4, abs=1e-9)
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4)
    more = [*KL, "train.steps=3", "rl.exact=false"]
    assert on_ranks(2, train_on, tmp_path / "one", [*more, *layout], 2, timeout_s=120.0) == [0, 0]
    assert train_on(tmp_path / "two", more, 1) == 0
    one, two = steps(tmp_path / "one")[-1], steps(tmp_path / "two")[-1]
    assert one["kl/mean"] == pytest.approx(two["kl/mean"], rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    "layout", [["parallel.dp_shard=2", "parallel.ep=2"], ["parallel.pp=2"]], ids=["experts", "stages"]
)
def test_two_ranks_read_other_weights_as_one_does(tmp_path, layout):
    """Before any pass has gathered the run's own."""
    words = [*KL, "model.positions=fope", "train.steps=1", "rl.exact=false"]
    model = Decoder(toy_config(tmp_path / "one", *words).model, torch.float32)
    model.init_weights(seed=5)
    checkpoint(tmp_path / "other", model).write()
    words.append(f"rl.kl_reference={tmp_path / 'other'}")
    assert train_on(tmp_path / "one", words, 1) == 0
    assert on_ranks(2, train_on, tmp_path / "two", [*words, *layout], 2, timeout_s=120.0) == [0, 0]
    (one,), (two,) = steps(tmp_path / "one"), steps(tmp_path / "two")
    assert one["kl/mean"] > 1e-3
    assert two["kl/mean"] == pytest.approx(one["kl/mean"], rel=1e-4)
    assert two["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-4)
