"""Runs whose engine is lost while rollouts are under way or wait: what was trained is saved."""

from __future__ import annotations

import threading
from functools import partial

import pytest

from tests.trainer.rl.asynchronous.records import rollouts_of
from tests.trainer.rl.servers.stand_in import write_model
from tests.trainer.rl.toy import run_toy, toy_config
from tests.trainer.tiny_run import events
from trainer.rl.rollout.protocol import RolloutError
from trainer.rl.servers.own_engine import OwnEngine
from trainer.rl.servers.remote import Remote
from trainer.run.policy import trainer as module
from trainer.run.policy.trainer import PolicyTrainer
from trainer.run.process import train

WORDS = ("rl.reward=overlap", "optim.lr=1e-2", "model.positions=fope")
AHEAD = ("rl.max_staleness=1", "rl.exact=false", "checkpoint.every=2")


class Lost(OwnEngine):
    """Its process ends at `gone`, which the questions ahead of the second round wait for."""

    gone = threading.Event()

    def generate(self, requests, *, deadline_s):
        if threading.current_thread().name in {f"rollouts of question {number}" for number in range(8, 12)}:
            self.gone.wait(60.0)
            raise RolloutError("the engine is gone", where="engine", value=0)
        return super().generate(requests, deadline_s=deadline_s)

    def pause(self):
        if self.gone.is_set():
            raise RolloutError("the engine is gone", where="engine", value=0)
        super().pause()


def test_a_step_is_saved_though_the_engine_died_since_its_rollouts(tmp_path, monkeypatch, capsys):
    """The next round says so."""
    directory = tmp_path / "run"
    folder = write_model(tmp_path / "model", toy_config(directory, *WORDS, *AHEAD).model, seed=99)

    def beside(cfg, world, parts, same, pipeline, **more):
        stages = [*parts.stages.values()]
        return "engine", Remote(partial(Lost, folder), stages, cfg.model, world, parts.place, pipeline)

    save = PolicyTrainer._save

    def die(self):
        Lost.gone.set()
        for thread in self.producer.ahead.background._threads:
            thread.join()
        save(self)

    with monkeypatch.context() as patch:
        patch.setattr(module, "build_engine", beside)
        patch.setattr(PolicyTrainer, "_save", die)
        assert train(toy_config(directory, *WORDS, *AHEAD)) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert "the engine is gone" in line
    assert [one["message"] for one in events(directory, "checkpoint")] == ["step-2 is saved"]
    assert rollouts_of(directory, 2) == ([], [])
    assert [line["step"] for line in run_toy(directory, *WORDS, *AHEAD)] == [1, 2, 3]


def numbers(lines):
    return [[line[name] for name in ("step", "loss", "questions", "tokens", "mismatch/max")] for line in lines]


@pytest.mark.parametrize("more", [(), ("rl.max_staleness=3",)], ids=["in turns", "ahead"])
def test_steps_that_wait_are_saved_where_an_evaluation_fails(tmp_path, monkeypatch, more):
    """They were drawn, and need no engine; the run that continues trains them."""
    words = (*WORDS, "rl.updates=2", "train.steps=4", *more)
    usual = run_toy(tmp_path / "usual" / "run", *words)

    def fail(self):
        raise RolloutError("the engine is gone", where="engine", value=0)

    directory = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(PolicyTrainer, "_measure_answers", fail)
        assert train(toy_config(directory, *words, "train.eval_every=1")) == 1
    held, waiting = rollouts_of(directory, 1)
    assert len(waiting) == 1
    assert {one.step for one in held} == {0}
    count = 2 if more else 4  # what was under way is drawn anew, under newer weights
    assert numbers(run_toy(directory, *words))[:count] == numbers(usual)[:count]
