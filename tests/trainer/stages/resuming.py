"""Write a checkpoint under one layout and read it under another: the same state, samples and exported files.

By hand, every pair of the large layouts, with AdamW and with Muon; about 15 minutes on two cores:

    make test-resume
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from parallel.world import start_world
from tests.distributed.pool import on_ranks
from tests.trainer.spread import whole
from tests.trainer.stages.layouts import TILE_TOWER, TOWERS, Layout
from tests.trainer.tiny_run import steps, tiny_config
from trainer.checkpoint.state import training_tensors
from trainer.config.keys import Config, ParallelConfig
from trainer.data.batch import Batch
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
    "ring cp 2 x shard 2": (Layout(dp_shard=2, cp=2, cp_kind="ring"), "1f1b"),
    # the large ones
    "pp 2 x ep 4": (Layout(pp=2, dp_shard=4, ep=4), "1f1b"),
    "pp 4 x ep 2": (Layout(pp=4, dp_shard=2, ep=2), "1f1b"),
    "cp 4 x ep 2": (Layout(cp=4, ep=2), "1f1b"),
    "pp 2 x cp 2 x ep 2": (Layout(pp=2, cp=2, ep=2), "1f1b"),
    "pp 2 x rep 2 x shard 2 x ep 2": (Layout(pp=2, dp_replicate=2, dp_shard=2, ep=2), "1f1b"),
    "ring, rep 2 x cp 4 x ep 2": (Layout(dp_replicate=2, cp=4, cp_kind="ring", ep=2), "1f1b"),
}
LARGE = (*[*LAYOUTS][-6:],)


TOWERS_OF: dict[str, dict[str, Any]] = {"": {}, "native": TOWERS, "tiles": TILE_TOWER}


def run_config(directory: Path, name: str, last: int, optim: str, towers: str = "") -> Config:
    """towers: a key of `TOWERS_OF`."""
    layout, schedule = LAYOUTS[name]
    cfg = tiny_config(
        directory,
        model={"num_layers": 5, "router_groups": 4, "hidden_size": 16, "head_dim": 4} | TOWERS_OF[towers],
        # eps: with 1e-8, Adam's first steps move a number by lr even where its gradient is only rounding
        eps=1e-4,
        name=optim,
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
        cp_kind=layout.cp_kind,
        schedule=schedule,
    )
    return cfg


def trained(directory: Path, name: str, optim: str, towers: str) -> None:
    assert train(run_config(directory, name, WRITTEN, optim, towers)) == 0


Samples = dict[tuple[int, int], list[int]]  # (micro-batch, sample) -> its ids


class Noting(Trainer):
    """Notes the whole micro-batches that it trains on."""

    samples: Samples

    def _train_step(self, batches: list[Batch], counts: dict[str, int]) -> None:
        self.samples = {
            (number, sample): ids.tolist()
            for number, batch in enumerate(batches)
            for sample, ids in zip(batch.samples, batch.inputs["ids"], strict=True)
        }
        super()._train_step(batches, counts)


def read_state(directory: Path, name: str, optim: str, towers: str, copy: Path) -> tuple[dict[str, Tensor], Samples]:
    """Resume in this layout, save what was read to the run directory `copy`, and train one step more. Returns the
    state, put together, and the samples of that step."""
    world = start_world("cpu")
    cfg, run = run_config(directory, name, WRITTEN + 1, optim, towers), RunDir(directory, "new")
    trainer = Noting(cfg, run, world, build(cfg, run, world))
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
    samples: Samples = {}
    for of_reader in world.gather(trainer.samples):  # alike on the ranks of a pipeline or a sequence
        for key, ids in of_reader.items():
            assert samples.setdefault(key, ids) == ids, f"sample {key} differs between ranks"
    world.close()
    return joined, samples


class Outcome(NamedTuple):
    state: dict[str, Tensor]
    samples: Samples  # of the next step
    next_step: dict[str, Any]  # its record
    files: dict[str, bytes]  # of the export


def write(directory: Path, name: str, optim: str = "adamw", towers: str = "") -> Outcome:
    """A run of this layout in `directory`, and how it continues there."""
    on_ranks(LAYOUTS[name][0].ranks, trained, directory, name, optim, towers, timeout_s=120.0)
    return resume(shutil.copytree(directory, directory.with_name(directory.name + "-on")), name, optim, towers)


def resume(directory: Path, name: str, optim: str = "adamw", towers: str = "") -> Outcome:
    copy = directory.with_name(directory.name + "-copy")
    shutil.copytree(directory, copy, ignore=shutil.ignore_patterns("checkpoints"))
    ranks = LAYOUTS[name][0].ranks
    state, samples = on_ranks(ranks, read_state, directory, name, optim, towers, copy, timeout_s=120.0)[0]
    export(copy, out := copy.with_name(directory.name + "-export"))
    files = {str(file.relative_to(out)): file.read_bytes() for file in out.rglob("*") if file.is_file()}
    return Outcome(state, samples, steps(directory)[WRITTEN], files)


def differences(found: Outcome, expected: Outcome) -> list[str]:
    """The differences of two outcomes: tensors and files bit for bit, samples by number and ids, counts; means
    to 1e-6."""
    wrong = list(found.state.keys() ^ expected.state.keys())
    wrong += [name for name, tensor in expected.state.items() if not torch.equal(found.state.get(name, tensor), tensor)]
    first, each = WRITTEN * MICRO * MICRO_BATCHES, MICRO
    numbers = {(micro, first + micro * each + n) for micro in range(MICRO_BATCHES) for n in range(each)}
    wrong += [] if found.samples.keys() == numbers else ["the samples' numbers"]
    wrong += [] if found.samples == expected.samples else ["the samples' ids"]
    wrong += [] if found.next_step["tokens"] == expected.next_step["tokens"] else ["tokens"]
    for name in ("loss", "balance", "max_load"):
        ours, theirs = found.next_step[name], expected.next_step[name]
        wrong += [] if abs(ours - theirs) <= 1e-6 * abs(theirs) else [name]
    wrong += list(found.files.keys() ^ expected.files.keys())
    wrong += [name for name, content in expected.files.items() if found.files.get(name, content) != content]
    return wrong if any(name.endswith(".safetensors") for name in found.files) else [*wrong, "no weights are exported"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    start, faults = time.monotonic(), 0
    print("| written by | optimizer | tensors | read alike by |\n|---|---|---|---|")
    for optim in ("adamw", "muon"):
        for writer in LARGE:
            with tempfile.TemporaryDirectory() as folder:
                expected = write(run := Path(folder, "run"), writer, optim)
                alike = []
                for number, reader in enumerate(reader for reader in LARGE if reader != writer):
                    found = resume(shutil.copytree(run, Path(folder, f"read-{number}")), reader, optim)
                    if wrong := differences(found, expected):
                        print(f"{writer} read by {reader}: {wrong}", file=sys.stderr, flush=True)
                    else:
                        alike.append(reader)
                faults += len(LARGE) - 1 - len(alike)
                print(f"| {writer} | {optim} | {len(expected.state)} | {'; '.join(alike)} |", flush=True)
    print(f"\n{faults} pairs differ; {time.monotonic() - start:.0f} s")
    return int(bool(faults))


if __name__ == "__main__":
    raise SystemExit(main())
