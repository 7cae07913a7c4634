"""A checkpoint written by one layout of ranks and read by another: nothing lost, nothing twice, and the run resumes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor

from parallel.world import World, start_world
from tests.distributed.pool import on_ranks
from tests.trainer.spread import MODEL, Spread, whole
from tests.trainer.tiny_run import steps, tiny_config
from trainer.checkpoint.state import training_tensors
from trainer.checkpoint.store import CheckpointStore
from trainer.config.keys import Config, OptimConfig, ParallelConfig
from trainer.data.synthetic import open_synthetic
from trainer.model.decoder import Decoder
from trainer.objectives.next_token import NextToken
from trainer.objectives.scalars import GlobalBatch
from trainer.optim.native import NativeEngine
from trainer.parallelize import build_meshes, parallelize
from trainer.run.build import build
from trainer.run.directory import RunDir
from trainer.run.loop import Trainer
from trainer.run.process import train

WRITTEN, LAST = 3, 5  # steps of the run that writes, and of those that resume from it
EIGHT = (1, 8, 8)
LAYOUTS = {
    8: {
        "one process": (1, 1, 1),
        "ep 2": (1, 2, 2),
        "ep 4": (1, 4, 4),
        "ep 1, sharded": (1, 4, 1),
        "ep 2 in 2 copies": (2, 2, 2),
        "ep 4, sharded": (1, 8, 4),
    },
    # eight ranks then split the width of each expert
    4: {"one process": (1, 1, 1), "ep 4": (1, 4, 4), "ep 2, sharded": (1, 4, 2)},
}
# one process, copies, experts that are sharded as well; the others are slow, and all that splits an expert's width
QUICK = {(8, "one process"), (8, "ep 2 in 2 copies"), (8, "ep 4, sharded")}
GROUPS = [8, pytest.param(4, marks=pytest.mark.slow)]
CASES = [
    pytest.param(groups, layout, marks=[] if (groups, layout) in QUICK else pytest.mark.slow)
    for groups, layouts in LAYOUTS.items()
    for layout in layouts
]


def run_config(directory: Path, layout: tuple[int, int, int], **changed: Any) -> Config:
    ranks = layout[0] * layout[1]
    model = MODEL | changed.pop("model", {})
    # eps: with 1e-8, Adam's first steps move a number by lr even where its gradient is only rounding.
    changed = {"eps": 1e-4} | changed
    cfg = tiny_config(directory, model=model, global_batch=8, micro_batch=8 // ranks, log_every=1, **changed)
    cfg.parallel = ParallelConfig(dp_replicate=layout[0], dp_shard=layout[1], ep=layout[2])
    return cfg


def trained(directory: Path, layout: tuple[int, int, int], groups: int) -> None:
    """Three steps from scratch."""
    assert train(run_config(directory, layout, steps=WRITTEN, model={"router_groups": groups})) == 0


def restored(directory: Path, layout: tuple[int, int, int], groups: int, then: str = "stop") -> dict[str, Tensor]:
    """Every tensor of the state that a run of this layout resumes with, put together. With "resume" the ranks then
    train to the last step."""
    world = start_world("cpu")
    cfg = run_config(directory, layout, steps=LAST, model={"router_groups": groups})
    run = RunDir(directory, "new")
    trainer = Trainer(cfg, run, world, build(cfg, run, world))
    assert trainer.resumed
    state = training_tensors(list(trainer.parts.stages.values()), trainer.parts.engine, world.rank)
    gathered = {name: whole(tensor) for name, tensor in state.items() if not name.startswith("rng.")}
    assert then == "stop" or trainer.run() == 0
    world.close()
    return gathered


def at(layout: tuple[int, int, int], function: Any, *arguments: Any) -> dict[str, Tensor]:
    return on_ranks(layout[0] * layout[1], function, *arguments, timeout_s=120.0)[0]


class Written(NamedTuple):
    directory: Path  # as the eight ranks left it after WRITTEN steps
    state: dict[str, Tensor]  # that those ranks resume with
    next_loss: float  # of their next step


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Written]:
    @cache
    def write(groups: int) -> Written:
        base = tmp_path_factory.mktemp("written")
        at(EIGHT, trained, base / "run", EIGHT, groups)
        shutil.copytree(base / "run", base / "on")
        state = at(EIGHT, restored, base / "on", EIGHT, groups, "resume")
        return Written(base / "run", state, steps(base / "on")[WRITTEN]["loss"])

    return write


@pytest.mark.parametrize("groups", GROUPS)
def test_every_element_is_on_disk_once(groups, written):
    directory, state, _ = written(groups)
    stored = dcp.FileSystemReader(directory / "checkpoints" / f"step-{WRITTEN}").read_metadata().state_dict_metadata
    assert set(state) <= set(stored)
    for name, tensor in state.items():
        seen = torch.zeros(tensor.shape, dtype=torch.int8)
        for chunk in stored[name].chunks:
            seen[tuple(slice(o, o + n) for o, n in zip(chunk.offsets, chunk.sizes, strict=True))] += 1
        assert (seen == 1).all(), f"{name} is not on disk once"


@pytest.mark.parametrize("groups", GROUPS)
def test_experts_written_by_eight_ranks_are_those_of_one_process(groups, written, tmp_path):
    """The same three steps by one process: what differs is rounding, expert by expert; a mix-up would be far larger."""
    trained(tmp_path, (1, 1, 1), groups)
    alone = restored(tmp_path, (1, 1, 1), groups)
    state = written(groups).state
    names = [name for name in state if name.startswith("model.") and ".experts." in name]
    assert len(names) == 2 * run_config(tmp_path, (1, 1, 1)).model.num_layers
    for name in names:
        for expert, (ours, theirs) in enumerate(zip(state[name], alone[name], strict=True)):
            assert torch.allclose(ours, theirs, rtol=0, atol=2e-5), f"{name}, expert {expert}"
            assert (ours - theirs).norm() < 2e-5 * theirs.norm(), f"{name}, expert {expert}"


@pytest.mark.parametrize(("groups", "layout"), CASES)
def test_another_layout_reads_the_same_bits_and_resumes(tmp_path, written, groups, layout):
    directory, state, next_loss = written(groups)
    there, sizes = shutil.copytree(directory, tmp_path / "there"), LAYOUTS[groups][layout]
    found = at(sizes, restored, there, sizes, groups, "resume")
    assert found.keys() == state.keys()
    for name, tensor in state.items():
        assert torch.equal(found[name], tensor), f"{name} at {layout}"
    assert steps(there)[WRITTEN]["loss"] == pytest.approx(next_loss, rel=1e-6)


@pytest.mark.slow
def test_and_back_to_eight(tmp_path, written):
    """Saved by eight, saved again by four, read by eight."""
    there, four = shutil.copytree(written(8).directory, tmp_path / "there"), (2, 2, 2)
    at(four, restored, there, four, 8, "resume")
    by_four, by_eight = at(four, restored, there, four, 8), at(EIGHT, restored, there, EIGHT, 8)
    for name, tensor in by_four.items():
        assert torch.equal(by_eight[name], tensor), name


# ---- steps in fp64


def double_steps(directory: Path, spread: Spread, first: int, count: int, load: bool) -> list[float]:
    """`count` steps in fp64 from step `first`, from scratch or from the checkpoint; saves at the end of step 2."""
    torch.manual_seed(0)
    cfg = spread.config()
    world = World(
        rank=dist.get_rank() if dist.is_initialized() else 0,
        size=spread.ranks,
        control=dist.group.WORLD if dist.is_initialized() else None,
        background=dist.new_group(backend="gloo") if dist.is_initialized() else None,
    )
    with torch.device("meta"):
        model = Decoder(cfg.model).double()
    meshes = build_meshes(cfg, "cpu")
    parallelize(model, meshes, cfg, "cpu")
    model.to_empty(device="cpu")
    model.init_weights(3)
    optim = OptimConfig(lr=1e-2, schedule="constant")
    engine = NativeEngine(model, optim, world, shard_group=None if meshes is None else meshes.shard_group)
    engine.prepare()
    store = CheckpointStore(directory, keep=2, world=world, warn=print)
    if load:
        assert store.load(training_tensors([model], engine, world.rank), lambda _: None) is not None
    data, losses = open_synthetic(vocab_size=cfg.model.vocab_size, seq_len=16, seed=1), []
    micro = 8 // world.size
    for step in range(first, first + count):
        batch = data.stream.batch(step * 8 + world.rank * micro, micro)
        total = NextToken(chunk=32)(model, batch, GlobalBatch(100, 1, world)).total
        engine.backward(total)
        losses.append(world.sum_tensor(total.detach().clone()).item())
        engine.step(step + 1, 100)
        if step + 1 == 2:
            store.save(2, training_tensors([model], engine, world.rank), {})
            saved = store.wait()
            assert saved is not None
            assert saved.error is None
    return losses


@pytest.mark.parametrize("count", [3, pytest.param(10, marks=pytest.mark.slow)])
def test_steps_after_a_change_of_layout_are_those_without_one(tmp_path, count):
    eight = Spread(1, 8, 8)
    unbroken = on_ranks(8, double_steps, tmp_path, eight, 0, 2 + count, False, init=True, timeout_s=120.0)[0]
    for spread in (Spread(1, 1, 1), Spread(2, 2, 2)):
        start = spread.ranks > 1
        found = on_ranks(spread.ranks, double_steps, tmp_path, spread, 2, count, True, init=start, timeout_s=120.0)[0]
        assert found == pytest.approx(unbroken[2:], rel=1e-9)
