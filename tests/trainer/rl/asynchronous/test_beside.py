"""An engine beside training, asked by threads: parts of rollouts under two weights, deadlines, failures."""

import math
import time
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from parallel.layout import Place
from parallel.world import World
from tests.trainer.rl.servers.directories import directory_of
from tests.trainer.tiny_run import MODEL
from trainer.config.model import ModelConfig
from trainer.engine.request import Request, Sampling
from trainer.model.decoder import Decoder
from trainer.rl.asynchronous.background import Beside
from trainer.rl.asynchronous.drawn import Drawn
from trainer.rl.asynchronous.under_way import Answers
from trainer.rl.rollout.led import Led
from trainer.rl.rollout.protocol import Rollout, RolloutError
from trainer.rl.servers.own_engine import OwnEngine
from trainer.rl.servers.remote import Remote

END = frozenset[int]()
LENGTHS = (4, 3, 3, 300, 900, 3, 400)  # of the rollouts with these numbers


class Asking(Answers):
    """Every rollout has a prompt and a length of its own."""

    def __init__(self):
        ask = lambda number: (SimpleNamespace(prompt=(3, 5, 7 + number)), Sampling(seed=number))  # noqa: E731
        super().__init__(ask, 2, "own engine", discard=False, max_tokens=0, ends=END)

    def _request(self, one):
        return one.request(LENGTHS[one.prompt[-1] - 7], END)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return directory_of(tmp_path_factory.mktemp("model"), 0)[0]


def beside(directory):
    model = Decoder(ModelConfig(**{**MODEL, "max_position": 1000, "init_std": 0.3}), torch.float32)
    model.init_weights(1)
    remote = Remote(partial(OwnEngine, directory, cache_tokens=4096), [model], model.cfg, World(), Place())
    led = Led(remote, World(), World())
    return remote, Beside(remote, led, Asking(), "own engine", concurrent=4)


def test_what_a_change_of_weights_cuts_continues_under_the_new_ones(directory):
    """It has the tokens that an engine draws which has these weights from the first one on."""
    remote, background = beside(directory)
    background.start([0, 6])
    assert len(background.collect([0], 60.0)[0].rollout.ids) == 4
    while remote.engine._engine.unfinished == 0:
        time.sleep(0.01)
    time.sleep(0.3)
    background.stop()
    (part,) = background.held().values()
    assert part.finish == "abort"
    assert 0 < len(part.ids) < 400
    remote.pause()
    remote.load((), 4)
    remote.resume()
    background.start([6])
    whole = background.collect([6], 60.0)[6].rollout
    assert (len(whole.ids), whole.finish, background.drawn) == (400, "length", 404)
    assert whole.versions.tolist() == [0] * len(part.ids) + [4] * (400 - len(part.ids))
    assert len(whole.routes) == 3 + 400 - 1
    (again,) = remote.generate([Request((*whole.prompt, *part.ids), 20, Sampling(seed=6), END)], deadline_s=60)
    assert again.ids == whole.ids[len(part.ids) : len(part.ids) + 20]


def test_a_stop_with_nothing_under_way_leaves_the_engine_ready(directory):
    _, background = beside(directory)
    background.stop()
    assert background.held() == {}
    background.start([0, 1, 2])
    assert background.collect([0, 1, 2], 60.0).keys() == {0, 1, 2}


def test_a_round_that_is_late_or_an_engine_that_fails_ends_it(directory):
    _, background = beside(directory)
    background.start([4])
    with pytest.raises(RolloutError) as late:
        background.collect([4], 0.05)
    assert (late.value.where, late.value.value) == ("own engine", 2)
    background.stop()
    remote, background = beside(directory)

    def fail(requests, *, deadline_s):
        raise RolloutError("it is gone", where="own engine", value=0)

    remote.engine.generate = fail
    background.start([4])
    with pytest.raises(RolloutError) as failed:
        background.collect([4], 60.0)
    assert failed.value.where == "own engine"


def test_a_rollout_that_is_done_as_its_deadline_passes_is_not_late(directory, monkeypatch):
    """Between the last look of the thread that waits and its error."""
    _, background = beside(directory)
    genuine = background._changed.wait_for

    def passed(ready, timeout):
        genuine(ready, timeout=60.0)
        return False

    monkeypatch.setattr(background._changed, "wait_for", passed)
    background.start([0])
    assert len(background.collect([0], 0.0)[0].rollout.ids) == 4


def test_rollouts_ahead_of_a_round_have_no_deadline(directory):
    remote, background = beside(directory)
    genuine, deadlines = remote.engine.generate, []

    def noted(requests, *, deadline_s):
        deadlines.append(deadline_s)
        return genuine(requests, deadline_s=deadline_s)

    remote.engine.generate = noted
    background.start([3])
    time.sleep(0.05)
    assert len(background.collect([3], 60.0)[3].rollout.ids) == 300
    assert deadlines == [math.inf]


def part(prompt, tokens, routes, finish="abort"):
    rows = np.arange(len(prompt) + tokens - 1, dtype=np.uint16)
    rows = np.broadcast_to(rows[:, None, None], (len(rows), 2, 1))
    versions, log_probs = np.zeros(tokens, np.int64), np.zeros(tokens, np.float32)
    return Rollout(prompt, (9,) * tokens, log_probs, rows if routes else None, versions, finish)


@pytest.mark.parametrize(
    ("routed", "there"),
    [((True, False, True), True), ((False, False, True), True), ((True, True, False), False)],
)
def test_a_part_without_routes_leaves_them_to_the_next(routed, there):
    """An engine may have lost those of an answer that it cut; the next prompt has all of its tokens."""
    drawn, prompt = Drawn((3, 5), Sampling()), (3, 5)
    for routes, finish in zip(routed, ("abort", "abort", "length"), strict=True):
        drawn.add(part(prompt, 2, routes, finish))
        prompt += (9, 9)
    found = drawn.whole().routes
    assert (found is not None) == there
    if there:
        assert found[:, 0, 0].tolist() == [*range(2 + 6 - 1)]
