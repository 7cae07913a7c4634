"""An engine with weights of its own, and buckets of weights: whole or not at all."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
import torch

from tests.trainer.rl.servers.directories import directory_of
from trainer.engine.engine import Engine
from trainer.engine.load import open_source
from trainer.engine.request import Request, Sampling
from trainer.rl.rollout.protocol import RolloutError
from trainer.rl.servers.buckets import buckets_of, load_into
from trainer.rl.servers.errors import IncompleteError
from trainer.rl.servers.own_engine import OwnEngine

LONG = [Request([1 + n, 2], 150, Sampling(1.0, seed=n)) for n in range(2)]


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    return directory_of(tmp_path_factory.mktemp("first"), 0)


@pytest.fixture(scope="module")
def second(tmp_path_factory):
    return directory_of(tmp_path_factory.mktemp("second"), 1)


def make(directory: Path) -> OwnEngine:
    return OwnEngine(directory, cache_tokens=2048, batch=4, chunk=64)


def greedy(directory: Path) -> list[tuple[int, ...]]:
    engine = Engine(open_source(directory).load(torch.device("cpu")), cache_tokens=2048)
    return [one.ids for one in engine.generate(QUESTIONS)]


QUESTIONS = [Request([3, 5, 7 + n], 6, Sampling(0.0)) for n in range(3)]


def test_weights_change_whole_and_every_token_has_its_version(first, second):
    engine = make(first[0])
    before = engine.generate(QUESTIONS, deadline_s=60)
    assert [one.ids for one in before] == greedy(first[0])
    with pytest.raises(RolloutError):
        engine.load(second[1].items(), 1)  # not paused
    engine.pause()
    assert {one.finish for one in engine.generate(QUESTIONS, deadline_s=60)} == {"abort"}
    bfloat = [(name, tensor.to(torch.bfloat16) if "coef" not in name else tensor) for name, tensor in second[1].items()]
    sync = load_into([engine], iter(bfloat), 7, 4096)
    engine.resume()
    after = engine.generate(QUESTIONS, deadline_s=60)
    assert [one.ids for one in after] == greedy(second[0])
    assert {tuple(one.versions.tolist()) for one in after} == {(7,) * 6}
    assert (sync.version, sync.tensors, sync.buckets > 3) == (7, len(bfloat), True)
    assert sync.nbytes == sum(tensor.nbytes for _, tensor in bfloat)


@pytest.mark.parametrize("change", ["missing", "unknown", "shape", "twice"])
def test_weights_that_do_not_fit_change_nothing(first, second, change):
    engine, weights = make(first[0]), [*second[1].items()]
    name, tensor = weights[-1]
    if change == "missing":
        weights.pop()
    elif change == "unknown":
        weights.append(("other", tensor))
    elif change == "shape":
        weights[-1] = (name, tensor.flatten()[:-1])
    else:
        weights.append((name, tensor))
    engine.pause()
    with pytest.raises((RolloutError, ValueError)):
        engine.load(iter(weights), 1)
    engine.resume()
    assert [one.ids for one in engine.generate(QUESTIONS, deadline_s=60)] == greedy(first[0])
    assert engine.version == 0


def test_a_pause_returns_tokens_scores_and_routes_so_far(first):
    engine, found = make(first[0]), []
    thread = threading.Thread(target=lambda: found.extend(engine.generate(LONG, deadline_s=60)))
    thread.start()
    time.sleep(0.1)
    engine.pause()
    thread.join()
    for one, whole in zip(found, make(first[0]).generate(LONG, deadline_s=60), strict=True):
        count = len(one.ids)
        assert (one.finish, 0 < count < 150) == ("abort", True)
        assert one.ids == whole.ids[:count]
        assert (one.log_probs == whole.log_probs[:count]).all()
        assert (one.routes == whole.routes[: len(one.prompt) + count - 1]).all()
        assert len(one.routes) == len(one.prompt) + count - 1


def test_a_deadline_keeps_what_is_finished(first):
    engine = make(first[0])
    with pytest.raises(IncompleteError) as raised:
        engine.generate([LONG[0], QUESTIONS[0]], deadline_s=0.05)
    assert (raised.value.where, raised.value.value) == (engine.name, 0)
    assert {*raised.value.finished} <= {1}
    assert engine.generate(QUESTIONS[:1], deadline_s=60)[0].ids == greedy(first[0])[0]


def test_a_bucket_has_one_dtype_and_at_most_its_bytes():
    tensors = [torch.ones(4), torch.ones(2), torch.ones(9), torch.ones(2, dtype=torch.bfloat16), torch.ones(3, 1)]
    named = [(str(number), tensor) for number, tensor in enumerate(tensors)]
    made = [*buckets_of(iter(named), 24)]
    assert [one.names for one in made] == [("0", "1"), ("2",), ("3",), ("4",)]
    assert [one.nbytes for one in made] == [24, 36, 4, 12]
    with pytest.raises(ValueError):
        [*buckets_of([named[0], named[0]], 24)]
