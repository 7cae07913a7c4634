"""Every private name of torch that Octavo uses, in one place; last checked with torch 2.13.0.

Private names may change with any version of torch, so each function says why no public one does. Each has a canary in
tests/parallel/test_torch_private.py that fails where torch has changed it; a test of the tree keeps others out.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

# FakeTensorMode gives tensors sizes, strides and storages without memory, and raises DataDependentOutputException where
# a value would be needed. TorchDispatchMode sees every operator. torch documents both but exports them nowhere else.
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass

__all__ = [
    "COLLECTIVES",
    "GROUPED_MM",
    "MATMULS",
    "DataDependentOutputException",
    "FakeTensorMode",
    "TorchDispatchMode",
    "accumulate_in",
    "assert_async",
    "backend_of",
    "build_lock",
    "checkpoint_offset",
    "clear_sharding_cache",
    "collectives_started",
    "dtensor_region",
    "dtensor_regions",
    "fake_store",
    "flash_for_cpu",
    "flash_for_cpu_backward",
    "flash_varlen",
    "flash_varlen_backward",
    "flatten_mesh",
    "foreach_copy",
    "foreach_norm",
    "gathered_weights",
    "group_of_name",
    "has_gradient_hooks",
    "holds_storage",
    "in_backward",
    "process_groups",
    "saving_hooks",
    "set_timeout",
    "storage_id",
    "view_base",
    "wrapper_tensor",
]

# Operators of matrix products and attention, as the dispatcher sees them. Selective recomputation keeps their results;
# attention has a public function only, which chooses one of these.
MATMULS = frozenset(
    getattr(torch.ops.aten, name).default
    for name in (
        "mm", "addmm", "bmm", "_grouped_mm",
        "_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention",
        "_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention", "_flash_attention_forward",
    )
)  # fmt: skip

GROUPED_MM = torch.ops.aten._grouped_mm.default  # one of them: F.grouped_mm, as the dispatcher sees it

# The kind of collective behind each operator of the namespaces c10d and _c10d_functional. The public functions, FSDP
# and DTensor issue different operators for the same collective.
COLLECTIVES = {
    "_allgather_base_": "all_gather", "allgather_": "all_gather", "allgather_coalesced_": "all_gather",
    "allgather_into_tensor_coalesced_": "all_gather", "all_gather_into_tensor": "all_gather",
    "all_gather_into_tensor_out": "all_gather", "all_gather_into_tensor_coalesced": "all_gather",
    "_reduce_scatter_base_": "reduce_scatter", "reduce_scatter_": "reduce_scatter",
    "reduce_scatter_tensor_coalesced_": "reduce_scatter", "reduce_scatter_tensor": "reduce_scatter",
    "reduce_scatter_tensor_out": "reduce_scatter", "reduce_scatter_tensor_coalesced": "reduce_scatter",
    "allreduce_": "all_reduce", "allreduce_coalesced_": "all_reduce", "all_reduce": "all_reduce",
    "all_reduce_": "all_reduce", "all_reduce_coalesced": "all_reduce", "all_reduce_coalesced_": "all_reduce",
    "alltoall_base_": "all_to_all", "alltoall_": "all_to_all", "all_to_all_single": "all_to_all",
    "send": "send", "recv_": "receive",
}  # fmt: skip


# ---- extensions


def build_lock(name: str) -> Path:
    """The file that `torch.utils.cpp_extension` has while it compiles the extension `name`. A killed build leaves it
    behind, and later ones wait for it without end. No public function has its path."""
    from torch.utils.cpp_extension import _get_build_directory  # imports setuptools

    return Path(_get_build_directory(name, False), "lock")


# ---- operators and autograd


def foreach_copy(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    """Copy each source into its target, in place. No public function copies a list in one kernel."""
    torch._foreach_copy_(list(targets), list(sources))


def foreach_norm(tensors: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """The norm of each tensor, 0-dim, accumulated in `dtype`. The public `get_total_norm` reads a list in one kernel
    too, but accumulates in the tensors' own dtype."""
    return list(torch._foreach_norm(list(tensors), 2, dtype=dtype))


def assert_async(condition: Tensor, message: str) -> None:
    """Fail with `message` unless the one-element `condition` is true; on a GPU without waiting for it, at a later
    synchronisation. Public assertions read the value on the host."""
    torch._assert_async(condition, message)


def in_backward() -> bool:
    """True while autograd runs a backward pass in this thread, its final hooks included."""
    return torch._C._current_graph_task_id() != -1


def saving_hooks() -> tuple[Callable[[Tensor], Any], Callable[[Any], Tensor]] | None:
    """The hooks of the innermost `torch.autograd.graph.saved_tensors_hooks` around the call; None outside of any. Only
    these act, and publicly hooks cannot pass a tensor on to those around them."""
    found: tuple[Callable[[Tensor], Any], Callable[[Any], Tensor]] | None
    found = torch._C._autograd._top_saved_tensors_default_hooks(False)
    return found


def has_gradient_hooks(parameter: Tensor) -> bool:
    """True if a hook is registered on the gradient of `parameter`. Hooks can be registered but not listed publicly."""
    return bool(parameter._backward_hooks or getattr(parameter, "_post_accumulate_grad_hooks", None))


# ---- attention in parts: with its log-sum-exp, and a backward that takes another's. No public function has both.
#
# Legend: B batch · x queries · y keys · h query heads · n kv heads · d head dimension.


def flash_for_cpu(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    """q [B, h, x, d]; k, v [B, n, y, d] -> o [B, h, x, d], log-sum-exp [B, h, x] in fp32 (fp64 for fp64)."""
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default(q, k, v, 0.0, causal)


def flash_for_cpu_backward(
    dy: Tensor, q: Tensor, k: Tensor, v: Tensor, y: Tensor, lse: Tensor, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v of `flash_for_cpu`, whose results are y and lse."""
    operator = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default
    return operator(dy, q, k, v, y, lse, 0.0, causal)


def flash_varlen(
    q: Tensor, k: Tensor, v: Tensor, q_bounds: Tensor, k_bounds: Tensor, longest_q: int, longest_k: int, causal: bool
) -> tuple[Tensor, Tensor]:
    """On CUDA in 16 bits: q [x, h, d]; k, v [y, n, d], documents between the bounds -> o [x, h, d], log-sum-exp [h, x]
    in fp32."""
    operator = torch.ops.aten._flash_attention_forward.default
    return operator(q, k, v, q_bounds, k_bounds, longest_q, longest_k, 0.0, causal, False)[:2]


def flash_varlen_backward(
    dy: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    y: Tensor,
    lse: Tensor,
    q_bounds: Tensor,
    k_bounds: Tensor,
    longest_q: int,
    longest_k: int,
    causal: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v of `flash_varlen`, whose results are y and lse."""
    operator = torch.ops.aten._flash_attention_backward.default
    # Nothing is dropped, so the state of the random numbers and the unused argument have no meaning.
    state = torch.zeros(2, dtype=torch.uint64, device=q.device)
    unused = torch.empty(0, device=q.device)
    bounds = (q_bounds, k_bounds, longest_q, longest_k)
    return operator(dy, q, k, v, y, lse, *bounds, 0.0, causal, state, unused)


# ---- tensors and storages


def storage_id(of: Tensor | torch.UntypedStorage) -> int:
    """Identifies a storage, or that of a tensor; `data_ptr()` does not, as it is 0 for meta and fake tensors."""
    return (of.untyped_storage() if isinstance(of, Tensor) else of)._cdata


def holds_storage(tensor: Tensor) -> bool:
    """True if `tensor` has memory of its own, or stands for such memory as fake tensors do: a wrapper such as DTensor
    only has the storages of its parts, and a meta tensor none."""
    return not (is_traceable_wrapper_subclass(tensor) or tensor.device.type == "meta" or tensor.is_sparse)


def view_base(tensor: Tensor) -> Tensor | None:
    """The tensor that `tensor` is a view of, None if it is not a view."""
    return tensor._base


def wrapper_tensor(cls: type[Tensor], size: Sequence[int], like: Tensor) -> Any:
    """An instance of the subclass `cls` with the shape `size` and no storage, in the dtype and on the device of `like`.
    torch documents this way to make tensor subclasses, under this name only."""
    return torch.Tensor._make_wrapper_subclass(cls, tuple(size), dtype=like.dtype, device=like.device)


def checkpoint_offset(tensor: Tensor) -> int | None:
    """Byte at which the storage of `tensor` starts in the file that torch.load read it from on the meta device; None
    where torch does not record it. Without it a part of a tensor cannot be read."""
    start = getattr(tensor.untyped_storage(), "_checkpoint_offset", None)
    return start if isinstance(start, int) else None


# ---- process groups, meshes and sharding


def process_groups() -> list[dist.ProcessGroup]:
    """All process groups of this process, those that a mesh or a library made included; they are not listed
    publicly."""
    return list(dist.distributed_c10d._world.pg_map)


def collectives_started(group: dist.ProcessGroup) -> int:
    """Number of collectives that this process has started in `group`, as the host counts them."""
    return group._get_sequence_number_for_group()  # type: ignore[attr-defined]  # missing from torch's stubs


def set_timeout(group: dist.ProcessGroup, timeout: timedelta) -> None:
    """Change how long collectives of `group` may take. Publicly a timeout is set only where a group is made."""
    dist.distributed_c10d._set_pg_timeout(timeout, group)


def group_of_name(name: str) -> dist.ProcessGroup:
    """The process group that functional collectives refer to as `name`."""
    return dist.distributed_c10d._resolve_process_group(name)  # type: ignore[arg-type]


def backend_of(store: dist.Store, rank: int, size: int, device: torch.device, timeout: timedelta) -> Any:
    """One rank's end of NCCL or gloo over `store`, that is not among the process groups of this process. Publicly one
    has `init_process_group`, once for all ranks, and parts of that group."""
    if device.type == "cpu":
        return dist.ProcessGroupGloo(store, rank, size, timeout)
    nccl: Any = dist.ProcessGroupNCCL  # a build of torch without CUDA lacks it
    options = nccl.Options()
    options._timeout = timeout
    return nccl(store, rank, size, options)


def flatten_mesh(mesh: DeviceMesh, name: str) -> DeviceMesh:
    """All dimensions of `mesh` as one, whose group holds all its ranks."""
    return mesh._flatten(name)


def dtensor_region(weight: DTensor) -> tuple[slice, ...]:
    """The part of the whole tensor that this rank holds, one slice for each dimension. Publicly a DTensor gives its
    local tensor, but not where that is."""
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    shape, offset = compute_local_shape_and_global_offset(weight.shape, weight.device_mesh, weight.placements)
    return tuple(slice(start, start + size) for start, size in zip(offset, shape, strict=True))


def dtensor_regions(weight: DTensor) -> list[tuple[int, tuple[int, ...], tuple[slice, ...]]]:
    """(rank, replica, part of the whole tensor) of every rank of the mesh. Ranks whose replicas, coordinates along
    the dimensions of the mesh that do not cut the tensor, are equal hold it once together. As `dtensor_region`; torch
    reads offsets from tensors, which must be real ones where those of the caller are fake."""
    from torch.distributed.tensor._utils import _compute_local_shape_and_global_offset
    from torch.utils._python_dispatch import _disable_current_modes

    mesh, placements, found = weight.device_mesh, weight.placements, []
    with _disable_current_modes():
        for coordinate in itertools.product(*(range(size) for size in mesh.shape)):
            shape, offset = _compute_local_shape_and_global_offset(
                weight.shape, mesh.shape, list(coordinate), placements
            )
            replica = tuple(place for place, cut in zip(coordinate, placements, strict=True) if cut.is_replicate())
            region = tuple(slice(start, start + size) for start, size in zip(offset, shape, strict=True))
            found.append((int(mesh.mesh[coordinate]), replica, region))
    return found


def accumulate_in(module: nn.Module, dtype: torch.dtype) -> None:
    """Add up gradients of `module`'s own FSDP weights in `dtype` between the micro-batches of a step that is reduced
    once. Publicly this is the dtype in which they are reduced over ranks. In effect from the first forward pass on,
    before which FSDP has no dtypes."""
    from torch.distributed.fsdp import fully_shard

    def choose(*_: Any) -> None:
        hook.remove()
        for group in fully_shard.state(module)._fsdp_param_groups:  # type: ignore[attr-defined]
            for parameter in group.fsdp_params:
                own = parameter.param_dtype or parameter.orig_dtype
                parameter.reduce_dtype = None if dtype == own else dtype

    hook = module.register_forward_pre_hook(choose)


def gathered_weights(root: nn.Module) -> list[tuple[Tensor, Tensor | None]]:
    """Every weight that FSDP has gathered in `root`, and its whole gradient if there is one. Publicly modules show the
    gathered weights, but not gradients in another dtype."""
    from torch.distributed.fsdp import FSDPModule, fully_shard

    found: list[tuple[Tensor, Tensor | None]] = []
    for module in root.modules():
        if not isinstance(module, FSDPModule):
            continue
        for group in fully_shard.state(module)._fsdp_param_groups:  # type: ignore[attr-defined]
            for parameter in group.fsdp_params if group.is_unsharded else ():
                weight = parameter.unsharded_param
                added_up = parameter.unsharded_accumulated_grad
                found.append((weight, weight.grad if added_up is None else added_up))
    return found


def fake_store() -> dist.Store:
    """A store for `init_process_group("fake")`, whose collectives do nothing. It comes with torch's own tests."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    return FakeStore()


def clear_sharding_cache() -> None:
    """Forget the shardings that DTensor remembers by mesh. A later mesh of the same shape equals an earlier one, and
    would get that one's process groups."""
    from torch.distributed.tensor.debug import _clear_sharding_prop_cache

    _clear_sharding_prop_cache()
