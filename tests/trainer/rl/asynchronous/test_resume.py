"""A run that was stopped is, bit for bit, the run that never was: rollouts that wait or are under way are kept."""

import os
import signal

import numpy as np
import pytest

from tests.distributed.pool import on_ranks
from tests.trainer.rl.asynchronous.records import numbers, rollouts_of
from tests.trainer.rl.toy import run_toy, toy_config
from tests.trainer.tiny_run import steps
from trainer.rl.asynchronous.held import Held, name_of, pack_held, read_held
from trainer.rl.rollout.protocol import Rollout, RolloutError
from trainer.run.loop import Trainer
from trainer.run.policy.trainer import PolicyTrainer
from trainer.run.process import train

LONG = ("rl.max_tokens=24", "rl.reward=overlap", "optim.lr=1e-2", "train.steps=6")
AHEAD = ("rl.max_staleness=2", "rl.concurrent=8")
ROUNDS = ("rl.updates=2", "rl.denominator=kept", "rl.oversample=2")


@pytest.mark.parametrize(
    "words",
    [AHEAD, pytest.param((*AHEAD, "rl.partial_rollouts=discard"), marks=pytest.mark.slow), ROUNDS],
    ids=["ahead", "discard", "rounds"],
)
def test_stopped_in_a_round_and_resumed_is_the_run_that_never_stopped(tmp_path, monkeypatch, words):
    usual = run_toy(tmp_path / "usual" / "run", *LONG, *words)
    genuine = Trainer._train_step

    def stop(self, *args):
        if self.position.step == 2:
            os.kill(os.getpid(), signal.SIGINT)
        genuine(self, *args)

    directory = tmp_path / "other" / "run"
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_train_step", stop)
        assert train(toy_config(directory, *LONG, *words)) == 130
    held, waiting = rollouts_of(directory, 3)
    assert len(waiting) == 1
    assert any(one.step == 0 and one.rollout.finish != "abort" for one in held)
    if "rl.max_staleness=2" in words:
        assert any(one.step < 0 and one.rollout.finish == "abort" for one in held)
    else:
        assert all(one.old is not None for one in held)
    assert numbers(run_toy(directory, *LONG, *words)) == numbers(usual)


def test_rollouts_that_continue_after_a_step_are_in_its_checkpoint(tmp_path):
    usual = run_toy(tmp_path / "usual" / "run", *LONG, *AHEAD)
    directory = tmp_path / "other" / "run"
    run_toy(directory, *LONG[:-1], *AHEAD, "train.steps=3")
    assert rollouts_of(directory, 3)[0]
    assert numbers(run_toy(directory, *LONG, *AHEAD)) == numbers(usual)


def test_a_step_that_nothing_waits_behind_has_no_file(tmp_path):
    run_toy(tmp_path / "run", "train.steps=1")
    assert not [*(tmp_path / "run" / "checkpoints" / "step-1").glob("rollouts-*")]


def over_two(directory, *words):
    assert train(toy_config(directory, *words, "parallel.dp_replicate=2", world_size=2)) == 0


@pytest.mark.slow
def test_another_number_of_ranks_continues_with_the_same_rollouts(tmp_path):
    words = (*LONG[:-1], "rl.max_staleness=2", "train.micro_batch=1")
    usual = run_toy(tmp_path / "usual" / "run", *words, "train.steps=6")
    directory = tmp_path / "other" / "run"
    on_ranks(2, over_two, directory, *words, "train.steps=2")
    assert len([*(directory / "checkpoints" / "step-2").glob("rollouts-*-of-2.npz")]) == 2
    run_toy(directory, *words, "train.steps=6")
    for name in ("groups", "groups/dropped", "tokens", "length/mean", "staleness/mean"):
        assert [line[name] for line in steps(directory)] == [line[name] for line in usual], name
    assert [line["loss"] for line in steps(directory)] == pytest.approx([line["loss"] for line in usual], rel=1e-3)


def made(sample, tokens, finish, **more):
    draw = np.random.default_rng(sample)
    routes = draw.integers(0, 8, (2 + tokens - 1, 3, 2)).astype(np.uint16)
    versions = np.arange(tokens, dtype=np.int64)
    rollout = Rollout((1, 2), tuple(range(tokens)), draw.random(tokens).astype(np.float32), routes, versions, finish)
    return Held(sample, sample % 2, rollout, **more)


def test_files_of_any_number_of_readers_are_read_whole(tmp_path):
    held = [made(0, 3, "abort"), made(1, 4, "stop", step=0, advantage=0.25), made(2, 1, "length"), made(5, 2, "abort")]
    for reader in range(2):
        mine = [one for one in held if one.sample % 2 == reader]
        (tmp_path / name_of(reader, 2)).write_bytes(pack_held(mine, [{"end": 2}]))
    files = [*tmp_path.iterdir()]
    for readers in (1, 2, 3):
        found = [read_held(files, reader, readers) for reader in range(readers)]
        assert all(waiting == [{"end": 2}] for _, waiting in found)
        together = sorted((one for of_reader, _ in found for one in of_reader), key=lambda one: one.sample)
        assert [one.sample for one in together] == [0, 1, 2, 5]
        for one, expected in zip(together, held, strict=True):
            assert (one.step, one.advantage, one.member) == (expected.step, expected.advantage, expected.member)
            assert one.rollout.ids == expected.rollout.ids
            assert one.rollout.finish == expected.rollout.finish
            for name in ("log_probs", "routes", "versions"):
                assert np.array_equal(getattr(one.rollout, name), getattr(expected.rollout, name))


@pytest.mark.slow
def test_what_is_under_way_is_not_saved_where_the_engine_failed(tmp_path, monkeypatch):
    """Weights and position are whole, and the questions are asked again."""
    genuine = PolicyTrainer._send_weights

    def fail(self):
        if self.position.step == 2:
            raise RolloutError("the engine is gone", where="engine")
        genuine(self)

    directory = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(PolicyTrainer, "_send_weights", fail)
        assert train(toy_config(directory, *LONG, *AHEAD)) == 1
    assert rollouts_of(directory, 2) == ([], [])
    assert [line["step"] for line in run_toy(directory, *LONG, *AHEAD)] == [*range(1, 7)]
