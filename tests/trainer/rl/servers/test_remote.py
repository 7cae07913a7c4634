"""One rank speaks to the engine for all: weights that it sends, the answers of each rank, errors on every rank."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from parallel.layout import Place
from parallel.sharding.local import local_part, local_region
from parallel.world import World
from tests.distributed.pool import on_ranks
from tests.trainer.rl.servers.directories import directory_of
from tests.trainer.tiny_run import MODEL, tiny_config
from trainer.config.model import ModelConfig
from trainer.engine.engine import Engine
from trainer.engine.load import open_source
from trainer.engine.request import Request, Sampling
from trainer.model.decoder import Decoder
from trainer.objectives.choose import build_objective
from trainer.parallelize import build_meshes
from trainer.rl.rollout.protocol import RolloutError
from trainer.rl.servers.errors import RestartedError
from trainer.rl.servers.own_engine import OwnEngine
from trainer.rl.servers.remote import Remote, published
from trainer.run.build import build_model, build_stages, ranks_alike

SIZES = {**MODEL, "max_position": 1000, "init_std": 0.3}
GREEDY = Sampling(temperature=0.0)


def questions(rank: int) -> list[Request]:
    return [Request([3 + rank, 5, 7 + n], 6, GREEDY) for n in range(2 + rank)]


def reference(seed: int) -> Decoder:
    """With weights that bf16 does not hold."""
    model = Decoder(ModelConfig(**SIZES), torch.float32)
    model.init_weights(seed)
    return model


@pytest.fixture(scope="module")
def directories(tmp_path_factory) -> tuple[Path, Path]:
    first, second = (directory_of(tmp_path_factory.mktemp("model"), seed)[0] for seed in range(2))
    return first, second


def answers(directory: Path, requests: list[Request]) -> list[tuple[int, ...]]:
    engine = Engine(open_source(directory).load(torch.device("cpu")), cache_tokens=2048)
    return [one.ids for one in engine.generate(requests)]


def test_published_weights_are_the_bf16_rounding_and_another_engine_takes_them(directories):
    model, (first, second) = reference(1), directories
    remote = Remote(partial(OwnEngine, first, cache_tokens=2048), [model], model.cfg, World(), Place())
    remote.pause()
    remote.load((), 4)
    remote.resume()
    found = remote.generate(questions(0), deadline_s=60)
    assert [one.ids for one in found] == answers(second, questions(0))  # bf16 roundings of the same weights
    assert {int(one.versions[0]) for one in found} == {remote.version} == {4}
    dtypes = {name: tensor.dtype for name, tensor in published([model], model.cfg)}
    assert {dtype for name, dtype in dtypes.items() if "coef" in name} == {torch.float32}
    assert {dtype for name, dtype in dtypes.items() if "coef" not in name} == {torch.bfloat16}


class Restarts:
    """An engine whose process was started anew, with the weights of its directory, before some calls of `generate`."""

    def __init__(self, directory: Path, times: int) -> None:
        self.directory, self.times, self.lost = directory, times, False
        self.start()

    def start(self) -> None:
        self.engine = OwnEngine(self.directory, cache_tokens=2048)
        self.version = self.engine.version

    def generate(self, requests, *, deadline_s):
        if self.times:
            self.start()
            self.times, self.lost = self.times - 1, True
        if self.lost:
            raise RestartedError("restarted", where="engine", value=0)
        return self.engine.generate(requests, deadline_s=deadline_s)

    def load(self, weights, version):
        self.engine.load(weights, version)
        self.lost = False

    def __getattr__(self, name):
        return getattr(self.engine, name)


@pytest.mark.parametrize("times", [1, 3, 4])
def test_an_engine_that_was_restarted_gets_the_weights_again(directories, times):
    model, (first, second) = reference(1), directories
    remote = Remote(partial(Restarts, first, times), [model], model.cfg, World(), Place())
    remote.pause()
    remote.load((), 4)
    remote.resume()
    if times > 3:
        with pytest.raises(RestartedError):
            remote.generate(questions(0), deadline_s=60)
        assert remote.failed
        return
    found = remote.generate(questions(0), deadline_s=60)
    assert [one.ids for one in found] == answers(second, questions(0))
    assert {int(one.versions[0]) for one in found} == {4}
    assert not remote.failed  # a later error, of one rank's reward, is not known to all ranks


def stages_published(schedule: str) -> list[tuple[str, Any, Tensor]]:
    """Those of a pipeline, as this rank gets them."""
    cfg = tiny_config("unused", model={**SIZES, "num_layers": 5})
    cfg.parallel.pp, cfg.parallel.schedule = dist.get_world_size(), schedule
    world = World(rank=dist.get_rank(), size=dist.get_world_size(), control=dist.new_group())
    meshes = build_meshes(cfg, "cpu")
    assert meshes is not None
    alike, place = ranks_alike(world, meshes), meshes.layout.place(world.rank)
    _, stages = build_stages(cfg, world, alike, meshes, place, build_objective(cfg.train))
    stream = published([*stages.values()], cfg.model, world.within(meshes.pp_group, world.control))
    return [(name, weight.dtype, weight.float().clone()) for name, weight in stream]


def test_stages_of_a_pipeline_are_published_as_the_whole_model():
    cfg = tiny_config("unused", model={**SIZES, "num_layers": 5})
    model = build_model(cfg, World(), None, build_objective(cfg.train))
    expected = [(name, weight.dtype, weight.float()) for name, weight in published([model], cfg.model)]
    for found in on_ranks(2, stages_published, "zbv", init=True):
        for ours, theirs in zip(found, expected, strict=True):
            assert ours[:2] == theirs[:2]
            assert torch.equal(ours[2], theirs[2]), ours[0]


def on_each_rank(first: Path) -> Any:
    """Answers before and after a load from a model that is sharded over the ranks, and what a failed load raises."""
    rank, size = dist.get_rank(), dist.get_world_size()
    world = World(rank=rank, size=size, control=dist.new_group())
    cfg = tiny_config("unused", model=SIZES)
    cfg.parallel.ep = cfg.parallel.dp_shard = size
    model = build_model(cfg, world, build_meshes(cfg, "cpu"), build_objective(cfg.train))
    weights = reference(1).state_dict()
    with torch.no_grad():
        for name, weight in [*model.named_parameters(), *model.named_buffers()]:
            local_part(weight).copy_(weights[name][local_region(weight)])
    make = partial(OwnEngine, first, cache_tokens=2048)
    remote = Remote(make, [model], cfg.model, world, Place(reader=rank, readers=size))
    before = [one.ids for one in remote.generate(questions(rank), deadline_s=60)]
    try:
        remote.load((), 2)  # not paused
        raised = None
    except RolloutError as error:
        raised = error.value
    remote.pause()
    remote.load((), 3)
    remote.resume()
    after = [one.ids for one in remote.generate(questions(rank), deadline_s=60)]
    return before, raised, after, remote.version


@pytest.mark.slow
def test_ranks_with_shards_share_an_engine(directories):
    first, second = directories
    found = on_ranks(2, on_each_rank, first, init=True)
    for rank, (before, raised, after, version) in enumerate(found):
        assert before == answers(first, questions(rank))
        assert after == answers(second, questions(rank))
        assert (raised, version) == ("load", 3)
