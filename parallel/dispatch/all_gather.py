"""Expert parallelism without counts: every rank of the group gets every token and works on its own router groups.

With router groups mapped to ranks, each token needs each rank, the same number of times whatever the router selects.
The hidden states therefore travel in one all-gather, together with the routing ids and weights, and each rank's partial
sums return in one reduce-scatter, or in an equal all-to-all followed by a sum in rank order. All shapes are known in
advance: no counts are exchanged and the host never waits for the device. Backward mirrors forward, so that a layer
issues four collectives. The chart shows overlap=2, which cuts the tokens into two exchanges A and B; time runs to the
right, ~ is a transfer, dy are the gradients of results (`*_combine_gradients`), dx those of tokens:

    forward   A  start gather ~~ finish gather, experts, start combine ~~~~~~~~~~~~~~~~~~~~~~~~~~ finish combine
              B   start gather ~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~ finish gather, experts, start combine ~~ finish combine

    backward  B  start dy ~~ finish dy, experts, start dx ~~~~~~~~~~~~~~~~~~~~~ finish dx
              A   start dy ~~~~~~~~~~~~~~~~~~~~~~~~~~~ finish dy, experts, start dx ~~ finish dx

The routing weights cross ranks inside autograd: their gradients return with those of the hidden states.

Legend: T tokens on each rank · K experts per token · k of them on this rank · E experts · H hidden size · N = ep * T.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from parallel.dispatch.base import RowOrder, RunExperts
from parallel.dispatch.collectives import (
    Pending,
    start_all_gather,
    start_all_to_all,
    start_reduce_scatter,
    sum_in_order,
)
from parallel.dispatch.payload import Cast, Payload, Wire
from parallel.groups import Placement
from parallel.torch_private import assert_async, storage_id

Combine = Literal["reduce_scatter", "fixed_order"]


class AllGatherDispatch:
    """Dispatcher for router groups mapped to the ranks of `group` by `placement`.

    Args:
        group: the expert-parallel ranks, `placement.ep` of them.
        combine: "reduce_scatter" lets the library add the ranks' results in its own order and in their dtype;
            "fixed_order" moves as many bytes by an equal all-to-all and adds in fp32 in rank order: bitwise
            reproducible, rounded once.
        regather: do not keep the gathered hidden states for backward; gather them again instead.
        overlap: number of exchanges that the tokens are cut into, so that one travels while another's experts compute.
        payload: format of the hidden states on their way to the experts and, in backward, of the gradients of the
            experts' results.
    """

    def __init__(
        self,
        group: dist.ProcessGroup,
        placement: Placement,
        *,
        combine: Combine = "fixed_order",
        regather: bool = False,
        overlap: int = 1,
        payload: Payload | None = None,
    ) -> None:
        if group.size() != placement.ep:
            raise ValueError(f"the group has {group.size()} ranks, but the experts are placed on {placement.ep}")
        self.group, self.placement, self.combine = group, placement, combine
        self.regather, self.overlap, self.payload = regather, overlap, payload or Cast()
        self._num_tokens = -1  # T of the last call

    def __call__(self, x: Tensor, ids: Tensor, weights: Tensor, num_experts: int, experts: RunExperts) -> Tensor:
        """Implements `Dispatcher`. The slots of each token must be in router-group order.

        Raises ValueError on every rank if the ranks' T differ, in the first call or when T changes on all of them. If
        it changes on some ranks only, the others do not compare, and the collective itself fails.
        """
        self._require_equal_tokens(len(x))
        cuts = [t.chunk(self.overlap) for t in (x, ids, weights)]
        exchanges = [_Exchange(self, ids, num_experts) for ids in cuts[1]]
        sent = [exchange.send(x, w) for exchange, x, w in zip(exchanges, cuts[0], cuts[2], strict=True)]
        computed = [exchange.compute(*tokens, experts) for exchange, tokens in zip(exchanges, sent, strict=True)]
        results = [exchange.receive(partial) for exchange, partial in zip(exchanges, computed, strict=True)]
        return results[0] if len(results) == 1 else torch.cat(results)

    def _require_equal_tokens(self, tokens: int) -> None:
        """Compare T between ranks when it changes; otherwise free."""
        backend = dist.get_backend(self.group)
        if tokens == self._num_tokens or backend == "fake":  # a fake group has no other ranks
            return
        device = torch.device("cuda" if backend == "nccl" else "cpu")
        all_tokens = start_all_gather(torch.tensor([tokens], device=device), self.group).wait().tolist()
        if len(set(all_tokens)) > 1:
            raise ValueError(f"expert-parallel ranks have {all_tokens} tokens; give each rank the same number")
        self._num_tokens = tokens


class _Exchange:
    """One part of the tokens on its way to the experts and back: `send`, `compute`, `receive`, in this order.

    Autograd sees four functions, two around each transfer. Backward starts and finishes the mirrored transfers:
    `_FinishGather.backward` starts to send the gradients back and `_StartGather.backward` finishes that. Between the
    two functions of a pair autograd passes empty stand-ins of the right shape, while the data are in `pending`. This
    object keeps no stand-in: autograd's nodes refer to it, and a reference cycle through them would never be freed.
    """

    def __init__(self, dispatch: AllGatherDispatch, ids: Tensor, num_experts: int) -> None:
        self.dispatch, self.ids = dispatch, ids
        rank, placement = dispatch.group.rank(), dispatch.placement
        self.slots = placement.slots(rank, ids.shape[1])
        mine = placement.experts(rank, num_experts)
        self.first_expert, self.num_experts = mine.start, mine.stop - mine.start
        self.pending: Pending | None = None

    def send(self, x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        return _StartGather.apply(x, weights, self)

    def compute(self, x: Tensor, weights: Tensor, experts: RunExperts) -> Tensor:
        """x, weights: the stand-ins that `send` returned."""
        x_NH, weights_Nk, ids_Nk = _FinishGather.apply(x, weights, self)
        order = RowOrder(ids_Nk, self.num_experts, by_slot=self.dispatch.combine == "fixed_order")
        if self.dispatch.regather and torch.is_grad_enabled():
            with torch.autograd.graph.saved_tensors_hooks(*self._regather_hooks(x_NH)):
                partial_NH = experts(x_NH, weights_Nk, order)
        else:
            partial_NH = experts(x_NH, weights_Nk, order)
        return _StartCombine.apply(partial_NH, self)

    def receive(self, partial: Tensor) -> Tensor:
        """partial: the stand-in that `compute` returned."""
        return _FinishCombine.apply(partial, self)

    # ---- forward

    def start_gather(self, x: Tensor, weights: Tensor) -> None:
        self.wire = Wire(self.dispatch.payload)
        packed = self.wire.pack(x)
        self.kept = packed.detach() if self.dispatch.regather else None
        ids = self.ids.to(torch.int64 if weights.dtype.itemsize == 8 else torch.int32)
        self.pending = start_all_gather(self.wire.join(packed, weights, ids), self.dispatch.group)

    def finish_gather(self) -> tuple[Tensor, Tensor, Tensor]:
        """x [N, H], and the weights [N, k] and local expert ids [N, k] of this rank's slots."""
        packed, weights, ids = self.wire.split(self._finish())
        # Replayed ids may be in any order. Every rank sees all of them, and the check does not wait for a GPU.
        parts = self.dispatch.placement.expert_shards
        part_of_slot = torch.arange(parts, device=ids.device).repeat_interleave(ids.shape[1] // parts)
        inside = (ids.div(self.num_experts, rounding_mode="floor") == part_of_slot).all()
        assert_async(inside, "expert ids must be in router-group order: slot s in group s // (K / G)")
        local_ids = ids[:, self.slots].to(torch.int64) - self.first_expert
        return self.wire.unpack(packed), weights[:, self.slots].contiguous(), local_ids

    def start_combine(self, partial: Tensor) -> None:
        start = start_all_to_all if self.dispatch.combine == "fixed_order" else start_reduce_scatter
        self.pending = start(partial, self.dispatch.group)

    def finish_combine(self) -> Tensor:
        """The sum of all ranks' results for this rank's tokens [T, H]."""
        received = self._finish()
        if self.dispatch.combine == "reduce_scatter":
            return received
        return sum_in_order(received.unflatten(0, (self.dispatch.placement.ep, -1)))

    # ---- backward

    def start_combine_gradients(self, dy: Tensor) -> None:
        """Send the gradient of this rank's results [T, H] to the experts of all ranks."""
        self.gradient_wire = Wire(self.dispatch.payload.for_gradients())
        self.pending = start_all_gather(self.gradient_wire.pack(dy), self.dispatch.group)

    def finish_combine_gradients(self) -> Tensor:
        """The gradients of all ranks' results [N, H]."""
        return self.gradient_wire.unpack(self._finish())

    def start_gather_gradients(self, dx: Tensor, d_weights: Tensor) -> None:
        """Send the gradients of the gathered x [N, H] and of the weights of this rank's slots [N, k] back."""
        group = self.dispatch.group
        if self.dispatch.combine == "fixed_order":
            self.gradient_wire = Wire()
            self.pending = start_all_to_all(self.gradient_wire.join(dx, d_weights), group)
            return
        # Each slot is computed on one rank (or on its width shards, which add up), so summing columns loses nothing.
        terms = _exact_terms(d_weights, dx.dtype)
        columns = dx.new_zeros(len(dx), len(terms), self.ids.shape[1])
        columns[:, :, self.slots] = torch.stack(terms, dim=1)
        self.pending = start_reduce_scatter(torch.cat([dx, columns.flatten(1)], dim=1), group)

    def finish_gather_gradients(self, weights_dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The gradients of this rank's x [T, H] and weights [T, K]."""
        received = self._finish()
        if self.dispatch.combine == "reduce_scatter":
            hidden = self.wire.hidden
            terms_TaK = received[:, hidden:].unflatten(1, (-1, self.ids.shape[1]))
            return received[:, :hidden], terms_TaK.to(weights_dtype).sum(1)
        placement = self.dispatch.placement
        dx, d_weights = self.gradient_wire.split(received)
        # [ep, T, k] -> [expert part, width part, T, k] -> the sum over width parts of each expert part's slots
        by_rank = d_weights.unflatten(0, (placement.expert_shards, placement.width_shards, -1))
        d_weights_TK = sum_in_order(by_rank.transpose(0, 1)).permute(1, 0, 2).flatten(1)
        return sum_in_order(dx.unflatten(0, (placement.ep, -1))), d_weights_TK

    def _finish(self) -> Tensor:
        assert self.pending is not None
        received, self.pending = self.pending.wait(), None
        return received

    def _regather_hooks(self, x_NH: Tensor) -> tuple[Callable[[Tensor], Any], Callable[[Any], Tensor]]:
        """Hooks for saved tensors that drop x_NH and gather it again when backward needs it."""
        storage, shape = storage_id(x_NH), x_NH.shape

        def save(tensor: Tensor) -> Tensor | None:
            return None if tensor.shape == shape and storage_id(tensor) == storage else tensor

        def restore(saved: Tensor | None) -> Tensor:
            if saved is not None:
                return saved
            assert self.kept is not None
            return self.wire.unpack(start_all_gather(self.kept, self.dispatch.group).wait())

        return save, restore


class _StartGather(torch.autograd.Function):
    """x [T, H], weights [T, K] -> stand-ins of both."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weights: Tensor, exchange: _Exchange) -> tuple[Tensor, Tensor]:
        ctx.exchange, ctx.weights_dtype = exchange, weights.dtype
        exchange.start_gather(x, weights)
        return _stand_in(x.shape, x), _stand_in(weights.shape, weights)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        return *ctx.exchange.finish_gather_gradients(ctx.weights_dtype), None


class _FinishGather(torch.autograd.Function):
    """Stand-ins -> x [N, H], weights [N, k], local expert ids [N, k]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weights: Tensor, exchange: _Exchange) -> tuple[Tensor, Tensor, Tensor]:
        ctx.exchange, ctx.shapes = exchange, (x.shape, weights.shape)
        x_NH, weights_Nk, ids_Nk = exchange.finish_gather()
        ctx.mark_non_differentiable(ids_Nk)
        return x_NH, weights_Nk, ids_Nk

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        dx, d_weights, _ = grads
        ctx.exchange.start_gather_gradients(dx, d_weights)
        return _stand_in(ctx.shapes[0], dx), _stand_in(ctx.shapes[1], d_weights), None


class _StartCombine(torch.autograd.Function):
    """This rank's results [N, H] -> a stand-in of [T, H]."""

    @staticmethod
    def forward(ctx: Any, partial: Tensor, exchange: _Exchange) -> Tensor:
        ctx.exchange = exchange
        exchange.start_combine(partial)
        return _stand_in(torch.Size((len(exchange.ids), partial.shape[1])), partial)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return ctx.exchange.finish_combine_gradients(), None


class _FinishCombine(torch.autograd.Function):
    """The stand-in -> the sum over ranks [T, H]."""

    @staticmethod
    def forward(ctx: Any, stand_in: Tensor, exchange: _Exchange) -> Tensor:
        ctx.exchange = exchange
        return exchange.finish_combine()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        ctx.exchange.start_combine_gradients(grads[0])
        return _stand_in(grads[0].shape, grads[0]), None


def _stand_in(shape: torch.Size, like: Tensor) -> Tensor:
    """A tensor of one element, expanded to `shape`."""
    return like.new_zeros(()).expand(shape)


def _exact_terms(value: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """Numbers of `dtype` whose sum, taken in the dtype of `value`, is `value`: three bf16 hold an fp32's 24 bits."""
    if value.dtype == dtype:
        return [value]
    terms = []
    for _ in range(3):
        terms.append(value.to(dtype))
        value = value - terms[-1].to(value.dtype)
    return terms
