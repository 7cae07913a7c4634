"""Every internal name of DeepSpeed that Octavo uses, in one place; last checked with DeepSpeed 0.19.8.

Its documented interface has no access to the partitions, to a parameter's place in them, to the overflow flag, or to
what stage 3 gathers and frees. tests/parallel/zero/ compares runs with the native engine's, which fails where a name or
its meaning has changed, and holds a canary for each name.

`zero` is the ZeRO optimizer that `deepspeed.initialize` returns.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor


class Place(NamedTuple):
    """This rank's part of a parameter: `length` elements of partition number `partition` from `offset` on, which are
    those of the flattened parameter from `start` on. Padding is left out."""

    partition: int
    offset: int
    length: int
    start: int


def without_shared_memory(deepspeed: Any) -> None:
    """Turn collectives through shared memory off: only inference uses them, and the first group on a CPU would compile
    them for two minutes."""
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def accept_optimizer(deepspeed: Any, kind: type) -> None:
    """Add `kind` to the optimizers that ZeRO takes without a warning."""
    known = deepspeed.runtime.zero.utils.ZERO_SUPPORTED_OPTIMIZERS
    if kind not in known:
        known.append(kind)


def set_learning_rate(zero: Any, rate: float) -> None:
    for group in zero.param_groups:
        group["lr"] = rate


def overflowed(zero: Any) -> bool:
    """Return True if the last step was skipped because a gradient was not finite."""
    return bool(zero.overflow)


# ---- stages 1 and 2


def flat_partitions(zero: Any) -> list[Tensor]:
    """This rank's part of each group of parameters, one flat fp32 tensor each."""
    return zero.single_partition_of_fp32_groups


def flat_place(parameter: Any) -> Place | None:
    """None if this rank has no part of the parameter."""
    place = parameter._hp_mapping
    if place is None:
        return None
    held = place.hp_fragment_address
    return Place(place.param_group_index, held.start, held.numel, place.lp_fragment_address.start)


def read_weights(zero: Any) -> None:
    """Copy the model's weights to the partitions."""
    zero.refresh_fp32_params()


# ---- stage 3


def partitions(zero: Any) -> list[Tensor]:
    """This rank's part of the parameters, in flat fp32 tensors: the weights that are updated."""
    return zero.fp32_partitioned_groups_flat


def place(zero: Any, parameter: Any, rank: int) -> Place:
    partition, offset, padded = zero.grad_position[zero.get_param_id(parameter)]
    start = min(padded * rank, parameter.ds_numel)
    return Place(partition, offset, min(padded, parameter.ds_numel - start), start)


def shape(parameter: Any) -> tuple[int, ...]:
    """The shape of a parameter when it is gathered; otherwise it has no elements."""
    return tuple(parameter.ds_shape)


def share_memory(zero: Any) -> None:
    """With the state on the host DeepSpeed holds gradients twice, and weights too if they are there: keep one copy."""
    for number, gradient in enumerate(gradients(zero)):
        flat, low = zero.fp32_partitioned_groups_flat[number], zero.fp16_partitioned_groups_flat[number]
        if number in swapped(zero):
            continue  # not in memory
        if flat.grad is not None:
            flat.grad = gradient
        if low.device == flat.device:
            flat.data = low.data


def gradients(zero: Any) -> Iterator[Tensor]:
    """The gradients of each partition, in the buffer to which every micro-batch adds its own."""
    yield from zero.grad_partitions_flat_buffer.split([int(size) for size in zero.fp16_partitioned_groups_flat_numel])


def keep_gathered(zero: Any, parameters: Iterable[Any]) -> None:
    """Do not free these parameters after the forward and backward pass of their module."""
    for parameter in parameters:
        parameter.is_external_param = True  # while DeepSpeed records the order of the modules it frees all others
        if not parameter.ds_persist:
            parameter.ds_persist = True
            zero.persistent_parameters.append(parameter)


def gather_kept(zero: Any) -> None:
    """Gather those of the kept parameters that were freed. Collective."""
    freed = [parameter for parameter in zero.persistent_parameters if not parameter.numel()]
    if freed:
        freed[0].all_gather(freed)


def start_micro_batch(zero: Any) -> None:
    """Add the next gradients to those before; DeepSpeed's wrapper of the model does this in its forward pass."""
    zero.clear_backward_seen_flag()


def write_weights(zero: Any) -> None:
    """Give the model the weights of the partitions."""
    on_nvme = swapped(zero)
    for number in range(len(zero.fp16_groups)):
        if number in on_nvme:
            swap_in(zero, number)
        zero._reassign_or_swap_out_partitioned_parameters(number)
        if number in on_nvme:
            zero._release_swap_buffers(number)
    zero.parameter_offload.partition_all_parameters()


# ---- stage 3 with the state on NVMe


def compiled_for_host() -> Any:
    """Compile `async_io` with the builder for CPUs, which needs no CUDA toolkit: DeepSpeed's buffers are in host memory
    on every device, and its own call for the device's builder finds the result."""
    from deepspeed.ops.op_builder.cpu import AsyncIOBuilder

    return AsyncIOBuilder().load(verbose=False)


def swapped(zero: Any) -> set[int]:
    """The numbers of the partitions that are in files."""
    return {number for number in range(len(zero.fp16_groups)) if zero._swappable_optimizer_subgroup(number)}


def swap_in(zero: Any, number: int) -> None:
    """Read a partition and its moments from their files into buffers."""
    zero._optimizer_states_and_gradient_swap_in(number)


def swap_out(zero: Any, number: int) -> None:
    """Write a partition and its moments to their files, and give the buffers back."""
    zero._optimizer_states_and_gradient_swap_out(number)


def swap_file(zero: Any, number: int, tensor: int) -> tuple[Path, int]:
    """(the file of a partition, 0, or of one of its moments, from 1 on; its elements without padding)."""
    paths = _swap_info(zero, number).get_swap_paths()
    return Path(paths[tensor]), int(zero.fp16_partitioned_groups_flat_numel[number])


def keep_gradients(zero: Any) -> None:
    """Only take the norm of each gradient at the end of a step: DeepSpeed would keep a copy of all on the device, and
    then write them to files."""
    at_boundary = zero._offload_grad_partition_at_boundary

    def only_norm(parameter: Any, gradient: Tensor, found: dict[int, Any], offsets: dict[int, Any]) -> None:
        at_boundary(parameter, gradient, found, offsets)
        found.clear()
        offsets.clear()

    zero._offload_grad_partition_at_boundary = only_norm


def give_gradients(zero: Any) -> None:
    """Let each partition that is read for the next update find its gradient on the host."""
    for number, gradient in enumerate(gradients(zero)):
        if zero._swappable_optimizer_subgroup(number):
            _swap_info(zero, number).unswapped_gradients = {0: gradient}


def _swap_info(zero: Any, number: int) -> Any:
    return zero.optimizer_swapper.swap_params_info[zero.fp32_partitioned_groups_flat[number].ds_id]
