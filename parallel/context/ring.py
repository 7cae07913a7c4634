"""Context parallelism by a ring (Ring Attention, Liu et al. 2023, arXiv:2310.01889), with chunks from both ends of the
sequence on each rank to balance causal work (`slices`).

Each rank keeps its queries, while keys and values travel around the ring; while one message is on its way, the rank
attends to the one before. In backward the keys travel again, and behind them their gradients in fp32: from the first
rank that needs the keys to the last, and from there to their owner. `plan` says what travels how far.

    distance            1                     2                     3
    keys      ~~~~~ wait ~~~~~~~~~~~~~~~~~~~~ wait ~~~~~~~~~~~~~~~~ wait
    compute   own        its blocks                its blocks            its blocks
    gradients (backward)           send ~~~~~~~~~~~~~~~~~~~~~~~ add, send ~~~~~~~~~ add, send

A rank sends k and v at most c-1 times forward; backward k, v and fp32 dk, dv at most c-1 times each.

Legend: c ranks · T tokens on this rank · M rows of a message · h query heads · n kv heads · d head dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor

from parallel.context.base import Documents
from parallel.context.blocks import attend, attend_backward, merge
from parallel.context.plan import Block, Hop, RingPlan
from parallel.context.share import take


class RingAttention:
    """Attention core for the ranks of `group`, which hold the slices of kind "ring".

    On CUDA in 16 bits, on a CPU in any float dtype.
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.group = group
        self._planned = WeakKeyDictionary[Documents, tuple[RingPlan, Documents]]()

    @property
    def ranks(self) -> int:
        return self.group.size()

    @torch.compiler.disable
    def __call__(self, q: Tensor, k: Tensor, v: Tensor, docs: Documents) -> Tensor:
        """Implements `AttentionCore`. Raises ValueError if T is not this rank's part or the dtype has no kernel."""
        if q.is_cuda and q.dtype.itemsize != 2:
            raise ValueError(f"ring attention on CUDA computes in bfloat16 or float16, not in {q.dtype}")
        plan, own_docs = self._plan(docs, q.device)
        if len(q) != plan.tokens:
            raise ValueError(f"this rank has {len(q)} tokens, but {plan.tokens} of the {plan.bounds[-1]} are its own")
        return _Ring.apply(q, k, v, plan, own_docs, self.group)

    def _plan(self, docs: Documents, device: torch.device) -> tuple[RingPlan, Documents]:
        """The same for all layers, so kept as long as the documents are: in a pipeline other micro-batches come before
        a pass is recomputed, which must do what it did the first time."""
        if docs not in self._planned:
            plan = RingPlan(docs.bounds, self.ranks, self.group.rank())
            self._planned[docs] = plan, Documents.of_lengths(plan.lengths, device)
        return self._planned[docs]


class _Ring(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, plan: RingPlan, docs: Documents, group: dist.ProcessGroup
    ) -> Tensor:
        transport, kv = _Transport(plan, group), torch.stack([k, v], dim=1)
        transport.start_keys([take(kv, rows) for rows in plan.sent], distance=1)
        part, lse = attend(q, k, v, docs)
        # Copies, as what follows adds to them: selective recomputation keeps the kernel's own results.
        y, lse = part.to(lse.dtype, copy=True), lse.clone(memory_format=torch.contiguous_format)

        def attend_blocks(blocks: list[Block], kv: Tensor) -> None:
            for rows, of_keys in blocks:
                k, v = kv[of_keys].unbind(1)
                merge(y[rows], lse[:, rows], *attend(q[rows], k, v))

        attend_blocks(plan.own_blocks, kv)
        for hop in plan.hops:
            message = transport.finish_keys()
            transport.start_keys([message[way.onward] for way in hop.ways], hop.distance + 1)
            attend_blocks(hop.blocks, message)
        y = y.to(q.dtype)
        ctx.save_for_backward(q, k, v, y, lse)
        ctx.plan, ctx.docs, ctx.group = plan, docs, group
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, y, lse = ctx.saved_tensors
        plan, dy = ctx.plan, grads[0].contiguous()
        transport, kv = _Transport(plan, ctx.group), torch.stack([k, v], dim=1)
        transport.start_keys([take(kv, rows) for rows in plan.sent], distance=1)
        dq, *d_own = (grad.to(lse.dtype, copy=True) for grad in attend_backward(dy, q, k, v, y, lse, ctx.docs))
        d_kv = torch.stack(d_own, dim=1)

        def add_blocks(blocks: list[Block], kv: Tensor, d_kv: Tensor) -> None:
            for rows, of_keys in blocks:
                k, v = kv[of_keys].unbind(1)
                found = attend_backward(dy[rows], q[rows], k, v, y[rows], lse[:, rows])
                for target, grad in zip((dq[rows], *d_kv[of_keys].unbind(1)), found, strict=True):
                    target += grad

        add_blocks(plan.own_blocks, kv, d_kv)
        for hop in plan.hops:
            message = transport.finish_keys()
            transport.start_keys([message[way.onward] for way in hop.ways], hop.distance + 1)
            d_message = torch.zeros_like(message, dtype=lse.dtype)
            add_blocks(hop.blocks, message, d_message)
            transport.finish_gradients(hop, d_message, d_kv)
            transport.start_gradients(hop, d_message)
        transport.finish_gradients(None, d_kv, d_kv)
        return dq.to(q.dtype), *d_kv.to(k.dtype).unbind(1), None, None, None


class _Transport:
    """Messages between the ranks of a ring: keys to the next ranks, in backward gradients to them and to the owners.

    Both ends of a transfer post it in the same call and, between two ranks, in the same order. NCCL keeps the order of
    a rank's calls, so nothing waits in a circle.
    """

    def __init__(self, plan: RingPlan, group: dist.ProcessGroup) -> None:
        self.plan, self.group = plan, group
        self.gradients = _Transfer(group, [], [])

    def start_keys(self, outgoing: Sequence[Tensor], distance: int) -> None:
        """Send rows down and up the ring, where they are part of messages of `distance`, and receive this rank's."""
        if distance < self.plan.ranks:
            hop, rank = self.plan.hops[distance - 1], self.plan.rank
            self.message = _empty(outgoing[0], hop.size)
            self.keys = _Transfer(
                self.group,
                [(rows, rank + way.direction) for rows, way in zip(outgoing, hop.ways, strict=True)],
                [(self.message[way.rows], rank - way.direction) for way in hop.ways],
            )

    def finish_keys(self) -> Tensor:
        """The message, [M, 2, n, d]."""
        self.keys.finish()
        return self.message

    def start_gradients(self, hop: Hop, d_message: Tensor) -> None:
        """Send the gradients of this rank's message on or home; receive those of the next message and of own rows."""
        rank, hops, distance = self.plan.rank, self.plan.hops, hop.distance
        following = hops[distance].ways if distance < len(hops) else None
        sends, receives = [], []
        for number, way in enumerate(hop.ways):
            to, owner = rank + way.direction, rank - way.direction * distance
            sends += [(d_message[way.sum_onward], to), (d_message[way.home], owner)]
            passed = _empty(d_message, _length(following[number].sum_in) if following else 0)
            returned = _empty(d_message, sum(map(len, way.returned)))
            receives += [(passed, rank - way.direction), (returned, rank + way.direction * distance)]
        self.gradients, self.returned = _Transfer(self.group, sends, receives), [way.returned for way in hop.ways]

    def finish_gradients(self, hop: Hop | None, d_message: Tensor, d_own: Tensor) -> None:
        """Add what has arrived to the rows of this rank's message `hop`, and to its own. hop: None after the last."""
        arrived = self.gradients.finish()
        for number, (passed, returned) in enumerate(zip(arrived[::2], arrived[1::2], strict=True)):
            if hop is not None:
                d_message[hop.ways[number].sum_in] += passed
            pieces = self.returned[number]
            for rows, part in zip(pieces, returned.split([len(rows) for rows in pieces]), strict=True):
                d_own[rows.start : rows.stop] += part


class _Transfer:
    """Sends and receives that run together; peers are taken modulo the ranks, empty tensors do not travel. It keeps
    the tensors alive."""

    def __init__(
        self,
        group: dist.ProcessGroup,
        sends: Sequence[tuple[Tensor, int]],
        receives: Sequence[tuple[Tensor, int]],
    ) -> None:
        self.received = [into for into, _ in receives]
        self.sent = [rows for rows, _ in sends]
        operations = [
            dist.P2POp(operation, tensor, group=group, group_peer=peer % group.size())
            for operation, transfers in ((dist.isend, sends), (dist.irecv, receives))
            for tensor, peer in transfers
            if len(tensor)
        ]
        self.works = dist.batch_isend_irecv(operations) if operations else []

    def finish(self) -> list[Tensor]:
        for work in self.works:
            work.wait()
        self.sent = []
        return self.received


def _length(rows: slice) -> int:
    return rows.stop - rows.start


def _empty(like: Tensor, rows: int) -> Tensor:
    return like.new_empty(rows, *like.shape[1:])
