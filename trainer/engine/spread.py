"""The experts of a model spread over ranks, for generation."""

from __future__ import annotations

import torch
from torch import nn

from parallel.dispatch.all_gather import AllGatherDispatch
from parallel.dispatch.all_to_all import AllToAllDispatch
from parallel.mesh import Meshes
from parallel.sharding.fsdp import place_experts
from parallel.sharding.local import local_part
from trainer.config.keys import ParallelConfig
from trainer.config.ranks import map_ranks
from trainer.model.decoder import Decoder


def spread_experts(model: Decoder, ranks: int, device: torch.device) -> None:
    """Give each of `ranks`, all of the default process group, its part of the experts of a model on the meta device, in
    place; all else stays whole. Tokens travel as in training with as many expert-parallel ranks, and results are added
    in the order of the ranks. Collective.

    Raises ConfigError for a number of ranks that the experts cannot be divided among.
    """
    chosen = map_ranks(ParallelConfig(dp_shard=ranks, ep=ranks), model.cfg, ranks)
    meshes = Meshes.build(chosen.layout, chosen.placement, device.type)
    assert meshes.ep_group is not None
    place_experts([block.moe.experts for block in model.blocks], meshes)
    for block in model.blocks:
        if chosen.dispatch == "all_to_all":
            block.moe.dispatcher = AllToAllDispatch(meshes.ep_group)
        else:
            block.moe.dispatcher = AllGatherDispatch(meshes.ep_group, meshes.placement, combine="fixed_order")


def keep_own_experts(model: Decoder) -> None:
    """Make the part of the experts that this rank holds plain parameters, in place: all that it computes with."""
    for block in model.blocks:
        experts = block.moe.experts
        for name in ("w13", "w2"):
            part = local_part(getattr(experts, name))
            setattr(experts, name, nn.Parameter(part, requires_grad=False))
