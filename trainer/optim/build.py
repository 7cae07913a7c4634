"""The engine that a configuration asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from parallel.world import World
from parallel.zero.engine import AdamWOptions
from parallel.zero.flat import FlatEngine
from parallel.zero.partitioned import PartitionedEngine
from parallel.zero.swapped import SwappedEngine
from trainer.config.keys import OptimConfig
from trainer.optim.engine import Engine
from trainer.optim.native import NativeEngine
from trainer.optim.schedule import groups, lr_at
from trainer.storage.scratch import ScratchDirectory


def build_engine(
    stages: nn.Module | Sequence[nn.Module],
    cfg: OptimConfig,
    world: World,
    shard_group: dist.ProcessGroup | None = None,
    moments: torch.dtype | None = None,
    alike: World | None = None,
    rates: Mapping[str, float] | None = None,
    skip_above: float = 0.0,
) -> Engine:
    """The engine that `cfg` names; the arguments as for `NativeEngine`. DeepSpeed takes one stage, no `rates` and no
    `skip_above`."""
    if cfg.engine == "native":
        return NativeEngine(stages, cfg, world, shard_group, moments, alike, rates, skip_above)
    (model,) = [stages] if isinstance(stages, nn.Module) else stages
    options = AdamWOptions(
        [(group.names, group.decay) for group in groups(dict(model.named_parameters()), cfg)],
        lr=lambda step, steps: lr_at(step, cfg, steps),
        betas=(cfg.betas[0], cfg.betas[1]),
        eps=cfg.eps,
        clip_norm=cfg.clip_norm,
    )
    if cfg.offload == "nvme":
        directory = Path(cfg.nvme_dir or "")  # the checks of `optim` have seen that there is one, and stage 3
        files = ScratchDirectory(directory)
        return SwappedEngine(model, world, options, files=files, params=cfg.offload_params)
    if cfg.zero_stage == 3:
        return PartitionedEngine(model, world, options, offload=cfg.offload, params=cfg.offload_params)
    return FlatEngine(model, world, options, stage=cfg.zero_stage, offload=cfg.offload)
