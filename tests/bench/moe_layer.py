"""One mixture-of-experts layer, forward and backward, on eight gloo processes: ways to bring tokens to experts.

    python -m tests.bench.moe_layer [--shapes toy,long,pairs,wide,deep] [--rounds 7] [--quick] [--json FILE]

Every arm is the same grouped router (its gradient included), the same tokens and the same experts; only the dispatcher
differs: ours by all-gather in both modes of its combine, our all-to-all, and Megatron-core's all-to-all dispatcher with
our experts behind it (their matmuls alone: it has sorted the rows). One more arm is Megatron's dispatcher with its
own SequentialMLP, as shipped. The bounds are timed in the same rounds: the experts alone on the same rows, and each
arm's collectives alone, issued again as they were recorded.

Each process has one thread. The arms take turns round by round; wall time is from the first process's start behind a
barrier to the last one's end, CPU time is summed over the processes, figures are medians of the rounds. What an arm
sends and what it would make a GPU's host wait for is counted in a step of its own, by one rule for all (`Counted`).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from parallel.dispatch.all_gather import AllGatherDispatch
from parallel.dispatch.all_to_all import AllToAllDispatch
from parallel.dispatch.base import Dispatcher, RowOrder
from parallel.groups import map_groups
from parallel.simulate import CollectiveLog
from tests.bench.step import cpu_name, median_ratio
from tests.distributed.pool import on_ranks
from trainer.config.model import ModelConfig
from trainer.model.moe import MoE
from trainer.run.host_memory import prepare_host_memory

EP = GROUPS = 8
Step = Callable[[], Any]


@dataclass
class Shape:
    hidden: int
    width: int
    tokens: int  # on each rank
    per_token: int = 8
    experts: int = 64

    def config(self) -> ModelConfig:
        return ModelConfig(
            vocab_size=8, hidden_size=self.hidden, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=8,
            num_experts=self.experts, expert_width=self.width, router_groups=GROUPS, experts_per_token=self.per_token,
        )  # fmt: skip


# toy: what a rank of `recipe=toy_ep8` has. long: more tokens. pairs: two experts of each group for a token, where one
# copy of it does for both. wide: a quarter of the 1T model's hidden size through narrow experts, so that the exchange
# weighs most. deep: the same through wider experts.
SHAPES = {
    "toy": Shape(256, 64, 256),
    "long": Shape(256, 64, 1024),
    "pairs": Shape(256, 64, 256, per_token=16),
    "wide": Shape(1024, 64, 512),
    "deep": Shape(1024, 256, 512),
}

REDUCE_SCATTER, FIXED_ORDER, ALL_TO_ALL = "all-gather, reduce-scatter", "all-gather, fixed order", "all-to-all"
MEGATRON, SHIPPED = "Megatron's, our experts", "Megatron's, its experts"
EXPERTS, ITS_EXPERTS = "our experts alone", "its experts alone"


class Layer:
    """A rank's part of the layer and its tokens, with every dispatcher that there is."""

    def __init__(self, shape: Shape, alone: dist.ProcessGroup) -> None:
        from tests.megatron_shim import MegatronDispatch, MegatronExperts, config_of, groups_of

        self.shape, group = shape, dist.group.WORLD
        assert group is not None
        rank, placement = group.rank(), map_groups(GROUPS, EP)
        generator = torch.Generator().manual_seed(0)
        self.moe = MoE(shape.config())
        self.moe.router.weight = nn.Parameter(torch.randn(shape.experts, shape.hidden, generator=generator))
        generator.manual_seed(1 + rank)
        here = shape.experts // EP
        w13 = torch.randn(here, 2, shape.width, shape.hidden, generator=generator) * shape.hidden**-0.5
        w2 = torch.randn(here, shape.hidden, shape.width, generator=generator) * shape.width**-0.5
        self.moe.experts.w13, self.moe.experts.w2 = nn.Parameter(w13), nn.Parameter(w2)
        self.x = torch.randn(shape.tokens, shape.hidden, generator=generator).requires_grad_()
        self.dy = torch.randn(shape.tokens, shape.hidden, generator=generator)
        config, groups = (
            config_of(shape.hidden, shape.width, shape.experts, shape.per_token, ep=EP),
            groups_of(group, alone),
        )
        self.megatron = MegatronDispatch(config, groups)
        self.its_experts = MegatronExperts(config, groups, w13, w2)
        self.dispatchers: dict[str, Dispatcher] = {
            REDUCE_SCATTER: AllGatherDispatch(group, placement, combine="reduce_scatter"),
            FIXED_ORDER: AllGatherDispatch(group, placement, combine="fixed_order"),
            ALL_TO_ALL: AllToAllDispatch(group),
        }

    def steps(self) -> dict[str, Step]:
        made: dict[str, Step] = {
            name: lambda dispatcher=dispatcher: self.step(dispatcher) for name, dispatcher in self.dispatchers.items()
        }
        made[MEGATRON] = lambda: self.megatron_step(self._our_experts)
        made[SHIPPED] = lambda: self.megatron_step(self.its_experts)
        return {**made, EXPERTS: self.experts_step(), ITS_EXPERTS: self.its_experts_step()}

    def step(self, dispatcher: Dispatcher) -> Tensor:
        self._clear()
        self.moe.dispatcher = dispatcher
        y, _ = self.moe(self.x)
        y.backward(self.dy)
        return y.detach()

    def megatron_step(self, experts: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
        self._clear()
        ids, weights, _ = self.moe.router(self.x)
        y = self.megatron.on_rows(self.x, ids, weights, self.shape.experts, experts)
        y.backward(self.dy)
        return y.detach()

    def _our_experts(self, rows: Tensor, counts: Tensor, weights: Tensor) -> Tensor:
        """Without the gather and the sum around them; autograd's own backward is the fastest there is for that."""
        mine, ends = self.moe.experts, counts.cumsum(0).to(torch.int32)
        gate, up = F.grouped_mm(rows, mine.w13.flatten(1, 2).transpose(1, 2), offs=ends).chunk(2, dim=-1)
        return F.grouped_mm(F.silu(gate) * up * weights.unsqueeze(1), mine.w2.transpose(1, 2), offs=ends)

    def experts_step(self) -> Step:
        """Our experts on the rows that the all-gather brings."""
        x, ids, weights, dy = self._gathered()

        def step() -> None:
            self._clear()
            y = self.moe.experts(x, weights, RowOrder(ids, self.shape.experts // EP))
            torch.autograd.backward(y, dy)

        return step

    def its_experts_step(self) -> Step:
        """SequentialMLP on the same rows, sorted by expert already."""
        x, ids, weights, dy = self._gathered()
        order = RowOrder(ids, self.shape.experts // EP)
        rows, row_weights = x[order.token_of_row].detach().requires_grad_(), weights.flatten()[order.slot_of_row]
        row_weights = row_weights.detach().requires_grad_()
        counts, dy = order.offsets.diff(prepend=order.offsets.new_zeros(1)), dy[order.token_of_row]

        def step() -> None:
            self._clear()
            rows.grad = row_weights.grad = None
            self.its_experts(rows, counts, row_weights).backward(dy)

        return step

    def _gathered(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """All ranks' tokens: x [N, H]; ids and weights [N, k] of the slots that are this rank's; dy [N, H]."""
        with torch.no_grad():
            ids, weights, _ = self.moe.router(self.x)
        rank, here = dist.get_rank(), self.shape.experts // EP
        gathered = []
        for part in (self.x.detach(), ids, weights, self.dy):
            gathered.append(part.new_empty(EP * len(part), part.shape[1]))
            dist.all_gather(list(gathered[-1].chunk(EP)), part)
        x, ids, weights, dy = gathered
        mine = map_groups(GROUPS, EP).slots(rank, self.shape.per_token)
        return x.requires_grad_(), ids[:, mine] - rank * here, weights[:, mine].contiguous().requires_grad_(), dy

    def _clear(self) -> None:
        self.x.grad = None
        self.moe.zero_grad(set_to_none=True)
        self.its_experts.zero_grad()


class _OnHost(Tensor):
    """A tensor that a GPU run has copied to the host; what is computed from it stays there."""


class Counted(TorchDispatchMode):
    """Counts what a step would make the host of a GPU wait for, and keeps its collectives to issue them again.

    Attributes: copies: tensors copied from the device to the host. waits: times the host waits for the device: to
    read a value (`tolist`, `item`), because the size of a result depends on data (`masked_select`, `nonzero`), or
    because Megatron's dispatcher says so (`synchronize`). What the CPU's experts read does not count: the GPU's do not.
    """

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.copies = self.waits = 0
        self.calls: list[tuple[Any, tuple[Any, ...]]] = []
        self.layer = layer
        self.in_experts = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if func.namespace == "c10d":
            self.calls.append((func, args))
        elif name in ("masked_select", "nonzero", "_local_scalar_dense") and not self.in_experts:
            self.waits += 1
            self.copies += name == "_local_scalar_dense"
        return func(*args, **(kwargs or {}))

    @contextmanager
    def counting(self) -> Iterator[None]:
        from tests import megatron_shim

        genuine_tolist, genuine_copy = Tensor.tolist, megatron_shim.token_dispatcher.maybe_move_tensor_to_cpu

        def tolist(tensor: Tensor) -> Any:
            if not isinstance(tensor, _OnHost) and not self.in_experts:
                self.copies += 1
                self.waits += 1
            return genuine_tolist(tensor)

        def copy(tensor: Any, as_numpy: bool = False, record_stream: bool = False) -> Any:
            if not isinstance(tensor, Tensor):
                return tensor
            self.copies += 1
            copied = genuine_copy(tensor, as_numpy)
            return copied if as_numpy else copied.as_subclass(_OnHost)

        def synchronize(_: Any) -> None:
            self.waits += 1

        inner = self.layer.megatron.inner
        indices = ("sort_input_by_local_experts", "restore_output_by_local_experts")  # made on the host
        on_host = {name: getattr(inner, name).as_subclass(_OnHost) for name in indices}
        hooks = [
            self.layer.moe.experts.register_forward_pre_hook(lambda *_: setattr(self, "in_experts", True)),
            self.layer.moe.experts.register_forward_hook(lambda *_: setattr(self, "in_experts", False)),
        ]
        patches = (
            mock.patch.object(Tensor, "tolist", tolist),
            mock.patch.object(megatron_shim.token_dispatcher, "maybe_move_tensor_to_cpu", copy),
            mock.patch.object(megatron_shim.Stream, "synchronize", synchronize),
            mock.patch.multiple(inner, **on_host),
        )
        try:
            with patches[0], patches[1], patches[2], patches[3], self:
                yield
        finally:
            for hook in hooks:
                hook.remove()

    def again(self) -> None:
        """The recorded collectives and nothing else."""
        for func, args in self.calls:
            result = func(*args)
            (result[-1] if isinstance(result, tuple) else result).wait()


@dataclass
class Traffic:
    """Figures of one step on one rank."""

    collectives: int
    sent: int  # bytes that leave the rank
    copies: int
    waits: int


def measure(shape: Shape, rounds: int, steps: int) -> tuple[dict[str, Traffic], dict[str, list[tuple[float, ...]]]]:
    """One rank's side: what each arm sends and waits for; start, end and CPU-seconds of every round of every arm."""
    from tests.megatron_shim import on_cpu

    prepare_host_memory()
    alone, _ = dist.new_subgroups(1)
    with on_cpu():
        layer = Layer(shape, alone)
        arms = layer.steps()
        check_that_arms_agree(layer, arms)
        traffic: dict[str, Traffic] = {}
        for name in (*layer.dispatchers, MEGATRON, SHIPPED):
            with CollectiveLog(()) as log, (counted := Counted(layer)).counting():
                arms[name]()
            traffic[name] = Traffic(len(log.calls), sum(c.sent for c in log.calls), counted.copies, counted.waits)
            if name != SHIPPED:  # it makes the same collectives
                arms[f"collectives of {name}"] = counted.again
        times: dict[str, list[tuple[float, ...]]] = {name: [] for name in arms}
        names = list(arms)
        for number in range(rounds + 1):
            for name in names[number % len(names) :] + names[: number % len(names)]:
                dist.barrier()
                start, cpu = time.monotonic(), time.process_time()
                for _ in range(steps):
                    arms[name]()
                end, cpu = time.monotonic(), time.process_time() - cpu
                if number:  # the first round warms up
                    times[name].append((start, end, cpu / steps))
    return traffic, times


def check_that_arms_agree(layer: Layer, arms: dict[str, Step]) -> None:
    """Two steps of each, which warms them up, too."""
    results = {}
    for name in (*layer.dispatchers, MEGATRON, SHIPPED):
        arms[name]()
        y = arms[name]()
        results[name] = (y, layer.x.grad, layer.moe.router.weight.grad)
    for name, found in results.items():
        for a, b in zip(found, results[SHIPPED], strict=True):
            assert (a - b).norm() <= 1e-5 * b.norm(), name


COLUMNS = [
    "shape", "dispatcher", "wall ms", "CPU ms", "its collectives alone, wall ms", "against Megatron's, wall", "CPU",
    "collectives", "MB sent a rank", "copies to the host", "waits of the host",
]  # fmt: skip


def report(name: str, shape: Shape, rounds: int, steps: int) -> dict[str, Any]:
    by_rank = on_ranks(EP, measure, shape, rounds, steps, init=True, timeout_s=1200.0)
    traffic, times = by_rank[0][0], [ranks[1] for ranks in by_rank]
    wall, cpu = {}, {}
    for arm in times[0]:
        turns = list(zip(*(rank[arm] for rank in times), strict=True))  # of each round, every rank's
        wall[arm] = [1e3 * (max(t[1] for t in turn) - min(t[0] for t in turn)) / steps for turn in turns]
        cpu[arm] = [1e3 * sum(t[2] for t in turn) for turn in turns]
    for arm, counted in traffic.items():
        bare = wall.get(f"collectives of {arm}", wall[f"collectives of {MEGATRON}"])
        cells = [
            name,
            arm,
            f"{statistics.median(wall[arm]):.0f}",
            f"{statistics.median(cpu[arm]):.0f}",
            f"{statistics.median(bare):.0f}",
            f"{median_ratio(wall[MEGATRON], wall[arm]):.2f}x",
            f"{median_ratio(cpu[MEGATRON], cpu[arm]):.2f}x",
            f"{counted.collectives}",
            f"{counted.sent / 1e6:.2f}",
            f"{counted.copies}",
            f"{counted.waits}",
        ]
        print("| " + " | ".join(cells) + " |", flush=True)
    for arm in (EXPERTS, ITS_EXPERTS):
        cells = [name, arm, f"{statistics.median(wall[arm]):.0f}", f"{statistics.median(cpu[arm]):.0f}"]
        print("| " + " | ".join(cells) + " |" + " |" * (len(COLUMNS) - len(cells)), flush=True)
    return {"wall_ms": wall, "cpu_ms": cpu, "traffic": {arm: asdict(value) for arm, value in traffic.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default=",".join(SHAPES))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=1, help="steps per arm and round")
    parser.add_argument("--quick", action="store_true", help="the toy's shape only, 3 rounds of 1 step")
    parser.add_argument("--json", type=Path, help="write every round's figures there")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    if args.quick:
        args.shapes, args.rounds, args.steps = "toy", 3, 1
    print(
        f"{cpu_name()}, {os.cpu_count()} cores, {EP} gloo processes of 1 thread, torch {torch.__version__}, fp32, "
        f"medians of {args.rounds} rounds"
    )
    print("| " + " | ".join(COLUMNS) + " |")
    print("|---" * len(COLUMNS) + "|")
    results = {name: report(name, SHAPES[name], args.rounds, args.steps) for name in args.shapes.split(",")}
    if args.json:
        args.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    from tests.bench import moe_layer  # the workers find its functions under this name, not under __main__

    moe_layer.main()
