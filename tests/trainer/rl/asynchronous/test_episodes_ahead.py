"""Episodes in an environment that are played ahead of training: turns under several weights, stops, changed answers."""

import os
import signal
import threading
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from parallel.layout import Place
from parallel.world import World
from tests.trainer.rl.asynchronous.records import FROZEN, numbers, rollouts_of, rounds_of, same
from tests.trainer.rl.environments.scripted import Characters, Scripted
from tests.trainer.rl.toy import run_toy, toy_config
from trainer.engine.request import Sampling
from trainer.rl.asynchronous.background import Beside
from trainer.rl.asynchronous.held import UNDER_WAY
from trainer.rl.asynchronous.under_way import Conversations
from trainer.rl.environments.base import EnvironmentFailed
from trainer.rl.environments.build import build_environment
from trainer.rl.environments.dialogue import InlineDialogue
from trainer.rl.environments.play import Play
from trainer.rl.environments.tools import ToolSession
from trainer.rl.rollout.led import Led
from trainer.rl.servers.remote import Remote
from trainer.run.loop import Trainer
from trainer.run.process import train

TOOLS = ("rl.max_tokens=12", "data.seq_len=72", "train.steps=4", "train.micro_batch=1")
AHEAD = ("rl.max_staleness=2", "rl.concurrent=7")
TEXT = Characters()


def run(directory, *words):
    return run_toy(directory, *TOOLS, *words, recipe="rl_tools_toy")


@pytest.mark.parametrize("partial", ["keep", pytest.param("discard", marks=pytest.mark.slow)])
def test_episodes_under_equal_weights_are_those_that_were_played_in_their_round(tmp_path, monkeypatch, partial):
    """Tokens of model and tools, log-probabilities, routes and rewards, to the last bit; and no question is passed
    over."""
    rounds = rounds_of(monkeypatch)
    run(tmp_path / "usual" / "run", *FROZEN)
    whole = {group.sample: group for _, groups in rounds for group in groups}
    rounds.clear()
    lines = run(tmp_path / "other" / "run", *FROZEN, *AHEAD, f"rl.partial_rollouts={partial}")
    assert [group.sample for _, groups in rounds for group in groups] == [*range(16)]
    several = calls = 0
    for version, groups in rounds:
        for group in groups:
            for one, expected in zip(group.rollouts, whole[group.sample].rollouts, strict=True):
                assert same(one, expected)
                assert np.array_equal(one.drawn, expected.drawn)
                assert (np.diff(one.versions) >= 0).all()
                assert version - 2 <= one.versions.min()
                several += len({*one.versions.tolist()}) > 1
                calls += not one.drawn.all()
            assert np.array_equal(group.rewards, whole[group.sample].rewards)
    assert calls
    assert (several > 0) == (partial == "keep")
    assert (sum(line["rollout/discarded_tokens"] for line in lines) > 0) == (partial == "discard")
    assert 0 < max(line["staleness/max"] for line in lines if line["tokens"]) <= 2
    assert all(line["mismatch/max"] == 0.0 for line in lines if line["tokens"])


def ended_early(directory, monkeypatch, step):
    """A run that ends behind a step."""
    genuine = Trainer._train_step

    def stop(self, *args):
        if self.position.step == step - 1:
            os.kill(os.getpid(), signal.SIGINT)
        genuine(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_train_step", stop)
        assert train(toy_config(directory, *TOOLS, *AHEAD, recipe="rl_tools_toy")) == 130
    held, _ = rollouts_of(directory, step)
    cut = [one.rollout for one in held if one.rollout.finish == "abort"]
    assert any(not one.drawn.all() for one in cut)  # in a later turn
    return [one for one in held if one.step == UNDER_WAY]


@pytest.fixture(scope="module")
def usual(tmp_path_factory):
    return run(tmp_path_factory.mktemp("usual") / "run", *AHEAD)


def test_a_run_that_is_resumed_continues_its_episodes_bit_for_bit(tmp_path, monkeypatch, usual):
    directory = tmp_path / "run"
    ended_early(directory, monkeypatch, 1)
    assert numbers(run(directory, *AHEAD)) == numbers(usual)


@pytest.mark.slow
def test_an_episode_whose_environment_answers_otherwise_is_played_from_its_start(tmp_path, monkeypatch, usual):
    directory = tmp_path / "run"
    held = ended_early(directory, monkeypatch, 1)
    called = sum(one.rollout.drawn.sum() for one in held if not one.rollout.drawn.all())
    monkeypatch.setattr(ToolSession, "_reply", lambda self, place, call: "6")
    lines = run(directory, *AHEAD)
    assert [line["questions"] for line in lines] == [line["questions"] for line in usual]
    assert lines[2]["rollout/discarded_tokens"] == called > 0
    assert all(line["rollout/discarded_tokens"] == 0 for line in lines[3:])


class Calls(Scripted):
    """Calls the calculator once and repeats its answer; `gate` holds the second turn of question 1 until it is set or
    the engine pauses, which cuts this turn behind two tokens."""

    def __init__(self):
        super().__init__(self._say, version=0)
        self.gate, self.held, self.paused = threading.Event(), threading.Event(), threading.Event()

    def _say(self, prompt):
        text = TEXT.answer_text(prompt)
        if text.endswith("="):
            return TEXT.encode("[" + text[:-1] + "]")
        answer = text.rpartition("]")[2]
        value, _, there = answer.partition("|")
        return [*TEXT.encode((value * 3)[len(there) :]), TEXT.eos_id]

    def generate(self, requests, *, deadline_s):
        found = super().generate(requests, deadline_s=deadline_s)
        if any("30+7|" in TEXT.answer_text(one.prompt) or "]37|" in TEXT.answer_text(one.prompt) for one in requests):
            self.held.set()
            while not self.gate.wait(0.01):
                if self.paused.is_set():
                    return [replace(one, ids=one.ids[:2], log_probs=one.log_probs[:2], versions=one.versions[:2],
                                    routes=None, finish="abort") for one in found]  # fmt: skip
        return found

    def pause(self):
        self.paused.set()

    def resume(self):
        self.paused.clear()


def beside(environment=None, seconds=20):
    engine = Calls()
    remote = Remote(lambda: engine, [], None, World(), Place())
    environment = environment or build_environment({"tools": ["calculator"], "reward": "exact"})
    plays = Play(environment, InlineDialogue(TEXT), 12, 60, seconds, "server")

    def ask(number):
        prompt = f"{10 + 20 * (number // 2)}+7="
        record = SimpleNamespace(prompt=prompt, answer=str(eval(prompt[:-1])) * 3, data={})
        return SimpleNamespace(number=number // 2, record=record), Sampling(seed=number)

    under_way = Conversations(ask, 2, "server", discard=False, plays=plays)
    return engine, Beside(remote, Led(remote, World(), World()), under_way, "server", concurrent=4)


def text_of(outcome):
    return TEXT.answer_text(outcome.rollout.ids)


def test_threads_play_on_beside_training_and_a_stop_cuts_a_turn():
    engine, background = beside()
    background.start([0, 1, 2, 3])
    found = background.collect([0, 1], 60.0)
    assert [text_of(one) for one in found.values()] == ["[10+7]17|171717"] * 2
    assert [one.episode.verdict.value for one in found.values()] == [1, 1]
    assert engine.held.wait(60)
    background.stop()
    held = background.held()
    assert [TEXT.answer_text(one.ids) for one in held.values()] == ["[30+7]37|37"] * 2
    assert {one.finish for one in held.values()} == {"abort"}
    assert background.counts() == {"discarded_tokens": 0, "unfinished": 2, "waiting": 0}

    engine.gate.set()
    background.start([2, 3])
    rest = background.collect([2, 3], 60.0)
    assert [text_of(one) for one in rest.values()] == ["[30+7]37|373737"] * 2
    assert [one.episode.turns for one in rest.values()] == [2, 2]
    assert [one.episode.counts["calls"] for one in rest.values()] == [1, 1]

    fresh, other = beside()  # a process that continues with the same, whose sessions are stepped anew
    fresh.gate.set()
    other.store(held)
    assert other.held() == held
    other.start([2, 3])
    again = other.collect([2, 3], 60.0)
    assert [text_of(one) for one in again.values()] == ["[30+7]37|373737"] * 2
    assert [one.episode.counts["calls"] for one in again.values()] == [1, 1]
    assert [one.episode.verdict.value for one in again.values()] == [1, 1]
    assert len(fresh.asked) == 1


def test_an_environment_that_fails_beside_training_is_named_when_its_round_is():
    class Broken:
        name, tools, turns = "broken", (), 2

        def start(self, question):
            messages = [{"role": "user", "content": question.prompt}]
            return SimpleNamespace(messages=messages, step=self.step, reward=None, counts=dict)

        def step(self, said):
            raise KeyError("no such row")

    engine, background = beside(Broken())
    engine.gate.set()
    background.start([0, 1, 2, 3])
    with pytest.raises(EnvironmentFailed) as caught:
        background.collect([0, 1], 60.0)
    assert caught.value.where == "broken"
    assert background.remote.failed
