"""A table of the memory and communication of a pipeline's stages, from one simulated rank of each."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from parallel.errors import Fault, one_of
from trainer.config.checks.fit import SPARE, nearest_layouts, smaller_runs, too_large
from trainer.config.errors import ConfigError
from trainer.config.keys import Config
from trainer.config.memory import gigabytes, rank_memory
from trainer.config.ranks import map_ranks
from trainer.metrics import host

if TYPE_CHECKING:
    from parallel.layout import Layout
    from parallel.memory.live import Peak
    from parallel.pipeline.cut import StageCut
    from parallel.simulate import Traffic

# An allowance for CUDA's context and NCCL's own buffers, which no tensor shows; not measured.
RESERVED = 2 * 10**9
NODE = 8  # GPUs that a fast link connects
AXES = ("ep", "cp", "pp", "expert_dp", "dp_shard", "dp_replicate")


@dataclass(frozen=True)
class StageRow:
    """The first rank of a pipeline's stages. ran: simulated micro-batches, out of the `micro_batches` of a step."""

    rank: int
    stages: dict[int, StageCut]
    peak: Peak
    traffic: Traffic
    ran: int
    micro_batches: int

    @property
    def axes(self) -> set[str]:
        return {*self.traffic.per_micro_batch, *self.traffic.once}


def build_row(cfg: Config, world: int, rank: int, router: str) -> StageRow:
    from trainer.run.simulate import simulate_rank  # imports torch

    built = simulate_rank(cfg, world, rank, router)
    return StageRow(rank, built.stages, built.peak, built.traffic, built.ran, built.micro_batches)


def build_rows(cfg: Config, world: int, router: str, *, every: bool) -> list[StageRow]:
    """Simulate a rank of the pipeline's first, middle and last stage, or of every stage, on all cores."""
    layout = map_ranks(cfg.parallel, cfg.model, world).layout
    places = range(layout.pp) if every else sorted({0, layout.pp // 2, layout.pp - 1})
    ranks = [place * layout.stage_ranks for place in places]
    workers = min(len(ranks), max(1, int(host.cores())))
    if workers == 1:
        return [build_row(cfg, world, rank, router) for rank in ranks]
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        return list(pool.map(build_row, *zip(*((cfg, world, rank, router) for rank in ranks), strict=True)))


def refuse_too_large(cfg: Config, world: int, gpu_gb: int) -> None:
    """Raise `ConfigError`, with the nearest layouts that fit, if the least that a run needs exceeds a GPU's memory."""
    limit, place = _limit(gpu_gb)
    if fault := too_large(cfg, world, limit, place):
        raise ConfigError([fault])


def print_stages(cfg: Config, world: int, router: str, *, every: bool, gpu_gb: int | None) -> int:
    """Print a line for each stage. gpu_gb: the memory of a GPU, which every rank must fit into; None for no limit.

    Raises `ConfigError`, with the nearest layouts that may fit, if a rank does not.
    """
    rows = build_rows(cfg, world, router, every=every)
    layout = map_ranks(cfg.parallel, cfg.model, world).layout
    for line in (*_held(rows), "", *_sent(rows, layout)):
        print(line)
    if gpu_gb is not None:
        most = max(rows, key=lambda row: row.peak.total)
        print_fit(cfg, world, most.rank, most.peak.total, gpu_gb)
    return 0


def print_fit(cfg: Config, world: int, rank: int, needed: int, gpu_gb: int) -> None:
    """Print that `rank`, which needs the most bytes of all, fits into a GPU.

    Raises `ConfigError`, with the nearest layouts that may fit, if it does not.
    """
    limit, place = _limit(gpu_gb)
    if needed > limit:
        raise ConfigError([_too_large(cfg, world, rank, needed, limit, place)])
    print(f"\nfits: at most {gigabytes(needed)}; {place} has {gigabytes(limit)}")


def _limit(gpu_gb: int) -> tuple[int, str]:
    """Bytes for tensors, and where they are."""
    place = f"a GPU of {gpu_gb} GB, with a tenth to spare and {gigabytes(RESERVED)} for CUDA and NCCL,"
    return int(gpu_gb * 1e9 * (1 - SPARE)) - RESERVED, place


def _too_large(cfg: Config, world: int, rank: int, needed: int, limit: int, place: str) -> Fault:
    """The fault of a simulated rank. Other layouts are assumed to exceed their least memory by as much as this one."""
    left = limit - (needed - rank_memory(cfg, world, rank).device)
    if smaller := smaller_runs(cfg, world, left, gpu=True):
        advice = one_of(tuple(" ".join(change) for change in smaller))
        text = f"rank {rank} needs {gigabytes(needed)}, and {place} has {gigabytes(limit)}; use {advice}"
        return Fault(text, "lora", needed, smaller)
    layouts = nearest_layouts(cfg, world, left, gpu=True)
    advice = one_of(tuple(" ".join(layout) for layout in layouts)) if layouts else "more ranks, or a smaller model"
    text = f"rank {rank} needs {gigabytes(needed)}, and {place} has {gigabytes(limit)}; use {advice}"
    return Fault(text, "parallel", needed, layouts or "more ranks")


def _held(rows: Sequence[StageRow]) -> list[str]:
    names = ("weights", "optimizer", "gathered", "quantised", "gradients", "kept", "working", "peak")
    lines = [
        f"held at the peak, in GB (simulated {rows[0].ran} of the step's {rows[0].micro_batches} micro-batches)",
        f"{'rank':>5}  {'stages':<8}{'layers':<14}{'cost':>6}" + "".join(f"{name:>11}" for name in names),
    ]
    for row in rows:
        peak = row.peak
        parts = [peak.weights, peak.optimizer, peak.gathered, peak.quantised, peak.gradients]
        parts += [peak.kept, peak.activations - peak.kept, peak.total]
        stages = ",".join(map(str, row.stages))
        layers = ",".join(f"{cut.start}-{cut.stop - 1}" for cut in row.stages.values())
        cost = sum(cut.cost for cut in row.stages.values()) / len(row.stages)
        lines.append(
            f"{row.rank:>5}  {stages:<8}{layers:<14}{cost:>6.2f}" + "".join(f"{part / 1e9:>11.2f}" for part in parts)
        )
    return lines


def _sent(rows: Sequence[StageRow], layout: Layout) -> list[str]:
    found = {axis for row in rows for axis in row.axes}
    axes = [axis for axis in AXES if axis in found]
    span = {"ep": layout.ep, "cp": layout.cp, "pp": layout.world, "dp_replicate": layout.stage_ranks}
    links = {axis: "node" if span.get(axis, layout.shard) <= NODE else "network" for axis in axes}
    rest = "node" if layout.world <= NODE else "network"
    names = [*(f"{axis} ({links[axis]})" for axis in axes), f"other ({rest})", "all in the node", "all on the network"]
    width = max(map(len, names)) + 2
    head = "".join(f"{name:>{width}}" for name in names)
    lines = [f"sent by a rank, in GB; node: between the {NODE} GPUs of a node", f"{'rank':>5}  {'':<20}{head}"]
    for row in rows:
        for label, sent in (
            ("each micro-batch", row.traffic.per_micro_batch),
            ("once a step", row.traffic.once),
            ("in a whole step", row.traffic.of_step(row.micro_batches)),
        ):
            inside = sum(sent[axis] for axis in sent if links.get(axis, rest) == "node")
            other = sum(sent[axis] for axis in sent if axis not in axes)
            parts = [*(sent[axis] for axis in axes), other, inside, sum(sent.values()) - inside]
            lines.append(f"{row.rank:>5}  {label:<20}" + "".join(f"{part / 1e9:>{width}.3f}" for part in parts))
    return lines
