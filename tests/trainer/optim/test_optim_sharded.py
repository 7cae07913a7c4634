"""The native engine over FSDP2 shards, uneven and on several meshes, against one process with whole tensors."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from parallel.world import World, start_world
from tests.distributed.pool import on_ranks
from trainer.config.keys import OptimConfig
from trainer.optim.native import NativeEngine

STEPS, BATCH = 3, 4


class Net(nn.Module):
    """Dense weights that do not divide by 2 or 4, gains that leave ranks without an element, and a bank of experts."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 1), nn.Linear(1, 7))
        self.bank = Bank()

    def forward(self, x: Tensor) -> Tensor:
        return self.bank(self.dense(x))


class Bank(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(4, 3, 8))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, x[:, :1]], dim=1) @ self.weight.mean(dim=1).T


def fill(model: nn.Module, start: int = 0) -> None:
    """Values that do not depend on the layout."""
    with torch.no_grad():
        for index, p in enumerate(model.parameters(), start=start):
            values = torch.randn(p.shape, generator=torch.Generator().manual_seed(index))
            p.copy_(distribute_tensor(values, p.device_mesh, p.placements) if isinstance(p, DTensor) else values)


def shard(model: nn.Module, mesh: DeviceMesh) -> None:
    """Dense weights over the last dimension of `mesh` (over both of a two-dimensional one: replicas of shards)."""
    for module in (*model.dense, model.bank, model):
        fully_shard(module, mesh=mesh)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


def build(layout: tuple[int, ...] | None) -> tuple[nn.Module, DeviceMesh | None]:
    """On meta, sharded, then filled, as a run does it; `layout` is (shards,) or (replicas, shards)."""
    with torch.device("meta"):
        model = Net()
    mesh = init_device_mesh("cpu", layout, mesh_dim_names=("replica", "shard")[-len(layout) :]) if layout else None
    if mesh is not None:
        shard(model, mesh)
    model.to_empty(device="cpu")
    fill(model)
    return model, mesh


def engine_of(model: nn.Module, mesh: DeviceMesh | None, world: World, cfg: OptimConfig) -> NativeEngine:
    engine = NativeEngine(model, cfg, world, mesh.get_group(mesh.ndim - 1) if mesh else None)
    engine.prepare()
    return engine


def train(model: nn.Module, engine: NativeEngine, world: World, first: int = 1, last: int = STEPS) -> list[float]:
    """Global gradient norms. The second step is not finite."""
    norms = []
    for step in range(first, last + 1):
        x = torch.randn(BATCH, 6, generator=torch.Generator().manual_seed(100 + step))
        mine = x.view(world.size, -1, 6)[world.rank]
        engine.backward(model(mine).square().sum() * (float("nan") if step == 2 else 1.0) / BATCH)
        norms.append(engine.step(step, STEPS)["grad_norm"].item())
    return norms


def whole(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: (t.full_tensor() if isinstance(t, DTensor) else t).detach().clone() for k, t in tensors.items()}


def outcome(layout: tuple[int, ...] | None, name: str, clip: float) -> tuple[list[float], dict[str, Tensor]]:
    world = start_world("cpu", 60.0) if layout else World()
    try:
        model, mesh = build(layout)
        engine = engine_of(model, mesh, world, config(name, clip))
        norms = train(model, engine, world)
        return norms, whole({**dict(model.named_parameters()), **engine.state()})
    finally:
        world.close()


def config(name: str = "adamw", clip: float = 1.0) -> OptimConfig:
    return OptimConfig(name=name, lr=0.05, clip_norm=clip, schedule="constant", weight_decay=0.3)


@pytest.mark.parametrize(
    ("layout", "name", "clip"),
    [((4,), "adamw", 1.0), ((2, 2), "adamw", 1.0), ((2,), "adamw", 0.0), ((2,), "sgd", 1.0)],
    ids=["4 shards", "2 replicas of 2 shards", "no clipping", "sgd"],
)
def test_shards_take_the_steps_of_whole_tensors(layout, name, clip):
    norms, expected = outcome(None, name, clip)
    assert norms[0] > 2.0  # clipping has something to do
    ranks = on_ranks(torch.Size(layout).numel(), outcome, layout, name, clip)
    for found_norms, found in ranks:
        torch.testing.assert_close(found_norms, norms, rtol=1e-5, atol=0.0, equal_nan=True)
        assert found.keys() == expected.keys()
        for key, tensor in expected.items():
            torch.testing.assert_close(found[key], tensor, rtol=2e-5, atol=1e-6)
        assert found["skipped"].tolist() == [0, 1]


class Experts(nn.Module):
    """Two weights placed on the ranks of a (2 x 2) mesh in two ways, and a gain placed in a third."""

    def __init__(self) -> None:
        super().__init__()
        self.by_expert = nn.Parameter(torch.empty(4, 3, 8))
        self.by_width = nn.Parameter(torch.empty(2, 3, 8))
        self.gain = nn.Parameter(torch.empty(3))


def experts(start: int, spread: bool) -> nn.Module:
    module = Experts()
    fill(module, start)
    if spread:
        mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("expert_dp", "ep"))
        module.by_expert = nn.Parameter(distribute_tensor(module.by_expert.detach(), mesh["ep"], [Shard(0)]))
        module.by_width = nn.Parameter(distribute_tensor(module.by_width.detach(), mesh["ep"], [Shard(2)]))
        gain = module.gain
        fully_shard(
            module,
            mesh=mesh["expert_dp"],
            shard_placement_fn=lambda parameter: Shard(2),
            ignored_params={gain},
        )
        flat = init_device_mesh("cpu", (4,), mesh_dim_names=("dense",))
        module.gain = nn.Parameter(distribute_tensor(gain.detach(), flat, [Shard(0)]))
    return module


def steps_on_meshes(spread: bool) -> tuple[list[float], dict[str, Tensor]]:
    world = start_world("cpu", 60.0) if spread else World()
    try:
        model = experts(0, spread)
        engine = NativeEngine(model, config(), world, torch.distributed.group.WORLD if spread else None)
        engine.prepare()
        norms = []
        for step in range(1, STEPS + 1):
            for p, gradient in zip(model.parameters(), experts(10 * step, spread).parameters(), strict=True):
                p.grad = gradient.detach()
            norms.append(engine.step(step, STEPS)["grad_norm"].item())
        return norms, whole({**dict(model.named_parameters()), **engine.state()})
    finally:
        world.close()


def test_weights_on_meshes_of_their_own_share_a_norm_and_a_step():
    """Experts cut over ep (by expert, by width) and sharded over expert_dp; a gain over all four (one has none)."""
    norms, expected = steps_on_meshes(False)
    for found_norms, found in on_ranks(4, steps_on_meshes, True):
        assert found_norms == pytest.approx(norms, rel=1e-6)
        for key, tensor in expected.items():
            torch.testing.assert_close(found[key], tensor, rtol=1e-5, atol=1e-6)


def save_and_load(directory: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    world = start_world("cpu", 60.0)
    try:
        cfg = config()
        model, mesh = build((world.size,))
        engine = engine_of(model, mesh, world, cfg)
        train(model, engine, world, last=2)
        dcp.save({**model.state_dict(), **engine.state()}, checkpoint_id=directory)
        train(model, engine, world, first=3)
        straight = whole({**model.state_dict(), **engine.state()})
        model, mesh = build((world.size,))
        engine = engine_of(model, mesh, world, cfg)
        dcp.load({**model.state_dict(), **engine.state()}, checkpoint_id=directory)
        train(model, engine, world, first=3)
        return straight, whole({**model.state_dict(), **engine.state()})
    finally:
        world.close()


def test_a_checkpoint_of_shards_resumes_bitwise_and_loads_as_whole_tensors(tmp_path: Path):
    """Loaded before FSDP first gathers, when it still may move the memory of a shard."""
    for straight, resumed in on_ranks(2, save_and_load, str(tmp_path)):
        assert all(torch.equal(resumed[key], tensor) for key, tensor in straight.items())
    model, _ = build(None)
    engine = engine_of(model, None, World(), config())
    with warnings.catch_warnings(action="ignore"):  # that no process group is there
        dcp.load({**model.state_dict(), **engine.state()}, checkpoint_id=tmp_path, no_dist=True)
    train(model, engine, World(), first=3)
    alone = whole({**model.state_dict(), **engine.state()})
    assert all(torch.allclose(alone[key], tensor, rtol=1e-5, atol=1e-6) for key, tensor in straight.items())
