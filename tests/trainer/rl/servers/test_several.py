"""Several servers behind one run: questions are divided, all get the weights, and one that fails is named."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from tests.printed import error_line
from tests.trainer.rl.servers.stand_in import Fault, own_server, write_model
from tests.trainer.rl.toy import run_toy, toy_config
from tests.trainer.tiny_run import steps
from trainer.config.compose import compose
from trainer.config.errors import ConfigError
from trainer.engine.request import Request
from trainer.rl.rollout.protocol import Rollout, RolloutError
from trainer.rl.rollout.several import Several
from trainer.rl.servers.buckets import Bucket
from trainer.rl.servers.errors import IncompleteError, RestartedError
from trainer.run.process import train

WORDS = ("model.positions=fope", "rl.engine=lmdeploy", "rl.exact=false", "rl.bucket_mb=1", "rl.reward=overlap")


class Engine:
    """Answers with its own number, after `go` if it is not set. fails: raises it instead."""

    def __init__(self, number: int) -> None:
        self.number, self.version, self.fails = number, 0, None
        self.calls: list[object] = []
        self.go = threading.Event()
        self.go.set()

    def generate(self, requests: Sequence[Request], *, deadline_s: float) -> list[Rollout]:
        self.calls.append([request.prompt for request in requests])
        self.go.wait(30)
        if self.fails is not None:
            raise self.fails
        return [self._one(request) for request in requests]

    def _one(self, request: Request) -> Rollout:
        zero = np.zeros(1, np.float32)
        return Rollout(tuple(request.prompt), (self.number,), zero, None, np.zeros(1, np.int64), "stop")

    def pause(self) -> None:
        self.calls.append("pause")

    def start_load(self) -> None:
        self.calls.append("start")

    def take(self, bucket: Bucket) -> None:
        self.calls.append(bucket.names)

    def finish_load(self, version: int) -> None:
        self.version = version

    def resume(self) -> None:
        self.calls.append("resume")

    def close(self) -> None:
        self.calls.append("close")


def asked(*prompts: int) -> list[Request]:
    return [Request((prompt,), 1) for prompt in prompts]


def test_a_question_goes_to_the_engine_with_the_fewest_requests_under_way():
    engines = [Engine(number) for number in range(3)]
    several = Several(engines, 1 << 20)
    found = several.generate(asked(7, 7, 8, 9, 9, 5), deadline_s=10)
    assert [one.prompt[0] for one in found] == [7, 7, 8, 9, 9, 5]
    assert [one.ids[0] for one in found] == [0, 0, 1, 2, 2, 1]
    engines[0].go.clear()
    slow = threading.Thread(target=several.generate, args=(asked(1, 1, 1),), kwargs={"deadline_s": 10})
    slow.start()
    while [(1,)] * 3 not in engines[0].calls:
        pass
    later = [several.generate(asked(prompt, prompt), deadline_s=10)[0].ids[0] for prompt in (2, 3)]
    assert later == [1, 1]  # the first of those that have nothing to do
    engines[0].go.set()
    slow.join()
    assert several.generate(asked(4), deadline_s=10)[0].ids == (0,)


def test_all_engines_get_every_bucket_once():
    engines = [Engine(number) for number in range(2)]
    several = Several(engines, 4)
    several.pause()
    several.load([("a", torch.zeros(1)), ("b", torch.zeros(1))], 3)
    several.resume()
    several.close()
    expected = ["pause", "start", ("a",), ("b",), "resume", "close"]
    assert [engine.calls for engine in engines] == [expected, expected]
    assert (several.version, several.last_sync.nbytes, several.last_sync.buckets) == (3, 8, 2)


def test_the_engine_that_failed_is_named_and_answers_of_others_are_kept():
    engines = [Engine(number) for number in range(2)]
    several = Several(engines, 4)
    engines[1].fails = IncompleteError("engine 1: gone", where="engine 1", value=0)
    with pytest.raises(IncompleteError) as caught:
        several.generate(asked(7, 8, 9), deadline_s=10)
    assert caught.value.where == "engine 1"
    assert caught.value.finished.keys() == {0, 2}
    engines[0].fails = RestartedError("engine 0: anew", where="engine 0", value=0)
    with pytest.raises(RestartedError):  # sending the weights again may mend it
        several.generate(asked(7, 8), deadline_s=10)
    engines[0].fails = engines[1].fails = None
    engines[0].pause = lambda: (_ for _ in ()).throw(RolloutError("engine 0: stuck", where="engine 0"))
    with pytest.raises(RolloutError) as stuck:
        several.pause()
    assert stuck.value.where == "engine 0"
    assert several.generate(asked(7, 8), deadline_s=10)[1].ids == (1,)


@pytest.mark.parametrize("urls", ["http://a:1,http://a:1", "http://a:1,b", "http://a:1,", "http://a:1,http://b:2/v1",
    "http://a:1,http://A:1/", "https://a/b,HTTPS://u:p@a:443/b"])  # fmt: skip
def test_addresses_are_checked_one_by_one(urls):
    with pytest.raises(ConfigError) as caught:
        compose(["recipe=rl_toy", *WORDS, f"rl.url={urls}"], world_size=1)
    (fault,) = caught.value.faults
    assert fault.where == "rl.url"
    assert fault.allowed


def test_a_comma_without_an_address_is_not_said_to_be_no_address_at_all():
    with pytest.raises(ConfigError) as caught:
        compose(["recipe=rl_toy", *WORDS, "rl.url=http://a:1,"], world_size=1)
    assert [fault.value for fault in caught.value.faults] == ["http://a:1,"]


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("ahead", [0, 1])
def test_a_run_beside_two_servers_and_the_death_of_one(tmp_path, capfd, ahead):
    given = (*WORDS, f"rl.max_staleness={ahead}", "train.steps=4", "checkpoint.every=1")
    cfg = toy_config(tmp_path / "run", *given, "rl.url=http://a:1").model
    one, other = (write_model(tmp_path / name, cfg, seed=99) for name in ("one", "other"))
    with own_server(one) as first:
        with own_server(other, Fault("dead", "/generate", 20, 1 << 30)) as second:
            assert train(toy_config(tmp_path / "run", *given, f"rl.url={first},{second}")) == 1
        printed = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
        error_line("\n".join(printed), f"LMDeploy at {second}", "request ")
        assert first not in printed[0]
        done = [line["step"] for line in steps(tmp_path / "run")]
        with own_server(other) as third:
            lines = run_toy(tmp_path / "run", *given, f"rl.url={first},{third}")
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert 0 < len(done) < 4
    numbers = [number for line in lines for a, b in line["questions"] for number in range(a, b + 1)]
    assert numbers == [*range(16)]
