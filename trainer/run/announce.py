"""The first records of a log: ranks, precision, size, and options without effect."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from parallel.environment import ranks_of_machine
from parallel.layout import Layout
from parallel.mesh import Meshes
from parallel.pipeline.plan import Plan
from parallel.pipeline.timing import bubble_share
from parallel.world import World
from trainer import precision
from trainer.config.checks.optim import doubtful
from trainer.config.checks.unused import without_effect
from trainer.config.keys import Config
from trainer.config.memory import gigabytes, rank_memory
from trainer.config.ranks import cut_model, map_ranks
from trainer.metrics import host
from trainer.model.experts.choose import describe_backend
from trainer.model.frozen.blocks_gemm import describe as describe_frozen


def announcements(
    cfg: Config, world: World, meshes: Meshes | None, *, resumed: int, directory: Path
) -> Iterator[dict[str, Any]]:
    """Records for the log.

    resumed: the step after which the run continues, 0 for a new one.
    """
    model = cfg.model
    if meshes is not None:
        table = "\n".join(f"{axis:<14}{ranks:>6}  {what}" for axis, ranks, what in meshes.layout.rows())
        yield {"event": "layout", "message": f"axes of {world.size} ranks\n{table}"}
        if meshes.layout.pp > 1:
            yield {
                "event": "layout",
                "message": _pipeline(cfg, meshes.layout, map_ranks(cfg.parallel, model, world.size).plan),
            }
    for line in doubtful(cfg.optim, cfg.train.steps):
        yield {"event": "warning", "message": line}
    for line in without_effect(cfg, map_ranks(cfg.parallel, model, world.size)):
        yield {"event": "warning", "message": line}
    on_a_rank = model.num_experts // (meshes.placement.expert_shards if meshes is not None else 1)
    if cfg.lora.base == "fp8":
        experts = describe_frozen(cfg.precision.experts)
    else:
        experts = describe_backend(cfg.precision.experts, model.expert_backend, world.device, on_a_rank)
    towers = [name for name in ("vision", "signals") if getattr(model, name) is not None]
    yield {"event": "precision", "message": f"dtypes by part\n{precision.table(cfg.precision, experts, towers)}"}
    if world.device.type == "cuda" and "fp32" in (cfg.precision.linears, cfg.precision.experts):
        text = "fp32 on a GPU: grouped GEMM and attention have no fast kernels for it and wait for the host"
        yield {"event": "warning", "message": f"{text}; use precision=bf16"}
    elif world.device.type == "cuda" and cfg.precision.experts == "fp8_reference":
        text = "fp8_reference on a GPU multiplies in fp32, which waits for the host; use precision=fp8_block for speed"
        yield {"event": "warning", "message": text}
    if cfg.precision.payload == "fp8" and meshes is not None and meshes.ep_group is not None:
        text = "precision.payload=fp8 rounds what experts receive, for the weights' gradients too"
        yield {"event": "warning", "message": f"{text}; precision.payload={cfg.precision.linears} does not"}
    if world.device.type == "cpu":
        crowded = host.crowded(torch.get_num_threads(), ranks_of_machine(), os.getloadavg()[0], host.cores())
        if crowded is not None:
            yield {"event": "note", "message": crowded}
    held = rank_memory(cfg, world.size, world.rank)
    if held.offloaded or held.moved:
        text = f"this rank holds at least {gigabytes(held.device)} on the device and {gigabytes(held.host)} on the host"
        text += f", and {gigabytes(held.stored)} on NVMe" if held.stored else ""
        yield {"event": "memory", "message": text}
    new = f"new, with the weights in {cfg.checkpoint.init_from}" if cfg.checkpoint.init_from else "new"
    parts = [
        f"continued after step {resumed}" if resumed else new,
        f"{model.num_params() / 1e6:,.1f} M parameters ({model.active_params() / 1e6:,.1f} M active)",
        *_towers(cfg),
        *_adapters(cfg),
        f"{cfg.precision.linears} with {cfg.precision.experts} experts on {world.size} x {device_name(world.device)}",
        f"{cfg.train.global_batch * cfg.data.seq_len:,} tokens a step",
        f"in {directory}",
    ]
    if cfg.optim.engine == "deepspeed":
        place = {"none": "", "cpu": ", state on the CPU", "nvme": ", state on NVMe"}[cfg.optim.offload]
        if cfg.optim.offload_params == "cpu":
            place += ", weights too" if cfg.optim.offload == "cpu" else ", weights on the CPU"
        parts.append(f"AdamW by DeepSpeed, ZeRO-{cfg.optim.zero_stage}{place}")
    yield {"event": "run", "message": ", ".join(parts)}


def _towers(cfg: Config) -> Iterator[str]:
    """The sizes of the towers, and the parts that are frozen."""
    for name, what in (("vision", "vision tower"), ("signals", "signal tower")):
        if (tower := getattr(cfg.model, name)) is not None:
            size = sum(math.prod(shape) for shape in tower.shapes())
            yield f"{size / 1e6:,.1f} M of them in the {what}"
    if frozen := [name for name, part in vars(cfg.optim.parts).items() if part.freeze]:
        yield f"frozen: {' and '.join(frozen)}"


def _adapters(cfg: Config) -> Iterator[str]:
    """The size of the adapters, which alone are trained."""
    if (target := cfg.lora.target) != "none":
        size = sum(math.prod(shape) for shape in cfg.lora.shapes(cfg.model).values())
        beside = "attention and experts" if target == "all" else target
        yield f"frozen, with {size / 1e6:,.2f} M in adapters of rank {cfg.lora.rank} beside {beside}"


def _pipeline(cfg: Config, layout: Layout, plan: Plan) -> str:
    """Such as "pipeline 1f1b, layers of the 4 stages: 2 2 2 1; 32 micro-batches a step, expected idle time 8.6 %"."""
    layers = " ".join(str(cut.stop - cut.start) for cut in cut_model(cfg, plan))
    micro_batches = cfg.train.global_batch // (cfg.train.micro_batch * layout.readers)
    idle = 100 * bubble_share(plan, micro_batches)
    return (
        f"pipeline {plan.schedule}, layers of the {plan.stages} stages: {layers}; {micro_batches} micro-batches a "
        f"step, expected idle time {idle:.1f} %"
    )


def device_name(device: torch.device) -> str:
    """As torch names a GPU, or "cpu"."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
