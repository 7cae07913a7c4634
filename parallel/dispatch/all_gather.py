"""Expert parallelism without counts: every rank of the group gets every token and works on its own router groups.

With router groups mapped to ranks each token needs each rank, the same number of times whatever the router says. So the
hidden states travel by one all-gather, the routing ids and weights with them, and each rank's partial sums come back by
one reduce-scatter, or by an equal all-to-all and a sum in rank order. All shapes are known beforehand: no counts are
exchanged and the host never waits for the device. Backward is the mirror image, so a layer makes four collectives.

The routing weights cross ranks inside autograd: their gradients come home with those of the hidden states.

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
    begin_all_gather,
    begin_all_to_all,
    begin_reduce_scatter,
    carry,
    sum_in_order,
    unpack,
)
from parallel.dispatch.payload import Cast, Payload
from parallel.groups import Placement

Combine = Literal["reduce_scatter", "fixed_order"]


class AllGatherDispatch:
    """Dispatcher for router groups mapped to the ranks of `group` by `placement`.

    Args:
        group: the expert-parallel ranks, `placement.ep` of them.
        combine: "reduce_scatter" lets the library add the ranks' results in its own order and in their dtype;
            "fixed_order" moves as many bytes by an equal all-to-all and adds in fp32 in rank order: bitwise
            reproducible, rounded once.
        regather: keep no gathered hidden states for backward; gather them once more instead.
        overlap: parts that the tokens are cut into, so that one part's exchange runs beside the other's experts.
        payload: how hidden states travel to the experts, and in backward the gradients of the experts' results.
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
        self._tokens = -1

    def __call__(self, x: Tensor, ids: Tensor, weights: Tensor, num_experts: int, experts: RunExperts) -> Tensor:
        """As `Dispatcher`. Slots must stand in router-group order.

        Raises ValueError where ranks have unequal T, on all of them, if it is their first call or T changed on all. If
        it changed on some alone the others do not look, and the collective itself fails.
        """
        self._agree_on_tokens(len(x))
        cuts = [t.chunk(self.overlap) for t in (x, ids, weights)]
        parts = [_Part(self, ids, num_experts) for ids in cuts[1]]
        sent = [part.send(x, weights) for part, x, weights in zip(parts, cuts[0], cuts[2], strict=True)]
        computed = [part.run(*stand_ins, experts) for part, stand_ins in zip(parts, sent, strict=True)]
        results = [part.receive(stand_in) for part, stand_in in zip(parts, computed, strict=True)]
        return results[0] if len(results) == 1 else torch.cat(results)

    def _agree_on_tokens(self, tokens: int) -> None:
        """Where T changes, on all ranks or on none, the ranks compare it; otherwise this costs nothing."""
        backend = dist.get_backend(self.group)
        if tokens == self._tokens or backend == "fake":  # a fake group has no other ranks to ask
            return
        device = torch.device("cuda" if backend == "nccl" else "cpu")
        all_tokens = begin_all_gather(torch.tensor([tokens], device=device), self.group).wait().tolist()
        if len(set(all_tokens)) > 1:
            raise ValueError(f"expert-parallel ranks have {all_tokens} tokens; give each rank the same number")
        self._tokens = tokens


class _Part:
    """One exchange: `send` begins the gather, `run` the experts and begin the combine, `receive` waits for its result.

    Autograd sees four functions, and backward begins and waits at the mirrored places: `_Gathered.backward` begins to
    send the gradients home and `_Gather.backward` waits for them. Between the two halves of a pair autograd passes
    empty stand-ins of the right shape; what they stand for is in `pending`. This object keeps no stand-in: autograd's
    nodes hold it, and of a circle through them nothing would ever be freed.
    """

    def __init__(self, dispatch: AllGatherDispatch, ids: Tensor, num_experts: int) -> None:
        self.dispatch, self.ids = dispatch, ids
        rank, placement = dispatch.group.rank(), dispatch.placement
        self.slots = placement.slots(rank, ids.shape[1])
        mine = placement.experts(rank, num_experts)
        self.first_expert, self.num_experts = mine.start, mine.stop - mine.start
        self.pending: Pending | None = None
        self.columns: list[tuple[int, torch.dtype]] = []

    def send(self, x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        return _Gather.apply(x, weights, self)

    def run(self, x: Tensor, weights: Tensor, experts: RunExperts) -> Tensor:
        """x, weights: what `send` returned."""
        x_NH, weights_Nk, ids_Nk = _Gathered.apply(x, weights, self)
        order = RowOrder(ids_Nk, self.num_experts, by_slot=self.dispatch.combine == "fixed_order")
        if self.dispatch.regather and torch.is_grad_enabled():
            with torch.autograd.graph.saved_tensors_hooks(*self._regathering(x_NH)):
                partial_NH = experts(x_NH, weights_Nk, order)
        else:
            partial_NH = experts(x_NH, weights_Nk, order)
        return _Combine.apply(partial_NH, self)

    def receive(self, stand_in: Tensor) -> Tensor:
        """stand_in: what `run` returned."""
        return _Combined.apply(stand_in, self)

    # ---- what travels

    def begin_gather(self, x: Tensor, weights: Tensor) -> None:
        self.hidden, self.x_dtype = x.shape[1], x.dtype
        sent = self.dispatch.payload.pack(x)
        self.local = sent.detach() if self.dispatch.regather else None
        ids = self.ids.to(torch.int64 if weights.dtype.itemsize == 8 else torch.int32)
        parts = [sent, weights, ids]
        self.columns = [(part.shape[1], part.dtype) for part in parts]
        self.pending = begin_all_gather(carry(parts, sent.dtype), self.dispatch.group)

    def gathered(self) -> tuple[Tensor, Tensor, Tensor]:
        """x [N, H], and the weights [N, k] and local expert ids [N, k] of this rank's slots."""
        x, weights, ids = unpack(self._wait(), self.columns)
        # Replayed ids may be in any order. All ranks see all of them, and the check waits for nothing on a GPU.
        parts = self.dispatch.placement.expert_shards
        part_of_slot = torch.arange(parts, device=ids.device).repeat_interleave(ids.shape[1] // parts)
        inside = (ids.div(self.num_experts, rounding_mode="floor") == part_of_slot).all()
        torch._assert_async(inside, "expert ids must stand in router-group order: slot s in group s // (K / G)")
        local_ids = ids[:, self.slots].to(torch.int64) - self.first_expert
        return self.unpack_hidden(x), weights[:, self.slots].contiguous(), local_ids

    def unpack_hidden(self, x: Tensor) -> Tensor:
        return self.dispatch.payload.unpack(x, self.hidden, self.x_dtype)

    def begin_gradients(self, dx: Tensor, d_weights: Tensor) -> None:
        """Send the gradients of the gathered x [N, H] and of this rank's slots' weights [N, k] home."""
        group = self.dispatch.group
        if self.dispatch.combine == "fixed_order":
            self.gradient_columns = [(dx.shape[1], dx.dtype), (d_weights.shape[1], d_weights.dtype)]
            self.pending = begin_all_to_all(carry([dx, d_weights], dx.dtype), group)
            return
        # Every slot is one rank's alone (or its width shards' sum), so that adding up the ranks' columns loses nothing.
        terms = _exact_terms(d_weights, dx.dtype)
        columns = dx.new_zeros(len(dx), len(terms), self.ids.shape[1])
        columns[:, :, self.slots] = torch.stack(terms, dim=1)
        self.pending = begin_reduce_scatter(torch.cat([dx, columns.flatten(1)], dim=1), group)

    def gradients(self, weights_dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Gradients of this rank's x [T, H] and weights [T, K]."""
        received = self._wait()
        if self.dispatch.combine == "reduce_scatter":
            terms_TaK = received[:, self.hidden :].unflatten(1, (-1, self.ids.shape[1]))
            return received[:, : self.hidden], terms_TaK.to(weights_dtype).sum(1)
        placement = self.dispatch.placement
        dx, d_weights = unpack(received, self.gradient_columns)
        # [ep, T, k] -> [expert part, width part, T, k] -> the sum over width parts of each expert part's slots
        by_rank = d_weights.unflatten(0, (placement.expert_shards, placement.width_shards, -1))
        d_weights_TK = sum_in_order(by_rank.transpose(0, 1)).permute(1, 0, 2).flatten(1)
        return sum_in_order(dx.unflatten(0, (placement.ep, -1))), d_weights_TK

    def begin_combine(self, partial: Tensor) -> None:
        begin = begin_all_to_all if self.dispatch.combine == "fixed_order" else begin_reduce_scatter
        self.pending = begin(partial, self.dispatch.group)

    def combined(self) -> Tensor:
        received = self._wait()
        if self.dispatch.combine == "reduce_scatter":
            return received
        return sum_in_order(received.unflatten(0, (self.dispatch.placement.ep, -1)))

    def begin_result_gradients(self, dy: Tensor) -> None:
        """Send the gradient of this rank's results [T, H] to the experts of all ranks."""
        self.pending = begin_all_gather(self.dispatch.payload.of_gradients().pack(dy), self.dispatch.group)

    def result_gradients(self, hidden: int, dtype: torch.dtype) -> Tensor:
        return self.dispatch.payload.of_gradients().unpack(self._wait(), hidden, dtype)

    def _wait(self) -> Tensor:
        assert self.pending is not None
        received, self.pending = self.pending.wait(), None
        return received

    def _regathering(self, x_NH: Tensor) -> tuple[Callable[[Tensor], Any], Callable[[Any], Tensor]]:
        storage, shape = x_NH.untyped_storage()._cdata, x_NH.shape

        def pack(saved: Tensor) -> Tensor | None:
            return None if saved.shape == shape and saved.untyped_storage()._cdata == storage else saved

        def unpack_saved(kept: Tensor | None) -> Tensor:
            if kept is not None:
                return kept
            assert self.local is not None
            return self.unpack_hidden(begin_all_gather(self.local, self.dispatch.group).wait())

        return pack, unpack_saved


class _Gather(torch.autograd.Function):
    """x [T, H], weights [T, K] -> stand-ins of both."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weights: Tensor, part: _Part) -> tuple[Tensor, Tensor]:
        ctx.part, ctx.weights_dtype = part, weights.dtype
        part.begin_gather(x, weights)
        return _stand_in(x.shape, x), _stand_in(weights.shape, weights)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        return *ctx.part.gradients(ctx.weights_dtype), None


class _Gathered(torch.autograd.Function):
    """Stand-ins -> x [N, H], weights [N, k], local expert ids [N, k]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weights: Tensor, part: _Part) -> tuple[Tensor, Tensor, Tensor]:
        ctx.part, ctx.shapes = part, (x.shape, weights.shape)
        x_NH, weights_Nk, ids_Nk = part.gathered()
        ctx.mark_non_differentiable(ids_Nk)
        return x_NH, weights_Nk, ids_Nk

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        dx, d_weights, _ = grads
        ctx.part.begin_gradients(dx, d_weights)
        return _stand_in(ctx.shapes[0], dx), _stand_in(ctx.shapes[1], d_weights), None


class _Combine(torch.autograd.Function):
    """This rank's results [N, H] -> a stand-in of [T, H]."""

    @staticmethod
    def forward(ctx: Any, partial: Tensor, part: _Part) -> Tensor:
        ctx.part = part
        part.begin_combine(partial)
        return _stand_in(torch.Size((len(part.ids), partial.shape[1])), partial)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return ctx.part.result_gradients(grads[0].shape[1], grads[0].dtype), None


class _Combined(torch.autograd.Function):
    """The stand-in -> the sum over ranks [T, H]."""

    @staticmethod
    def forward(ctx: Any, stand_in: Tensor, part: _Part) -> Tensor:
        ctx.part = part
        return part.combined()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        ctx.part.begin_result_gradients(grads[0])
        return _stand_in(grads[0].shape, grads[0]), None


def _stand_in(shape: torch.Size, like: Tensor) -> Tensor:
    """A tensor of one element that looks like `shape`."""
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
