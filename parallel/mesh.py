"""The device meshes of a run: one for dense weights, one for experts, both over the same ranks in the same order."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from parallel.groups import Placement
from parallel.layout import Layout
from parallel.torch_private import flatten_mesh
from parallel.world import World


@dataclass(frozen=True)
class Meshes:
    """The meshes that this rank belongs to.

    dense: the mesh that dense weights are sharded over, (dp_shard,), or (dp_replicate, dp_shard) if there are copies;
    with cp > 1 its last dimension is dp_shard_cp. expert_dp: the mesh that a rank's experts are sharded over besides
    expert parallelism, (expert_dp,) or (dp_replicate, expert_dp). experts: the expert-parallel mesh (expert, width),
    the innermost ranks. The process groups are None if they have only this rank: ep_group of the expert-parallel
    ranks; shard_group of dp_shard x cp; cp_group of the ranks that share a sequence; pp_group of a pipeline, one rank
    of each stage in order; stage_group of the ranks that hold the same stage as this one, and stage_control the same
    ranks over gloo. Where there is one stage, stage_group is the default group. tower_group: the ranks of a stage
    again, for the exchange of images, which need not wait for gathers of weights; None unless it was asked for.
    """

    layout: Layout
    placement: Placement
    dense: DeviceMesh
    expert_dp: DeviceMesh
    experts: DeviceMesh
    ep_group: dist.ProcessGroup | None
    shard_group: dist.ProcessGroup | None
    cp_group: dist.ProcessGroup | None
    pp_group: dist.ProcessGroup | None
    stage_group: dist.ProcessGroup | None
    stage_control: dist.ProcessGroup | None
    tower_group: dist.ProcessGroup | None

    @staticmethod
    def build(layout: Layout, placement: Placement, device_type: str, *, towers: bool = False) -> Meshes:
        """Collective over all ranks of the default group, which must be initialised and have `layout.world` ranks.

        towers: make the tower_group."""
        if placement.ep != layout.ep:
            raise ValueError(f"experts are placed on {placement.ep} ranks, but the layout has ep={layout.ep}")
        copies = layout.dp_replicate
        shard = "dp_shard" if layout.cp == 1 else "dp_shard_cp"  # on the screen, as the keys that a user knows
        # Two meshes over the same ranks: sharding a weight twice needs its mesh dimensions to come from one of them.
        alone = init_device_mesh(device_type, (layout.world, 1), mesh_dim_names=("all", "alone")).get_group("alone")
        dense = _mesh_of({"pp": layout.pp, "dp_replicate": copies, shard: layout.shard}, device_type, alone)
        experts = _mesh_of(
            {
                "pp": layout.pp,
                "dp_replicate": copies,
                "expert_dp": layout.expert_dp,
                "expert": placement.expert_shards,
                "width": placement.width_shards,
            },
            device_type,
            alone,
        )
        ep = experts["expert", "width"]
        ep_group = None
        if layout.ep == layout.world > 1:
            # For a dimension of all ranks torch returns the default group, which sharding uses too. In a group of its
            # own the exchange of tokens need not wait for a gather of weights.
            ep_group = dist.new_group(group_desc="ep")
        elif layout.ep > 1:
            ep_group = flatten_mesh(ep, "ep").get_group()
        stages = [range(first, first + layout.stage_ranks) for first in range(0, layout.world, layout.stage_ranks)]
        parts = [range(first, first + layout.cp) for first in range(0, layout.world, layout.cp)]
        pipelines = [range(first, layout.world, layout.stage_ranks) for first in range(layout.stage_ranks)]
        one_stage = layout.pp == 1
        on_host = None if dist.get_backend() in ("gloo", "fake") else "gloo"
        return Meshes(
            layout,
            placement,
            dense=dense["dp_replicate", shard] if copies > 1 else dense[shard],
            expert_dp=experts["dp_replicate", "expert_dp"] if copies > 1 else experts["expert_dp"],
            experts=ep,
            ep_group=ep_group,
            shard_group=dense[shard].get_group() if layout.shard > 1 else None,
            cp_group=_group_of(parts, "cp"),
            pp_group=_group_of(pipelines, "pp"),
            stage_group=dist.group.WORLD if one_stage else _group_of(stages, "stage"),
            stage_control=None if one_stage else _group_of(stages, "stage_control", on_host),
            tower_group=_group_of(stages, "towers") if towers else None,
        )


def ranks_of_samples(layout: Layout, world: World) -> tuple[World, World]:
    """The ranks that read the same samples as this one, and the ranks of its pipeline, which are among them; for Python
    objects, over gloo. Collective over all ranks."""
    if layout.readers == layout.world:
        return world.within(None, None), world.within(None, None)
    stages = range(0, layout.world, layout.stage_ranks)
    same = [
        [stage + reader * layout.cp + part for stage in stages for part in range(layout.cp)]
        for reader in range(layout.readers)
    ]
    pipelines = [[*range(first, layout.world, layout.stage_ranks)] for first in range(layout.stage_ranks)]
    of_samples, of_pipeline = (_objects(parts, name) for parts, name in ((same, "samples"), (pipelines, "objects")))
    return world.within(of_samples, of_samples), world.within(of_pipeline, of_pipeline)


def _objects(parts: list[list[int]], name: str) -> dist.ProcessGroup | None:
    if len(parts[0]) == 1:
        return None
    group, _ = dist.new_subgroups_by_enumeration(parts, backend="gloo", group_desc=name)
    return group


def _mesh_of(sizes: dict[str, int], device_type: str, alone: dist.ProcessGroup) -> DeviceMesh:
    """The mesh with dimensions of these sizes, by name; all ranks, in order. Dimensions of size 1 share the group
    `alone`: every gloo group has a thread that wakes up a hundred times a second, and a pipeline has six of them."""
    wide = {name: size for name, size in sizes.items() if size > 1}
    groups = dict.fromkeys(sizes, alone)
    if wide:
        mesh = init_device_mesh(device_type, tuple(wide.values()), mesh_dim_names=tuple(wide))
        groups |= {name: mesh.get_group(name) for name in wide}
    ranks = torch.arange(math.prod(sizes.values())).view(*sizes.values())
    return DeviceMesh.from_group(list(groups.values()), device_type, mesh=ranks, mesh_dim_names=tuple(sizes))


def _group_of(parts: Sequence[range], name: str, backend: str | None = None) -> dist.ProcessGroup | None:
    """The group of those ranks out of `parts`, which together are all ranks once, that this rank is among; None if it
    is alone. Collective over all ranks."""
    if len(parts[0]) == 1:
        return None
    group, _ = dist.new_subgroups_by_enumeration([list(part) for part in parts], backend=backend, group_desc=name)
    return group
