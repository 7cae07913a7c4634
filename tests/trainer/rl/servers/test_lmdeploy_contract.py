"""The LMDeploy client against LMDeploy 0.18's own HTTP server, over Octavo's engine on a CPU.

`make test-peers` sets its environment up; without it these tests are skipped. The server's kernels, its Ray workers and
the CUDA handles of weights are not part of this.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.trainer.rl.servers import scenario
from tests.trainer.rl.servers.http_server import Exchange
from tests.trainer.rl.servers.lmdeploy_process import Servers, lmdeploy_servers, make_export
from tests.trainer.weights.peers.environments import require
from trainer.engine.engine import Engine
from trainer.engine.load import open_source
from trainer.engine.request import Request, Sampling
from trainer.rl.rollout.protocol import Rollout
from trainer.rl.servers.errors import IncompleteError
from trainer.rl.servers.lmdeploy import LMDeployEngine

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require("lmdeploy")
    return make_export(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def servers(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    with lmdeploy_servers(exported, tmp_path_factory.mktemp("log") / "log") as made:
        yield made


@pytest.fixture
def engine(servers: Servers) -> Iterator[LMDeployEngine]:
    made = LMDeployEngine(servers.urls["full"])
    yield made
    made.close()


def locally(directory: Path) -> Engine:
    return Engine(open_source(directory).load(torch.device("cpu")), cache_tokens=4096, batch=8, chunk=64)


def require_equal_scores(rollouts: list[Rollout], engine: Engine) -> None:
    """Log-probabilities and routes are bit for bit those of an engine that is given the whole answers."""
    scored = engine.generate([Request([*one.prompt, *one.ids], 0, score_prompt=True) for one in rollouts])
    for one, again in zip(rollouts, scored, strict=True):
        assert again.prompt_scores is not None
        first = len(one.prompt) - 1
        assert (one.log_probs == again.prompt_scores.log_probs[first:]).all()
        assert one.routes is not None
        assert (one.routes == again.routes[: len(one.routes)]).all()
        assert len(one.routes) == len(one.prompt) + len(one.ids) - 1


def same(found: Any, expected: Any) -> bool:
    """Equal but for the last bits of numbers, and for texts."""
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(same(found[key], expected[key]) for key in expected)
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(same, found, expected))
    if isinstance(expected, float):
        return bool(np.isclose(found, expected, rtol=1e-3, atol=1e-3))
    return isinstance(expected, str) or found == expected


def test_the_recorded_exchanges_are_lmdeploys(servers):
    live: list[Exchange] = []
    scenario.ask_live(servers.urls, live)
    expected: dict[str, list[Exchange]] = {}
    for one in scenario.recorded():
        expected.setdefault(one.key, []).append(one)
    found: dict[str, list[Exchange]] = {}
    for one in live:
        found.setdefault(one.key, []).append(one)
    # As many aborts are sent as are needed, and as many tokens drawn before as there was time for. The client looks at
    # the process behind the answers more often than when this was recorded.
    parts = ('"abort_all": true', '"max_tokens": 500', '"/metrics"')
    loose = [key for key in expected if any(part in key for part in parts)]
    assert found.keys() | set(loose) == expected.keys() | set(loose)
    for key in expected.keys() - set(loose):
        assert [one.status for one in found[key]] == [one.status for one in expected[key]], key
        for one, other in zip(found[key], expected[key], strict=True):
            assert same(one.reply, other.reply), (one, other)
    for key in loose:
        assert {one.status for one in found.get(key, [])} <= {one.status for one in expected[key]}


def test_the_recorded_weights_are_put_back(engine, exported):
    """The scenario above changed two tensors."""
    (file,) = exported.glob("*.safetensors")
    engine.pause()
    engine.load(load_file(file).items(), 1)
    engine.resume()


def test_answers_are_bit_for_bit_those_of_the_engine_behind_the_server(engine, exported):
    asked = [Request([7 + n, 5, 200], 20 + n, Sampling(1.0, top_p=0.9), frozenset({0})) for n in range(6)]
    found = engine.generate(asked, deadline_s=120)
    require_equal_scores(found, locally(exported))
    assert {one.finish for one in found} <= {"stop", "length"}
    greedy = [Request(one.prompt, 12, Sampling(0.0), frozenset({0})) for one in asked]
    expected = locally(exported).generate(greedy)
    for one, other in zip(engine.generate(greedy, deadline_s=120), expected, strict=True):
        assert (one.ids, one.finish) == (other.ids, other.finish)
        assert (one.log_probs == other.log_probs).all()
        assert other.routes is not None
        assert (one.routes == other.routes).all()


@pytest.mark.parametrize("distributed", [False, True], ids=["buckets", "distributed"])
def test_other_weights_in_small_buckets(servers, exported, tmp_path, distributed):
    """distributed: through a group of gloo whose other end LMDeploy's own function makes."""
    other = make_export(tmp_path, seed=1)
    (file,) = other.glob("*.safetensors")
    weights = load_file(file)
    engine = LMDeployEngine(servers.urls["full"], bucket_mb=0, distributed=distributed)
    engine._bucket_bytes = 4096
    engine.pause()
    engine.load(weights.items(), 9)
    engine.resume()
    found = engine.generate([Request([5, 6], 20, Sampling(1.0))], deadline_s=120)
    require_equal_scores(found, locally(other))
    assert found[0].versions.tolist() == [9] * 20
    assert engine.last_sync is not None
    assert engine.last_sync.nbytes == sum(tensor.nbytes for tensor in weights.values())
    assert (engine.last_sync.tensors, engine.last_sync.buckets > 5) == (len(weights), True)
    engine.pause()
    (file,) = exported.glob("*.safetensors")
    engine.load(load_file(file).items(), 10)
    engine.resume()
    engine.close()


def test_a_pause_ends_answers_early_with_what_they_have(engine, exported):
    found: list[Rollout] = []
    asked = [Request([3 + n, 4], 500, Sampling(1.0)) for n in range(4)]
    thread = threading.Thread(target=lambda: found.extend(engine.generate(asked, deadline_s=120)))
    thread.start()
    time.sleep(1.0)
    engine.pause()
    thread.join()
    assert "abort" in {one.finish for one in found} <= {"abort", "stop"}  # an end token may have been drawn
    assert all(0 < len(one.ids) < 500 for one in found)
    require_equal_scores(found, locally(exported))
    engine.resume()


def test_a_server_that_stops_or_dies_is_named_within_the_deadline(servers, exported, tmp_path):
    """Last: no server is left."""
    engine = LMDeployEngine(servers.urls["full"])
    os.kill(servers.process.pid, signal.SIGSTOP)
    started = time.monotonic()
    with pytest.raises(IncompleteError) as raised:
        engine.generate([Request([1], 4)], deadline_s=1.0)
    assert time.monotonic() - started < 3
    assert (raised.value.where, raised.value.value) == (engine.name, 0)
    os.kill(servers.process.pid, signal.SIGCONT)
    assert engine.generate([Request([1], 4)], deadline_s=60)[0].finish == "length"

    killer = threading.Timer(0.5, servers.process.kill)
    killer.start()
    started = time.monotonic()
    with pytest.raises(IncompleteError) as raised:
        engine.generate([Request([1], 2), Request([1], 580)], deadline_s=60)
    assert time.monotonic() - started < 30
    assert (raised.value.where, raised.value.value, [*raised.value.finished]) == (engine.name, 1, [0])
    engine.close()
