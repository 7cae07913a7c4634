"""A checkpoint written under one pipeline and read under another: the same state, samples and exported files."""

from __future__ import annotations

import shutil
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from parallel.world import start_world
from tests.distributed.pool import on_ranks
from tests.trainer.spread import whole
from tests.trainer.stages.layouts import Layout
from tests.trainer.tiny_run import steps, tiny_config
from trainer.checkpoint.state import training_tensors
from trainer.config.keys import Config, ParallelConfig
from trainer.run.build import build
from trainer.run.checkpoints import Checkpoints
from trainer.run.directory import RunDir
from trainer.run.loop import Trainer
from trainer.run.process import train
from trainer.weights.export import export

WRITTEN = 2  # steps of the run that writes
MICRO, MICRO_BATCHES = 4, 4
LAYOUTS = {
    "one process": (Layout(), "1f1b"),
    "ep 4": (Layout(dp_shard=4, ep=4), "1f1b"),
    "pp 2 x ep 2": (Layout(pp=2, dp_shard=2, ep=2), "1f1b"),
    "pp 2, zbv": (Layout(pp=2), "zbv"),
    "pp 3": (Layout(pp=3), "1f1b"),
    "pp 2 x rep 2, interleaved": (Layout(pp=2, dp_replicate=2), "interleaved_1f1b"),
    "pp 2 x shard 2, dualpipev": (Layout(pp=2, dp_shard=2), "dualpipev"),
    "pp 2 x cp 2 x ep 2": (Layout(pp=2, cp=2, ep=2), "1f1b"),
    "ring cp 2 x shard 2": (Layout(dp_shard=2, cp=2, cp_kind="ring"), "1f1b"),
}
WRITERS = ("pp 2 x ep 2", "pp 2, zbv", "pp 3", "ep 4", "pp 2 x cp 2 x ep 2")
QUICK = [("pp 2 x ep 2", "pp 2, zbv")]
CASES = [
    pytest.param(writer, reader, id=f"{writer}: {reader}", marks=[] if (writer, reader) in QUICK else pytest.mark.slow)
    for writer in WRITERS
    for reader in LAYOUTS
    if reader != writer
]


def run_config(directory: Path, name: str, last: int) -> Config:
    layout, schedule = LAYOUTS[name]
    cfg = tiny_config(
        directory,
        model={"num_layers": 5, "router_groups": 4, "hidden_size": 16, "head_dim": 4},
        # eps: with 1e-8, Adam's first steps move a number by lr even where its gradient is only rounding
        eps=1e-4,
        steps=last,
        log_every=1,
        global_batch=MICRO * MICRO_BATCHES,
        micro_batch=MICRO // layout.readers,
    )
    cfg.data.seq_len = 12
    cfg.parallel = ParallelConfig(
        pp=layout.pp,
        dp_replicate=layout.dp_replicate,
        dp_shard=layout.dp_shard,
        ep=layout.ep,
        cp=layout.cp,
        cp_kind=layout.cp_kind,  # type: ignore[arg-type]
        schedule=schedule,  # type: ignore[arg-type]
    )
    return cfg


def trained(directory: Path, name: str) -> None:
    assert train(run_config(directory, name, WRITTEN)) == 0


def read_state(directory: Path, name: str, copy: Path) -> dict[str, Tensor]:
    """Resume in this layout, save what was read to the run directory `copy`, and train one step more. Returns the
    state, put together."""
    world = start_world("cpu")
    cfg, run = run_config(directory, name, WRITTEN + 1), RunDir(directory, "new")
    trainer = Trainer(cfg, run, world, build(cfg, run, world))
    parts = trainer.parts
    state = training_tensors(list(parts.stages.values()), parts.engine, world.rank)
    mine = {name: whole(tensor) for name, tensor in state.items() if not name.startswith("rng.")}
    again = Checkpoints(cfg, copy, world, parts)
    again.save(trainer.position, trainer.log)
    assert again.complete(trainer.position, trainer.log)
    joined: dict[str, Tensor] = {}
    for of_rank in world.gather(mine if parts.alike.rank == 0 else {}):
        for key, tensor in of_rank.items():
            assert torch.equal(joined.setdefault(key, tensor), tensor), f"{key} differs between stages"
    assert trainer.run() == 0
    world.close()
    return joined


class Outcome(NamedTuple):
    state: dict[str, Tensor]
    next_step: dict[str, Any]  # its record
    files: dict[str, bytes]  # of the export


def resume(directory: Path, name: str) -> Outcome:
    copy = directory.with_name(directory.name + "-copy")
    shutil.copytree(directory, copy, ignore=shutil.ignore_patterns("checkpoints"))
    state = on_ranks(LAYOUTS[name][0].ranks, read_state, directory, name, copy, timeout_s=120.0)[0]
    export(copy, out := copy.with_name(directory.name + "-export"))
    files = {str(file.relative_to(out)): file.read_bytes() for file in out.rglob("*") if file.is_file()}
    return Outcome(state, steps(directory)[WRITTEN], files)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    @cache
    def write(name: str) -> tuple[Path, Outcome]:
        """A run of this layout, and how it continues there."""
        run = tmp_path_factory.mktemp("written") / "run"
        on_ranks(LAYOUTS[name][0].ranks, trained, run, name, timeout_s=120.0)
        return run, resume(shutil.copytree(run, run.with_name("on")), name)

    return write


@pytest.mark.parametrize(("writer", "reader"), CASES)
def test_another_layout_resumes_with_the_same_state_and_exports_the_same_bytes(tmp_path, written, writer, reader):
    run, expected = written(writer)
    found = resume(shutil.copytree(run, tmp_path / "on"), reader)
    assert found.state.keys() == expected.state.keys()
    for name, tensor in expected.state.items():
        assert torch.equal(found.state[name], tensor), name
    assert found.next_step["tokens"] == expected.next_step["tokens"]
    for name in ("loss", "balance", "max_load"):
        assert found.next_step[name] == pytest.approx(expected.next_step[name], rel=1e-6), name
    assert found.files.keys() == expected.files.keys()
    assert [name for name, content in expected.files.items() if found.files[name] != content] == []
    assert any(name.endswith(".safetensors") for name in found.files)
