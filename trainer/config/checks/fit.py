"""Layouts that a model does not fit into, and the nearest ones that it does. No torch here: a run is refused before any
process group starts."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from parallel.errors import Fault, one_of
from parallel.layout import divisors
from trainer.config.checks.parallel import runs
from trainer.config.keys import Config, ParallelConfig
from trainer.config.memory import RankMemory, gigabytes, host_memory, largest_memory, rank_memory
from trainer.config.ranks import map_ranks

SPARE = 0.1  # share of a GPU's memory that stays free where all of a step is counted
MOST_NAMED = 3  # layouts, or changes, in one message
LEAST_LENGTH = 1024  # tokens of a sequence that a remedy asks for


def too_large(cfg: Config, world_size: int, available: int, place: str, rank: int | None = None) -> Fault | None:
    """A fault if a rank cannot fit into `available` bytes; None if it may.

    place: where the bytes are, such as "this machine (2 ranks)". rank: None for the one that needs the most.
    """
    gpu = "GPU" in place
    if rank is None:
        rank, needed = largest_memory(cfg, world_size, gpu=gpu)
    else:
        needed = rank_memory(cfg, world_size, rank)
    size = needed.device if gpu else needed.total
    if size <= available:
        return None
    text = (
        f"{cfg.model.num_params() / 1e6:,.1f} M parameters on {world_size} rank(s) need at least "
        f"{gigabytes(size)} on rank {rank} ({_parts(needed, gpu=gpu)}), and {place} has {gigabytes(available)}"
    )
    if smaller := smaller_runs(cfg, world_size, available, gpu=gpu):
        words = one_of(tuple(" ".join(change) for change in smaller))
        return Fault(f"{text}; use {words}", "lora", size, smaller)
    if layouts := nearest_layouts(cfg, world_size, available, gpu=gpu):
        words = one_of(tuple(" ".join(layout) for layout in layouts))
        return Fault(f"{text}; use {words}", "parallel", size, layouts)
    layers = _most_layers(cfg, world_size, available, gpu=gpu)
    fits = f"model.num_layers={layers} or less fits" if layers else "use a smaller model or a smaller batch"
    advice = f"{fits}, or more ranks that share the weights (parallel.dp_shard)"
    return Fault(f"{text}; {advice}", "model", size, layers or "a smaller model")


def too_large_beside(cfg: Config, world_size: int, ranks: int, available: int) -> Fault | None:
    """A fault if what `ranks` ranks with GPUs keep on the host cannot fit into its `available` bytes, else None."""
    needed, on_host = rank_memory(cfg, world_size), host_memory(cfg, world_size, ranks)
    reasons: dict[str, str] = {}
    if needed.offloaded:
        reasons["optim.offload"] = cfg.optim.offload
    if needed.moved:
        reasons["train.offload_activations"] = "true"
    if not reasons or on_host <= available:
        return None
    allowed = f"a host with {gigabytes(on_host)}, or more machines that share the weights"
    keys = " and ".join(f"{key}={value}" for key, value in reasons.items())
    keep = "keeps" if len(reasons) == 1 else "keep"
    text = f"{keys} {keep} {gigabytes(on_host)} of {ranks} rank(s) on the host, which has {gigabytes(available)}"
    return Fault(f"{text}; use {allowed}", next(iter(reasons)), on_host, allowed)


def too_large_to_store(cfg: Config, world_size: int, ranks: int, available: int) -> Fault | None:
    """A fault if what `ranks` ranks keep in files does not fit into `available` bytes of optim.nvme_dir, else None."""
    stored = rank_memory(cfg, world_size).stored * ranks
    if stored <= available:
        return None
    allowed = f"a disk with {gigabytes(stored)} free"
    text = (
        f"optim.offload=nvme keeps {gigabytes(stored)} of {ranks} rank(s) in optim.nvme_dir={cfg.optim.nvme_dir}, "
        f"which has {gigabytes(available)} free"
    )
    return Fault(f"{text}; use {allowed}", "optim.nvme_dir", stored, allowed)


def smaller_runs(cfg: Config, world_size: int, available: int, *, gpu: bool) -> tuple[tuple[str, ...], ...]:
    """Runs with adapters that differ in one key and whose ranks all need at most `available` bytes, as overrides; where
    there are none, the run with the fewest of these changes together. Nothing without adapters."""
    if cfg.lora.target == "none":
        return ()
    changes = list(_smaller(cfg, gpu=gpu))
    fits = lambda words: _most(changed(cfg, words), world_size, gpu=gpu) <= available  # noqa: E731
    found: dict[str, tuple[str, ...]] = {}
    for word in changes:
        key = word.partition("=")[0]
        if key not in found and fits((word,)):
            found[key] = (word,)
    if found:
        return tuple(found.values())[:MOST_NAMED]
    together: dict[str, str] = {}
    for word in changes:
        together[word.partition("=")[0]] = word
        if fits(tuple(together.values())):
            return (tuple(together.values()),)
    return ()


def _smaller(cfg: Config, *, gpu: bool) -> Iterator[str]:
    """Changes that need less memory, those that cost the least first."""
    if gpu and not cfg.train.offload_activations and cfg.train.recompute == "full":
        yield "train.offload_activations=true"
    if cfg.optim.name == "adamw" and cfg.precision.moments == "fp32":
        yield "precision.moments=bf16"
    rank = cfg.lora.rank
    while rank > 1:
        rank //= 2
        yield f"lora.rank={rank}"
    if cfg.lora.target != "attention":
        yield "lora.target=attention"
    if cfg.lora.base != "fp8" and _in_fp8(cfg.checkpoint.init_from):
        yield "lora.base=fp8"
    length = cfg.data.seq_len
    while length % 2 == 0 and length > LEAST_LENGTH:
        length //= 2
        yield f"data.seq_len={length}"


def _in_fp8(directory: str | None) -> bool:
    """True for a Hugging Face directory in FP8 by its config.json; False also where that cannot be read."""
    try:
        config = json.loads((Path(directory or "") / "config.json").read_text())
        sections = (config, config.get("text_config") or {})
        return any((section.get("quantization_config") or {}).get("quant_method") == "fp8" for section in sections)
    except (OSError, ValueError, AttributeError):
        return False


def changed(cfg: Config, words: Iterable[str]) -> Config:
    """`cfg` with overrides of `_smaller`."""
    for word in words:
        key, _, text = word.partition("=")
        group, name = key.split(".")
        part = getattr(cfg, group)
        value = type(getattr(part, name))({"true": True}.get(text, text))
        cfg = replace(cfg, **{group: replace(part, **{name: value})})
    return cfg


def nearest_layouts(cfg: Config, world_size: int, available: int, *, gpu: bool) -> tuple[tuple[str, ...], ...]:
    """Other layouts of the same ranks in which no rank needs more than `available` bytes, of a GPU if `gpu`, as
    overrides, the most similar ones first."""
    here = map_ranks(cfg.parallel, cfg.model, world_size).layout

    def distance(p: ParallelConfig) -> float:
        pairs = ((here.pp, p.pp), (here.dp_replicate, p.dp_replicate), (here.dp_shard, p.dp_shard), (here.ep, p.ep))
        return sum(abs(math.log2(ours / theirs)) for ours, theirs in pairs)

    found = []
    for parallel in sorted(_layouts(cfg, world_size), key=distance):
        other = replace(cfg, parallel=parallel)
        if runs(other, world_size) and _most(other, world_size, gpu=gpu) <= available:
            keys = ("pp", "dp_replicate", "dp_shard", "ep")
            found.append(tuple(f"parallel.{key}={getattr(parallel, key)}" for key in keys))
            if len(found) == MOST_NAMED:
                break
    return tuple(found)


def _layouts(cfg: Config, world_size: int) -> Iterator[ParallelConfig]:
    """All divisions of the ranks over pp, dp_replicate, dp_shard and ep; cp stays. Experts whose width is divided over
    ranks send more for each token, so ep beyond the router groups is for those who have it."""
    cp, here = cfg.parallel.cp, map_ranks(cfg.parallel, cfg.model, world_size).layout
    for pp in divisors(world_size):
        for dp_shard in divisors(world_size // pp):
            if pp > cfg.model.num_layers or world_size % (pp * dp_shard * cp):
                continue
            copies = world_size // (pp * dp_shard * cp)
            for ep in divisors(dp_shard * cp):
                if ep <= max(here.ep, cfg.model.router_groups):
                    yield replace(cfg.parallel, pp=pp, dp_replicate=copies, dp_shard=dp_shard, ep=ep)


def _parts(needed: RankMemory, *, gpu: bool) -> str:
    """Such as "weights 1.0 GB, gradients 1.0 GB"."""
    parts = {
        "weights": needed.weights,
        "gradients": max(needed.gradients, needed.accumulated),
        "optimizer": needed.optimizer,
        "reference policy": needed.reference,
        "gathered weights": needed.gathered,
        "inputs of layers": needed.activations + (0 if gpu else needed.moved),
        "a step's tokens": needed.batches,
        "a layer at work and gathered weights": needed.working if gpu else 0,
    }
    return ", ".join(f"{name} {gigabytes(size)}" for name, size in parts.items() if size)


def _most(cfg: Config, world_size: int, *, gpu: bool) -> int:
    """Bytes that a rank needs at most, of a GPU or in all."""
    needed = largest_memory(cfg, world_size, gpu=gpu)[1]
    return needed.device if gpu else needed.total


def _most_layers(cfg: Config, world_size: int, available: int, *, gpu: bool) -> int:
    """The most layers that fit; 0 if the fewest do not."""

    def fits(layers: int) -> bool:
        fewer = replace(cfg, model=replace(cfg.model, num_layers=layers))
        return _most(fewer, world_size, gpu=gpu) <= available

    low, high = map_ranks(cfg.parallel, cfg.model, world_size).plan.stages, cfg.model.num_layers
    if not fits(low):
        return 0
    while low + 1 < high:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
