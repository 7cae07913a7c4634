"""Shard weights over ranks: experts over the expert-parallel ranks, then everything over the data-parallel ones.

The two tensors of experts are `[E, ..., I, ...]` with the width I at dimension 2: the expert-parallel ranks cut
dimension 0 (and the width, if a router group has several ranks), FSDP2 cuts the width. All other weights are cut by
FSDP2 at dimension 0. Gradients are summed over the ranks that hold a copy or a token, never averaged, because the loss
is already divided by the number of tokens of all ranks.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard

from parallel.mesh import Meshes
from parallel.torch_private import accumulate_in

WIDTH = 2  # dimension of both expert tensors that holds the experts' width


@dataclass(frozen=True)
class Policy:
    """Options of FSDP2 for weights.

    compute: dtype in which the weights of linears and experts are gathered; None gathers them in their own. reduce:
    dtype in which gradients are summed over ranks; None sums them in the dtype of the gathered weights. accumulate:
    dtype in which those of a step's micro-batches are summed where they are reduced once; None for `reduce`'s.
    reshard_dense, reshard_experts: free the gathered weights after the forward pass and gather them again for backward.
    """

    compute: torch.dtype | None = None
    reduce: torch.dtype | None = None
    accumulate: torch.dtype | None = None
    reshard_dense: bool = True
    reshard_experts: bool = False


def place_experts(experts: Iterable[nn.Module], meshes: Meshes) -> None:
    """Replace the parameters of each experts' module by DTensors of the whole shape that hold this rank's part. The
    modules must be on the meta device."""
    placement = meshes.placement
    if placement.ep == 1:
        return
    mesh, cuts = meshes.experts["expert"], [Shard(0)]
    if placement.width_shards > 1:
        mesh, cuts = meshes.experts, [Shard(0), Shard(WIDTH)]
        if placement.expert_shards == 1:
            mesh, cuts = meshes.experts["width"], [Shard(WIDTH)]
    for module in experts:
        for path, weight in list(module.named_parameters()):  # those of a back end too
            shape = list(weight.shape)
            shape[0] //= placement.expert_shards
            shape[WIDTH] //= placement.width_shards
            part = DTensor.from_local(weight.new_empty(shape), mesh, cuts, run_check=False)
            owner, _, name = path.rpartition(".")
            setattr(module.get_submodule(owner), name, nn.Parameter(part, requires_grad=weight.requires_grad))


def shard_parameters(
    root: nn.Module,
    blocks: Iterable[nn.Module],
    linears: Iterable[nn.Module],
    experts: Iterable[nn.Module],
    meshes: Meshes,
    policy: Policy,
) -> None:
    """Apply FSDP2 to everything, in place: one group of weights for each given module, the rest in their block's or
    root's.

    linears: modules inside the blocks whose matrices are gathered in `policy.compute`; their vectors (norms) then stay
    whole on every rank, as one group of weights has one dtype. Blocks and root keep the dtype of their parameters.
    experts: modules sharded over `meshes.expert_dp`; unchanged if no other rank shares their experts.
    """
    linears, experts = list(linears), list(experts)
    gathered = MixedPrecisionPolicy(policy.compute, policy.reduce, cast_forward_inputs=False)
    kept = MixedPrecisionPolicy(None, policy.reduce, cast_forward_inputs=False)
    alone = meshes.layout.dp_replicate * meshes.layout.expert_dp == 1
    if not alone:
        for module in experts:
            fully_shard(
                module,
                mesh=meshes.expert_dp,
                reshard_after_forward=policy.reshard_experts,
                shard_placement_fn=lambda _: Shard(WIDTH),
                mp_policy=gathered,
            )
    ignored = {weight for module in experts for weight in module.parameters()} if alone else set()
    if policy.compute is not None:
        for module in linears:
            vectors = {weight for weight in module.parameters() if weight.ndim == 1}
            fully_shard(
                module,
                mesh=meshes.dense,
                reshard_after_forward=policy.reshard_dense,
                mp_policy=gathered,
                ignored_params=vectors,
            )
    for module in [*blocks, root]:
        fully_shard(
            module,
            mesh=meshes.dense,
            # The root's own weights stay gathered: an objective uses the LM head after the root's forward pass.
            reshard_after_forward=policy.reshard_dense and module is not root,
            mp_policy=kept,
            ignored_params=ignored,
        )
    for module in root.modules():
        if isinstance(module, FSDPModule):
            # Without the second call a divisor of 1 is a multiplication inside the collective, which gloo lacks.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
            if policy.accumulate is not None:
                accumulate_in(module, policy.accumulate)


def gather_weights(root: nn.Module) -> None:
    """Gather all sharded weights of `root` that are not gathered yet, before a forward pass does. They stay so until a
    pass frees them."""
    for module in root.modules():
        if isinstance(module, FSDPModule):
            module.unshard()


def free_weights(root: nn.Module) -> None:
    """Free all gathered weights of `root`, which are copies: the next pass gathers what the shards hold then."""
    for module in root.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def reduce_gradients(root: nn.Module, *, reduce: bool) -> None:
    """Choose whether the next backward pass sums gradients over the ranks, or adds them up on each rank: whole ones,
    of weights that stay gathered or are gathered again."""
    if isinstance(root, FSDPModule):
        root.set_requires_gradient_sync(reduce)


def keep_gathered(experts: Iterable[nn.Module], *, keep: bool) -> None:
    """Choose whether experts stay gathered after the next backward pass: they do between the micro-batches of a step,
    but not after its last one."""
    for module in experts:
        if isinstance(module, FSDPModule):
            module.set_reshard_after_backward(not keep, recurse=False)
