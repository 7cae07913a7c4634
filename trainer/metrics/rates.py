"""Rates of training, the peak they are compared with, and the memory a process has held."""

import sys
import time
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


class Rates:
    """Measures training between two writes of the record.

    flops_per_token: model FLOPs of training, forward and backward. peak_flops: FLOP/s of all devices, None if unknown.
    seconds_aside: spent in evaluations since the last write; not the step's. seconds_per_step: smoothed, evaluations
    included.
    """

    def __init__(self, flops_per_token: float, peak_flops: float | None) -> None:
        self._flops_per_token, self._peak_flops = flops_per_token, peak_flops
        self._last_write = time.monotonic()
        self.seconds_aside = 0.0
        self.seconds_per_step = 0.0

    def measure(self, steps: int, tokens: int) -> dict[str, float]:
        """tokens_per_second, flops_per_second and peak_share of the steps since the last call; empty without tokens."""
        now = time.monotonic()
        seconds = max(now - self._last_write, 1e-9)
        training_seconds = max(seconds - self.seconds_aside, 1e-9)
        self._last_write, self.seconds_aside = now, 0.0
        per_step = seconds / steps
        self.seconds_per_step = 0.7 * self.seconds_per_step + 0.3 * per_step if self.seconds_per_step else per_step
        if not tokens:
            return {}
        flops = tokens * self._flops_per_token / training_seconds
        rates = {"tokens_per_second": tokens / training_seconds, "flops_per_second": flops}
        return rates | ({"peak_share": flops / self._peak_flops} if self._peak_flops else {})
