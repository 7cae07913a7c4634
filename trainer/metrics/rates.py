"""Rates of training, the peak they are compared with, and the memory a process has held."""

import sys
import time
from collections import deque
from pathlib import Path

# Dense peaks in TFLOP/s from NVIDIA data sheets, no sparsity: (part of the name that torch gives the GPU, bf16
# tensor cores, fp32 without TF32). The first match wins, so that longer names come first.
PEAK_TFLOPS = (
    ("GB200", 2500.0, 80.0),
    ("B200", 2250.0, 75.0),
    ("GH200", 989.4, 66.9),
    ("H200 NVL", 835.5, 60.0),
    ("H200", 989.4, 66.9),
    ("H100 NVL", 835.5, 60.0),
    ("H100 PCIe", 756.5, 51.2),
    ("H100", 989.4, 66.9),
    ("H800 PCIe", 756.5, 51.2),
    ("H800", 989.4, 66.9),
    ("H20", 148.0, 44.0),
    ("A100", 312.0, 19.5),
    ("A800", 312.0, 19.5),
    ("L40S", 362.1, 91.6),
    ("L4", 121.0, 30.3),
)


def device_peak(name: str, compute: str) -> float | None:
    """Dense peak of one device in FLOP/s, or None where it is not known: CPUs, other GPUs and slices (MIG) of a GPU.

    name: as torch.cuda.get_device_name() gives it. compute: "bf16" or "fp32".
    """
    words = name.replace("-", " ").split()
    if "MIG" in words:
        return None
    for part, bf16, fp32 in PEAK_TFLOPS:
        if all(word in words for word in part.split()):
            return (bf16 if compute == "bf16" else fp32) * 1e12
    return None


def peak_memory() -> int:
    """Bytes this process has held at most: allocated on its GPU if it has one, else resident (RSS); 0 if unknown."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return int(torch.cuda.max_memory_allocated())
    try:
        # not getrusage: its ru_maxrss starts from the parent's, which under torchrun is a whole torch
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        import resource
    except ImportError:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


RECENT = 50  # steps whose mean the time left is computed from


class Rates:
    """Measures training between two writes of the record, and the time that the remaining steps will take.

    flops_per_token: model FLOPs of training, forward and backward, of the text model. peak_flops: FLOP/s of all
        devices, None if unknown.
    """

    def __init__(self, flops_per_token: float, peak_flops: float | None) -> None:
        self._flops_per_token, self._peak_flops = flops_per_token, peak_flops
        self._started = self._last_write = self._last_step = time.monotonic()
        self._aside = self._aside_of_write = self._aside_of_step = 0.0
        self._counted = 0  # steps since this start
        self._recent: deque[float] = deque(maxlen=RECENT)  # seconds of each
        self._of_write = 0.0  # seconds a step before any step is counted

    def wait(self, seconds: float) -> None:
        """Leave `seconds` out of the steps: an evaluation, for which training waited."""
        self._aside += seconds
        self._aside_of_write += seconds
        self._aside_of_step += seconds

    def count_step(self) -> None:
        """Note that a step is done, or on a GPU that its work is queued."""
        now = time.monotonic()
        self._counted += 1
        if self._counted == 2:
            self._recent.clear()  # the first step also compiles, and fills caches
        self._recent.append(max(now - self._last_step - self._aside_of_step, 0.0))
        self._last_step, self._aside_of_step = now, 0.0

    def seconds_left(self, steps: int) -> float:
        """Seconds that `steps` more steps will take, with as many evaluations on the way as so far."""
        if not self._counted:
            return steps * self._of_write
        return steps * (sum(self._recent) / len(self._recent) + self._aside / self._counted)

    def seconds(self) -> float:
        """Seconds since this start."""
        return time.monotonic() - self._started

    def measure(self, steps: int, tokens: int, tower_flops: float = 0.0) -> dict[str, float]:
        """tokens_per_second, flops_per_second and peak_share of the steps since the last call; empty without tokens.

        tower_flops: model FLOPs of the images and signals of these steps."""
        now = time.monotonic()
        seconds = max(now - self._last_write, 1e-9)
        training_seconds = max(seconds - self._aside_of_write, 1e-9)
        self._last_write, self._aside_of_write = now, 0.0
        self._of_write = seconds / steps
        if not tokens:
            return {}
        flops = (tokens * self._flops_per_token + tower_flops) / training_seconds
        rates = {"tokens_per_second": tokens / training_seconds, "flops_per_second": flops}
        return rates | ({"peak_share": flops / self._peak_flops} if self._peak_flops else {})
