"""The collectives that dispatchers use, started at one point of the program and finished at another.

Work between the start and `Pending.wait` overlaps with the transfer: NCCL runs it on a stream of its own, and `wait`
holds back the current stream, not the host; gloo runs it on a thread of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

# torch 2.13 renames these two and warns about the old names; 2.11 has only the old ones.
_all_gather = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)
_reduce_scatter = getattr(dist, "reduce_scatter_single", dist.reduce_scatter_tensor)


class Pending:
    """A collective in progress. It keeps the collective's buffers alive."""

    def __init__(self, work: dist.Work | None, result: Tensor, source: Tensor) -> None:
        self._work, self._result, self._source = work, result, source

    def wait(self) -> Tensor:
        """The result. Call it once."""
        if self._work is not None:
            self._work.wait()
        return self._result


def start_all_gather(x: Tensor, group: dist.ProcessGroup) -> Pending:
    """x [T, ...], of the same shape on every rank -> [ranks * T, ...] in rank order."""
    source = x.contiguous()
    result = source.new_empty(group.size() * len(source), *source.shape[1:])
    return Pending(_all_gather(result, source, group=group, async_op=True), result, source)


def start_reduce_scatter(x: Tensor, group: dist.ProcessGroup) -> Pending:
    """x [ranks * T, ...] -> [T, ...], this rank's part of the sum, added in an order that the library chooses."""
    source = x.contiguous()
    result = source.new_empty(len(source) // group.size(), *source.shape[1:])
    return Pending(_reduce_scatter(result, source, group=group, async_op=True), result, source)


def start_all_to_all(
    x: Tensor, group: dist.ProcessGroup, send: Sequence[int] | None = None, receive: Sequence[int] | None = None
) -> Pending:
    """x: rows for rank 0, rank 1, ... -> rows from rank 0, rank 1, ...

    send, receive: numbers of rows to and from each rank; None for equal numbers.
    """
    source = x.contiguous()
    rows = len(source) if receive is None else sum(receive)
    result = source.new_empty(rows, *source.shape[1:])
    work = dist.all_to_all_single(
        result,
        source,
        None if receive is None else list(receive),
        None if send is None else list(send),
        group=group,
        async_op=True,
    )
    return Pending(work, result, source)


def sum_in_order(parts: Tensor) -> Tensor:
    """Sum [ranks, T, ...] over the first dimension in rank order, in fp32 (fp64 for fp64); reproducible."""
    total = parts[0].to(torch.promote_types(parts.dtype, torch.float32), copy=True)
    for part in parts[1:]:
        total += part
    return total.to(parts.dtype)
