"""The speed of pipelines, where two cores do not decide it.

    python -m tests.bench.pipeline [--sections waits,compute,cpu] [--rounds 3]

waits: four processes whose stages take a fixed time without using a core, their tensors really sent. Wall time of a
step over the time that the schedule takes by its closed form, or by following its actions where it has none.
compute: two processes of one thread. Wall time of a step over the slower stage's own time for its micro-batches plus
the bubble. It needs two free cores.
cpu: CPU-seconds of a step on four processes over those of one process with the same micro-batches, alone and beside
another one, and over those of the four stages without messages. Processes that share caches, and cores with other
programs, take more CPU-seconds for the same arithmetic; the last ratio leaves that out.

Steps that are compared alternate every few seconds in the same processes, because the speed of a core changes with
what others run, and a stage's own time is measured while all stages run.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from parallel.layout import Place
from parallel.mesh import Meshes
from parallel.pipeline.plan import Plan
from parallel.pipeline.private import Stage
from parallel.pipeline.schedule import build_schedule
from parallel.pipeline.timing import StageTimes, step_time
from parallel.world import World, start_world
from tests.distributed.pool import on_ranks
from tests.parallel.pipeline.orders import makespan, orders
from tests.trainer.tiny_run import tiny_config
from trainer.config.keys import Config
from trainer.data.synthetic import open_synthetic
from trainer.objectives.choose import build_objective
from trainer.optim.native import NativeEngine
from trainer.parallelize import build_meshes
from trainer.run.build import build_pipeline, build_stages, ranks_alike
from trainer.run.host_memory import prepare_host_memory
from trainer.run.step import accumulate_gradients

TIMES = StageTimes(0.08, 0.08, 0.08)  # seconds; long beside the delays of a busy machine
PIPELINES = [
    Plan("1f1b", 4, 1),
    Plan("interleaved_1f1b", 4, 2),
    Plan("interleaved_zero_bubble", 4, 1),
    Plan("interleaved_zero_bubble", 4, 2),
    Plan("zbv", 4, 2),
    Plan("dualpipev", 4, 2),
]


# ---- stages that wait


class _Wait(torch.autograd.Function):
    """Passes a tensor on after `forward` seconds, and its gradient after `backward` seconds."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, forward: float, backward: float) -> Tensor:
        time.sleep(forward)
        ctx.seconds = backward
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        time.sleep(ctx.seconds)
        return grads[0], None, None


class WaitingStage(nn.Module):
    """One weight, whose gradient takes a time of its own."""

    def __init__(self, times: StageTimes) -> None:
        super().__init__()
        self.times, self.weight = times, nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        of_input = _Wait.apply(x, self.times.forward, self.times.input_gradient)
        return of_input + _Wait.apply(self.weight, 0.0, self.times.weight_gradient)


def waiting_steps(plan: Plan, micro_batches: int, rounds: int, times: StageTimes) -> list[float]:
    """Wall seconds of each of `rounds` steps after a first one, behind a barrier, on this rank."""
    group = dist.group.WORLD
    assert group is not None
    scale = 1.0 if plan.stages_per_rank == 1 else 0.5  # the same model in twice as many stages
    times = StageTimes(times.forward * scale, times.input_gradient * scale, times.weight_gradient * scale)
    shape = (64, 64)

    def stage(number: int) -> Stage:
        module = WaitingStage(times)

        def run(_: int, x: Tensor | None) -> Tensor:
            y = module(torch.zeros(shape, requires_grad=True) if x is None else x)
            return y.sum().reshape(1) + 0 if number == plan.stages - 1 else y

        return Stage(
            module,
            number,
            plan.stages,
            run,
            group=group,
            device=torch.device("cpu"),
            shape=shape,
            dtype=torch.float32,
        )

    schedule = build_schedule(plan, [stage(number) for number in plan.of_rank(dist.get_rank())], micro_batches)
    found = []
    for number in range(rounds + 1):
        dist.barrier()
        start = time.perf_counter()
        schedule.step(target=torch.arange(micro_batches), return_outputs=False)
        dist.barrier()
        if number:
            found.append(time.perf_counter() - start)
    return found


def expected(plan: Plan, micro_batches: int, times: StageTimes) -> float:
    """Seconds of a step whose messages are free, for stages that together take as long as those of 1F1B."""
    scale = 1 / plan.stages_per_rank
    parts = StageTimes(times.forward * scale, times.input_gradient * scale, times.weight_gradient * scale)
    return step_time(plan, micro_batches, parts) or makespan(orders(plan, micro_batches), parts, plan.stages)


def waits(plan: Plan, micro_batches: int = 8, rounds: int = 3, times: StageTimes = TIMES) -> tuple[float, float]:
    """(wall seconds of the fastest of `rounds` steps, seconds by the schedule's form)."""
    by_rank = on_ranks(plan.ranks, waiting_steps, plan, micro_batches, rounds, times, init=True, timeout_s=120.0)
    return min(map(max, zip(*by_rank, strict=True))), expected(plan, micro_batches, times)


# ---- stages that compute


def config(pp: int, micro_batches: int) -> Config:
    """A model of four equal layers, in which a rank computes for long, and a small head."""
    sizes = {"hidden_size": 256, "expert_width": 128, "num_heads": 8, "num_kv_heads": 4, "head_dim": 32}
    model = {"num_layers": 4, "vocab_size": 64, "positions": "rope", **sizes}
    cfg = tiny_config("unused", model=model, global_batch=2 * micro_batches, micro_batch=2, recompute="full")
    cfg.data.seq_len = 256
    cfg.parallel.pp = pp
    return cfg


class Built:
    """The parts of a run that a step needs."""

    def __init__(self, cfg: Config, world: World) -> None:
        torch.set_num_threads(1)
        prepare_host_memory()
        self.world, self.objective = world, build_objective(cfg.train)
        meshes: Meshes | None = build_meshes(cfg, "cpu") if world.size > 1 else None
        place = meshes.layout.place(world.rank) if meshes else Place()
        alike = ranks_alike(world, meshes)
        plan, self.stages = build_stages(cfg, world, alike, meshes, place, self.objective)
        self.pipeline, _ = build_pipeline(cfg, plan, self.stages, self.objective, alike, meshes)
        stages = list(self.stages.values())
        self.engine = NativeEngine(stages, cfg.optim, world, meshes.shard_group if meshes else None, alike=alike)
        self.engine.prepare()
        stream = open_synthetic(vocab_size=cfg.model.vocab_size, seq_len=cfg.data.seq_len, seed=1).stream
        micro = cfg.train.micro_batch
        self.batches = [stream.batch(first, micro) for first in range(0, cfg.train.global_batch, micro)]
        self.units = sum(batch.num_tokens for batch in self.batches)
        self.number = 0

    def step(self) -> None:
        self.number += 1
        if self.pipeline is not None:
            self.pipeline.accumulate(self.batches, self.units, step=self.number)
        else:
            (model,) = self.stages.values()
            accumulate_gradients(
                model, self.engine, self.objective, self.batches, self.units, self.world, step=self.number
            )
        self.engine.step(self.number, 1000)


class Unconnected:
    """In the place of a schedule: runs the rank's stage on every micro-batch, without the other stages."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage

    def step(self, *, target: Tensor, **_: Any) -> None:
        for number in range(len(target)):
            x = None if self.stage.is_first else torch.randn(self.stage.like.shape, requires_grad=True)
            y = self.stage.run(number, x)
            y.backward(None if self.stage.is_last else torch.zeros_like(y))


@dataclass(frozen=True)
class Seconds:
    """Wall seconds of a step on this rank, and CPU-seconds: of all threads and of the thread that computes."""

    wall: float = 0.0
    cpu: float = 0.0
    thread: float = 0.0


@dataclass(frozen=True)
class Turn:
    """Four steps that follow each other: of the pipeline, of its stages without messages, all at the same time, of the
    whole model on rank 0 while the others sleep, and on ranks 0 and 1 at the same time."""

    pipeline: Seconds
    stages: Seconds
    whole: Seconds
    beside: Seconds


def turns(pp: int, micro_batches: int, rounds: int) -> list[Turn]:
    """`rounds` turns after a first one, on this rank."""
    world = start_world("cpu", 600.0)
    try:
        built = Built(config(pp, micro_batches), world)
        whole = Built(config(1, micro_batches), World()).step if world.rank < 2 else _nothing
        assert built.pipeline is not None
        connected, unconnected = built.pipeline.schedule, Unconnected(built.pipeline.stages[0])
        found = []
        for _ in range(rounds + 1):
            built.pipeline.schedule = connected
            pipeline = _seconds(built.step)
            built.pipeline.schedule = unconnected
            stages = _seconds(built.step)
            alone = _seconds(_nothing if world.rank else whole)
            found.append(Turn(pipeline, stages, alone, _seconds(whole)))
        return found[1:]
    finally:
        world.close()


def _nothing() -> None:
    pass


def _seconds(step: Callable[[], None]) -> Seconds:
    """Times of a step, which starts on all ranks at once."""
    dist.barrier()
    wall, cpu, thread = time.perf_counter(), time.process_time(), time.thread_time()
    step()
    return Seconds(time.perf_counter() - wall, time.process_time() - cpu, time.thread_time() - thread)


def compute(rounds: int, micro_batches: int = 8) -> tuple[float, float]:
    """(wall seconds of a step on two ranks, those of the slower stage without messages plus the bubble), in the turn
    that other processes disturbed least."""
    by_rank = on_ranks(2, turns, 2, micro_batches, rounds, timeout_s=600.0)
    found = []
    for turn in zip(*by_rank, strict=True):
        stage = max(rank.stages.wall for rank in turn)
        found.append((max(rank.pipeline.wall for rank in turn), stage * (micro_batches + 1) / micro_batches))
    return min(found)


@dataclass(frozen=True)
class CpuSeconds:
    """CPU-seconds of a turn on four ranks together: of a step; of its threads that do not compute, which are those of
    gloo; of the stages without messages; of one process alone; and of one process beside another."""

    step: float
    gloo: float
    stages: float
    whole: float
    beside: float


def cpu_seconds(rounds: int, micro_batches: int = 8) -> list[CpuSeconds]:
    """Those of each of `rounds` turns."""
    by_rank = on_ranks(4, turns, 4, micro_batches, rounds, timeout_s=600.0)
    return [
        CpuSeconds(
            sum(rank.pipeline.cpu for rank in turn),
            sum(rank.pipeline.cpu - rank.pipeline.thread for rank in turn),
            sum(rank.stages.thread for rank in turn),
            turn[0].whole.thread,
            (turn[0].beside.thread + turn[1].beside.thread) / 2,
        )
        for turn in zip(*by_rank, strict=True)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sections", default="waits,compute,cpu", help="which to run, by commas")
    parser.add_argument("--rounds", type=int, default=3, help="steps of each, after a first one")
    options = parser.parse_args()
    sections: dict[str, Callable[[], None]] = {
        "waits": lambda: _print_waits(options.rounds),
        "compute": lambda: _print("compute, two ranks: wall seconds", *compute(options.rounds)),
        "cpu": lambda: _print_cpu(options.rounds),
    }
    for name in options.sections.split(","):
        sections[name]()


def _print_waits(rounds: int) -> None:
    for plan in PIPELINES:
        name = f"waits, {plan.schedule} with {plan.stages_per_rank} stage(s) a rank: wall seconds"
        _print(name, *waits(plan, rounds=rounds))


def _print_cpu(rounds: int) -> None:
    found = cpu_seconds(rounds)
    for name, pair in (
        ("four ranks over one process", lambda turn: (turn.step, turn.whole)),
        ("one process beside another over it alone", lambda turn: (turn.beside, turn.whole)),
        ("four ranks over one process beside another", lambda turn: (turn.step, turn.beside)),
        ("four ranks over their stages without messages", lambda turn: (turn.step, turn.stages)),
        ("their stages without messages over one process", lambda turn: (turn.stages, turn.whole)),
        ("gloo's threads over four ranks", lambda turn: (turn.gloo, turn.step)),
    ):
        middle = sorted(map(pair, found), key=lambda of: of[0] / of[1])[len(found) // 2]  # the median ratio
        _print(f"CPU-seconds, {name}", *middle)


def _print(name: str, found: float, bound: float) -> None:
    print(f"{name:<72}{found:8.3f}{bound:8.3f}  {found / bound:5.2f}", flush=True)


if __name__ == "__main__":
    main()
