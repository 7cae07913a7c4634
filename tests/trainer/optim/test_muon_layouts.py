"""Muon over ranks, in fp64, against one process: every layout takes the same steps, and reads the others' state."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.tensor import DTensor

from parallel.sharding.local import local_part, local_region
from parallel.world import World
from tests.distributed.pool import on_ranks
from tests.trainer.spread import Spread, built, whole
from tests.trainer.tiny_run import steps, tiny_config
from trainer.config.keys import OptimConfig, ParallelConfig
from trainer.optim.native import NativeEngine
from trainer.run.process import train

STEPS, SKIPPED = 4, 3  # the gradient of step 3 is not finite on one rank
# Keys and values have rows on two ranks only; on eight ranks two have none of the output matrix.
NARROW = {"hidden_size": 12, "num_heads": 2, "num_kv_heads": 1, "head_dim": 2, "num_layers": 1}
SMALL = {"num_experts": 8, "num_layers": 1}


def spread(replicas: int, shards: int, ep: int, **model: Any) -> Spread:
    return Spread(replicas, shards, ep, tuple({**SMALL, **model}.items()))


QUICK = {
    "experts on 2, cut in 2": spread(1, 4, 2, **NARROW),
    "2 copies of experts on 2": spread(2, 2, 2, **NARROW),
}
FOUR = {
    "replicas": spread(4, 1, 1),
    "shards": spread(1, 4, 1),
    "experts on 4": spread(1, 4, 4),
    "experts on 2, each cut in 2 by its group": spread(1, 4, 4, router_groups=2),
    "2 copies of 2 shards": spread(2, 2, 1),
}
EIGHT = {
    "fewer rows than ranks": spread(1, 8, 4, **NARROW),
    "cut by group and by shard": spread(1, 8, 4, router_groups=2),
    "2 copies of experts on 2, cut in 2": spread(2, 4, 2, num_experts=16, **NARROW),
}


class Run:
    """The engine of one layout, or of one process, and gradients that do not depend on it."""

    def __init__(self, layout: Spread, dtype: torch.dtype = torch.float64) -> None:
        self.model, meshes = built(layout.config(), dtype)
        self.world = World(rank=dist.get_rank(), size=dist.get_world_size()) if dist.is_initialized() else World()
        cfg = OptimConfig(name="muon", lr=0.05, momentum=0.9, weight_decay=0.2, clip_norm=30.0, schedule="constant")
        self.engine = NativeEngine(self.model, cfg, self.world, meshes.shard_group if meshes else None)
        self.engine.prepare()

    def steps(self, first: int, last: int) -> list[float]:
        """Norms of the global gradients."""
        norms = []
        for step in range(first, last + 1):
            for number, (name, p) in enumerate(self.model.named_parameters()):
                generator = torch.Generator().manual_seed(100 * step + number)
                values = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype)
                part = values[local_region(p)].clone()
                if step == SKIPPED and self.world.rank == self.world.size - 1 and name.endswith("w2"):
                    part.fill_(float("nan"))
                if isinstance(p, DTensor):
                    p.grad = DTensor.from_local(part, p.device_mesh, p.placements, shape=p.shape, stride=p.stride())
                else:
                    p.grad = part / self.world.size  # the engine sums them
            norms.append(self.engine.step(step, STEPS)["grad_norm"].item())
        return norms

    def tensors(self) -> dict[str, Tensor]:
        return {**dict(self.model.named_parameters()), **self.engine.state()}


def take_steps(layouts: list[Spread]) -> list[tuple[list[float], dict[str, Tensor], dict[str, Tensor]]]:
    """Norms of each layout in turn, all weights and state put together, and this rank's own parts."""
    found = []
    for layout in layouts:
        run = Run(layout)
        norms = run.steps(1, STEPS)
        tensors = run.tensors()
        own = {f"{name} {local_region(t)}": local_part(t).detach().clone() for name, t in tensors.items()}
        found.append((norms, {name: whole(tensor) for name, tensor in tensors.items()}, own))
    return found


@pytest.mark.parametrize(
    "layouts",
    [QUICK, pytest.param(FOUR, marks=pytest.mark.slow), pytest.param(EIGHT, marks=pytest.mark.slow)],
    ids=["4 ranks, quick", "4 ranks", "8 ranks"],
)
def test_every_layout_takes_the_steps_of_one_process(layouts):
    size = next(iter(layouts.values())).ranks
    on_each = on_ranks(size, take_steps, list(layouts.values()), init=True, timeout_s=120.0)
    for number, (name, layout) in enumerate(layouts.items()):
        ((norms, expected, _),) = take_steps([layout])
        assert [math.isfinite(norm) for norm in norms] == [step != SKIPPED for step in range(1, STEPS + 1)]
        parts: dict[str, Tensor] = {}
        for rank in on_each:
            found_norms, found, own = rank[number]
            assert found_norms == pytest.approx(norms, rel=1e-12, nan_ok=True), name
            assert found.keys() == expected.keys()
            for key, tensor in expected.items():
                torch.testing.assert_close(found[key], tensor, rtol=0, atol=1e-10, msg=f"{key} of {name}")
            for key, tensor in own.items():  # replicas, bit for bit
                assert torch.equal(parts.setdefault(key, tensor), tensor), f"{key} of {name}"


def save(directory: Path, layout: Spread) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    run = Run(layout)
    run.steps(1, 2)
    dcp.save(run.tensors(), checkpoint_id=directory)
    saved = {name: whole(tensor) for name, tensor in run.tensors().items()}
    run.steps(3, STEPS)
    return saved, {name: whole(tensor) for name, tensor in run.tensors().items()}


def load(directory: Path, layouts: list[Spread]) -> list[tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """The state as loaded, and after the steps that follow."""
    found = []
    for layout in layouts:
        run = Run(layout)
        with warnings.catch_warnings(action="ignore"):  # that no process group is there
            dcp.load(run.tensors(), checkpoint_id=directory, no_dist=not dist.is_initialized())
        loaded = {name: whole(tensor) for name, tensor in run.tensors().items()}
        run.steps(3, STEPS)
        found.append((loaded, {name: whole(tensor) for name, tensor in run.tensors().items()}))
    return found


def test_state_of_one_layout_resumes_in_the_others(tmp_path):
    layouts = list(QUICK.values())
    saved, last = on_ranks(4, save, tmp_path, layouts[0], init=True)[0]
    same, *others = on_ranks(4, load, tmp_path, layouts, init=True)[0]
    assert all(torch.equal(same[1][name], tensor) for name, tensor in last.items())
    for loaded, resumed in (*others, *load(tmp_path, [spread(1, 1, 1, **NARROW)])):
        for name, tensor in saved.items():
            assert torch.equal(loaded[name], tensor), name
        for name, tensor in last.items():
            torch.testing.assert_close(resumed[name], tensor, rtol=0, atol=1e-10)


def trained(directory: Path, **parallel: int) -> None:
    cfg = tiny_config(directory, name="muon", momentum=0.95, steps=3, log_every=1, global_batch=8)
    cfg.parallel = ParallelConfig(**parallel)
    assert train(cfg) == 0


@pytest.mark.slow
def test_the_stages_of_a_pipeline_divide_their_own_matrices(tmp_path):
    trained(tmp_path / "alone")
    on_ranks(4, trained_in_stages, tmp_path / "stages", timeout_s=120.0)
    expected, found = ([float(step["loss"]) for step in steps(tmp_path / name)] for name in ("alone", "stages"))
    assert len(found) == 3
    assert found == pytest.approx(expected, rel=1e-5)


def trained_in_stages(directory: Path) -> None:
    trained(directory, pp=2, dp_shard=2, ep=2)
