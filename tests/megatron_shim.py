"""Megatron-core's router, all-to-all dispatcher and experts on CPU processes: the peer of tests and benchmarks.

Version 0.16.1 asks `torch.cuda` for streams and the current device even where every tensor is on the CPU. `on_cpu()`
answers for it; everything else is Megatron's own code. Import this module in worker processes only.

Legend: T tokens on this rank · E experts over all ranks · e = E / ep experts here · R rows here · I expert width.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor, nn

from parallel.dispatch.base import RowOrder, RunExperts, _Sorted

# Two things that Megatron's import would cost every worker for nothing: torch.compile loads the inductor (2 CPU-s) to
# decorate functions that run here as they are, and wandb (1 CPU-s) is an option of its inference engine.
_had_wandb = "wandb" in sys.modules
sys.modules.setdefault("wandb", None)  # None makes the import fail, as if not installed
with mock.patch.object(torch, "compile", lambda function, **_: function), warnings.catch_warnings():
    warnings.simplefilter("ignore")  # that Transformer Engine and Apex are not installed
    from megatron.core.process_groups_config import ProcessGroupCollection
    from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
    from megatron.core.transformer.mlp import MLPSubmodules
    from megatron.core.transformer.moe import moe_utils, token_dispatcher
    from megatron.core.transformer.moe.experts import SequentialMLP
    from megatron.core.transformer.moe.router import TopKRouter
    from megatron.core.transformer.transformer_config import TransformerConfig
if not _had_wandb:
    del sys.modules["wandb"]

# rows sorted by expert [R, H], rows of each expert [e], routing weight of each row [R] -> [R, H]
RowExperts = Callable[[Tensor, Tensor, Tensor], Tensor]


class Stream:
    """A CUDA stream, and an event on it: on a CPU everything has happened when a call returns."""

    def wait_stream(self, other: Stream) -> None:
        pass

    def synchronize(self) -> None:
        pass

    def record_event(self) -> Stream:
        return self


def _to_host(tensor: object, as_numpy: bool = False, record_stream: bool = False) -> object:
    """Megatron's device-to-host copy; its own does nothing for a CPU tensor, not even the conversion."""
    if not isinstance(tensor, Tensor):
        return tensor
    host = tensor.cpu()
    return host.numpy() if as_numpy else host


@contextmanager
def on_cpu() -> Iterator[None]:
    """Inside, Megatron-core's modules are built and run on the CPU; outside, torch is as it was."""
    stream = Stream()
    cuda = mock.patch.multiple(
        torch.cuda,
        Stream=Stream,
        current_stream=lambda: stream,
        stream=lambda _: nullcontext(),
        current_device=lambda: "cpu",
    )
    # Left undefined where Transformer Engine is missing, and read all the same.
    gemm = mock.patch.object(moe_utils, "te_general_gemm", None, create=True)
    to_host = mock.patch.object(token_dispatcher, "maybe_move_tensor_to_cpu", _to_host)
    with cuda, gemm, to_host, warnings.catch_warnings():
        # of its own defaults, and that it calls torch by old names
        warnings.filterwarnings("ignore", "full scope is deprecated|.*all_gather_into_tensor. is deprecated")
        yield


def config_of(hidden: int, width: int, experts: int, per_token: int, ep: int = 1) -> TransformerConfig:
    """A SwiGLU layer without biases, in fp32, whose weights are filled in from outside.

    The router's scores are the softmax over the selected logits: the softmax over all, renormalised over the selected.
    """
    return TransformerConfig(
        num_layers=1, hidden_size=hidden, num_attention_heads=1, ffn_hidden_size=width, moe_ffn_hidden_size=width,
        num_moe_experts=experts, expert_model_parallel_size=ep, moe_router_topk=per_token,
        moe_router_pre_softmax=False, moe_router_load_balancing_type="none", moe_router_dtype="fp32",
        moe_token_dispatcher_type="alltoall", gated_linear_unit=True, activation_func=nn.functional.silu,
        add_bias_linear=False, use_cpu_initialization=True, perform_initialization=False,
    )  # fmt: skip


def groups_of(ep: dist.ProcessGroup, alone: dist.ProcessGroup) -> ProcessGroupCollection:
    """Expert parallelism over the group `ep` and nothing else; `alone` is a group of this rank only."""
    return ProcessGroupCollection(
        ep=ep, tp_ep=ep, expt_tp=alone, expt_dp=alone, tp=alone, cp=alone, tp_cp=alone, tp_dp_cp=alone
    )


def router_of(config: TransformerConfig, groups: ProcessGroupCollection, weight: Tensor) -> TopKRouter:
    """weight: [E, H]. The router takes [T, 1, H] and returns probabilities [T, E] and the selection [T, E] bool."""
    router = TopKRouter(config, groups)
    with torch.no_grad():
        router.weight.copy_(weight)
    return router


class MegatronExperts:
    """`SequentialMLP` with given weights: w13 [e, 2, I, H] (gate, up), w2 [e, H, I]."""

    def __init__(self, config: TransformerConfig, groups: ProcessGroupCollection, w13: Tensor, w2: Tensor) -> None:
        layers = MLPSubmodules(linear_fc1=ColumnParallelLinear, linear_fc2=RowParallelLinear)
        self.module = SequentialMLP(len(w13), config, layers, groups)
        with torch.no_grad():
            for mlp, into, out_of in zip(self.module.local_experts, w13, w2, strict=True):
                mlp.linear_fc1.weight.copy_(into.flatten(0, 1))  # [2 I, H]: first all of the gate, then all of up
                mlp.linear_fc2.weight.copy_(out_of)

    def __call__(self, rows: Tensor, counts: Tensor, weights: Tensor) -> Tensor:
        return self.module(rows, counts, weights)[0]

    def gradients(self) -> tuple[Tensor, Tensor]:
        """In the layout of w13 and w2; zero for an expert that got no row."""
        into, out_of = (
            torch.stack([torch.zeros_like(w) if w.grad is None else w.grad for w in weights])
            for weights in zip(
                *((m.linear_fc1.weight, m.linear_fc2.weight) for m in self.module.local_experts), strict=True
            )
        )
        return into.unflatten(1, (2, -1)), out_of

    def zero_grad(self) -> None:
        self.module.zero_grad(set_to_none=True)


class _SortedRows(RowOrder):
    """The order of rows that are sorted by expert already, each a token of its own."""

    def __init__(self, rows: int, counts: Tensor) -> None:
        row = torch.arange(rows)
        self._built = _Sorted(row, row, row.unsqueeze(1), counts.cumsum(0).to(torch.int32))


class MegatronDispatch:
    """`MoEAlltoAllTokenDispatcher` under Octavo's `Dispatcher` protocol, so that nothing but the dispatcher differs."""

    def __init__(self, config: TransformerConfig, groups: ProcessGroupCollection) -> None:
        here = config.num_moe_experts // groups.ep.size()
        first = groups.ep.rank() * here
        self.inner = token_dispatcher.MoEAlltoAllTokenDispatcher(here, list(range(first, first + here)), config, groups)

    def __call__(self, x: Tensor, ids: Tensor, weights: Tensor, num_experts: int, experts: RunExperts) -> Tensor:
        def on_rows(rows: Tensor, counts: Tensor, row_weights: Tensor) -> Tensor:
            return experts(rows, row_weights.unsqueeze(1), _SortedRows(len(rows), counts))

        return self.on_rows(x, ids, weights, num_experts, on_rows)

    def on_rows(self, x: Tensor, ids: Tensor, weights: Tensor, num_experts: int, experts: RowExperts) -> Tensor:
        """The same with experts that take rows sorted by expert, as Megatron's do."""
        # What its router hands over: dense [T, E] tables.
        routing_map = torch.zeros(len(ids), num_experts, dtype=torch.bool).scatter_(1, ids, True)
        probabilities = weights.new_zeros(len(ids), num_experts).scatter(1, ids, weights)
        inner = self.inner
        rows, row_weights = inner.token_dispatch(*inner.dispatch_preprocess(x, routing_map, probabilities))
        rows, counts, row_weights = inner.dispatch_postprocess(rows, row_weights)
        y = inner.combine_preprocess(experts(rows, counts, row_weights))
        return inner.combine_postprocess(inner.token_combine(y))
