"""The device meshes of a run: one for dense weights, one for experts, both over the same ranks in the same order."""

from __future__ import annotations

from dataclasses import dataclass

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from parallel.groups import Placement
from parallel.layout import Layout
from parallel.torch_private import flatten_mesh


@dataclass(frozen=True)
class Meshes:
    """The meshes that this rank belongs to.

    dense: the mesh that dense weights are sharded over, (dp_shard,), or (dp_replicate, dp_shard) if there are copies;
    with cp > 1 its last dimension is dp_shard_cp. expert_dp: the mesh that a rank's experts are sharded over besides
    expert parallelism, (expert_dp,) or (dp_replicate, expert_dp). experts: the expert-parallel mesh (expert, width),
    the innermost ranks. ep_group, shard_group: process groups of the expert-parallel ranks and of dp_shard x cp, None
    if there is only this rank.
    """

    layout: Layout
    placement: Placement
    dense: DeviceMesh
    expert_dp: DeviceMesh
    experts: DeviceMesh
    ep_group: dist.ProcessGroup | None
    shard_group: dist.ProcessGroup | None

    @staticmethod
    def build(layout: Layout, placement: Placement, device_type: str) -> Meshes:
        """Collective over all ranks of the default group, which must be initialised and have `layout.world` ranks."""
        if placement.ep != layout.ep:
            raise ValueError(f"experts are placed on {placement.ep} ranks, but the layout has ep={layout.ep}")
        copies = layout.dp_replicate
        shard = "dp_shard" if layout.cp == 1 else "dp_shard_cp"  # on the screen, as the keys that a user knows
        # Two meshes over the same ranks: sharding a weight twice needs its mesh dimensions to come from one of them.
        dense = init_device_mesh(
            device_type, (layout.pp, copies, layout.shard), mesh_dim_names=("pp", "dp_replicate", shard)
        )
        experts = init_device_mesh(
            device_type,
            (layout.pp, copies, layout.expert_dp, placement.expert_shards, placement.width_shards),
            mesh_dim_names=("pp", "dp_replicate", "expert_dp", "expert", "width"),
        )
        ep = experts["expert", "width"]
        ep_group = None
        if layout.ep == layout.world > 1:
            # For a dimension of all ranks torch returns the default group, which sharding uses too. In a group of its
            # own the exchange of tokens need not wait for a gather of weights.
            ep_group = dist.new_group(group_desc="ep")
        elif layout.ep > 1:
            ep_group = flatten_mesh(ep, "ep").get_group()
        return Meshes(
            layout,
            placement,
            dense=dense["dp_replicate", shard] if copies > 1 else dense[shard],
            expert_dp=experts["dp_replicate", "expert_dp"] if copies > 1 else experts["expert_dp"],
            experts=ep,
            ep_group=ep_group,
            shard_group=dense[shard].get_group() if layout.shard > 1 else None,
        )
