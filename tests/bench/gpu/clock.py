"""Times a step in turns with its peers, from a cold cache, between CUDA events; counts what its host waits for."""

from __future__ import annotations

import math
import statistics
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

Step = Callable[[], object]

# Five times the 50 MB of an H100's L2. Writing it takes about 0.1 ms, in which the host can queue the step behind it,
# as it queues a training step behind the one before.
FLUSH_BYTES = 256 << 20
SYNC_WARNING = "synchronizing CUDA operation"


class Arm(NamedTuple):
    """One way to do the work: a forward pass that keeps what its backward needs, the two together, and the numbers that
    they make, by name: None where they are not to be those of other arms, else to be so within a relative
    `tolerance`. weight_gradients: these alone, where they can be had alone."""

    forward: Step
    both: Step
    results: Callable[[], dict[str, Tensor]] | None
    tolerance: float = 2e-2  # of two ways to compute in bf16
    weight_gradients: Step | None = None


class Skipped(NamedTuple):
    """An arm that cannot run here, and why, in one clause."""

    reason: str


Made = TypeVar("Made")


def tried(make: Callable[[], Made]) -> Made | Skipped:
    """Return what `make` makes, or why it failed: a peer that breaks takes no other's figures with it."""
    try:
        return make()
    except Exception as error:
        return Skipped(f"FAILED: {type(error).__name__}: {' '.join(str(error).split())[:200]}")


def tolerance_of(precision: str) -> float:
    """For arms that are compared with one in bf16: e4m3 rounds each operand by 2.6 % on average, and gradients may be
    e5m2, which rounds twice as coarsely."""
    return 0.15 if "fp8" in precision else Arm._field_defaults["tolerance"]


def distance(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """The largest over the results of ||found - expected|| / ||expected||; infinite where there is a nan, or a result
    is missing."""
    if found.keys() != expected.keys():
        return math.inf
    worst = 0.0
    for name, value in expected.items():
        off = torch.linalg.vector_norm(found[name] - value, dtype=torch.float32)
        relative = float(off / torch.linalg.vector_norm(value, dtype=torch.float32))
        worst = max(worst, relative if math.isfinite(relative) else math.inf)
    return worst


@dataclass(frozen=True)
class Timing:
    """Milliseconds are medians over the rounds. Of a forward and backward pass: the times the host waited for the
    device, and the bytes of the GPU that it took beyond the start; None on a CPU, where neither means anything.
    """

    forward_ms: float
    both_ms: float
    host_syncs: int | None
    extra_bytes: int | None
    weight_gradients_ms: float | None = None


class Clock:
    """Times steps on one device; on a CPU, where only tests run this, by the clock."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        on_gpu = device.type == "cuda"
        self._flushed = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device=device) if on_gpu else None

    def milliseconds(self, step: Step) -> float:
        if self._flushed is None:
            begin = time.perf_counter()
            step()
            return 1e3 * (time.perf_counter() - begin)
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(self.device)
        self._flushed.zero_()
        start.record()
        step()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)

    def take_turns(self, steps: Mapping[str, Step], rounds: int) -> dict[str, float]:
        """Median milliseconds of each. Every round runs them all, each round starting one further on, so that the
        clock rates and the temperature of a moment fall on all alike; two rounds come before those that count."""
        times: dict[str, list[float]] = {name: [] for name in steps}
        names = list(steps)
        for number in range(rounds + 2):
            first = number % max(len(names), 1)
            for name in names[first:] + names[:first]:
                took = self.milliseconds(steps[name])
                if number >= 2:
                    times[name].append(took)
        return {name: statistics.median(taken) for name, taken in times.items()}

    def compare(self, arms: Mapping[str, Arm], rounds: int) -> dict[str, Timing]:
        """Forward, forward with backward, and weight gradients alone, of all the arms in turns."""
        syncs, extra = {}, {}
        for name, arm in arms.items():
            arm.both()  # compiles, builds handles, takes workspaces
            extra[name] = self.extra_bytes(arm.both)
            syncs[name] = self.host_syncs(arm.both)
        steps = {f"{name}/forward": arm.forward for name, arm in arms.items()}
        steps |= {f"{name}/both": arm.both for name, arm in arms.items()}
        steps |= {f"{name}/weights": arm.weight_gradients for name, arm in arms.items() if arm.weight_gradients}
        ms = self.take_turns(steps, rounds)
        return {
            name: Timing(ms[f"{name}/forward"], ms[f"{name}/both"], syncs[name], extra[name], ms.get(f"{name}/weights"))
            for name in arms
        }

    def host_syncs(self, step: Step) -> int | None:
        """Times that torch made the host wait for the device in one call: it warns of each. What a library does behind
        torch's back (cudaStreamSynchronize in an extension) is not seen."""
        if self._flushed is None:
            return None
        torch.cuda.synchronize(self.device)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")  # else each place in the code would warn once
            torch.cuda.set_sync_debug_mode("warn")
            try:
                step()
            finally:
                torch.cuda.set_sync_debug_mode("default")
        return sum(SYNC_WARNING in str(warning.message) for warning in caught)

    def extra_bytes(self, step: Step) -> int | None:
        if self._flushed is None:
            return None
        torch.cuda.synchronize(self.device)
        before = torch.cuda.memory_allocated(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        step()
        torch.cuda.synchronize(self.device)
        return torch.cuda.max_memory_allocated(self.device) - before
