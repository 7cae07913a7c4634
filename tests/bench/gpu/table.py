"""Results as a table in Markdown and as JSON, with the machine they were measured on."""

from __future__ import annotations

import ctypes
import importlib.metadata
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch

from tests.bench.gpu.clock import Timing
from trainer.metrics.rates import device_peak

# TFLOP/s that are aimed at on an H100, forward and backward, from 8192 tokens on. What a layer in FP8 is to reach is a
# multiple of what ours in bf16 reached in the same table.
LARGE = 8192
GEMM_BF16, GEMM_FP8, LAYER_BF16, LAYER_FP8_OVER_BF16 = 590.0, 1050.0, 510.0, 1.3


@dataclass(frozen=True)
class Row:
    """One arm at one size. flops: forward, of the work that every arm has to do: padding does not count. distance: how
    far its results are from the first arm's, relative. skipped: why there are no figures."""

    section: str
    arm: str
    tokens: int
    skew: str
    flops: int
    timing: Timing | None = None
    distance: float | None = None
    target: float | None = None  # TFLOP/s, forward and backward
    skipped: str | None = None

    @property
    def forward_tflops(self) -> float | None:
        return self.flops / self.timing.forward_ms / 1e9 if self.timing else None

    @property
    def both_tflops(self) -> float | None:
        return 3 * self.flops / self.timing.both_ms / 1e9 if self.timing else None

    @property
    def weight_gradients_tflops(self) -> float | None:
        """Both weights' gradients have as many FLOPs as the forward pass."""
        ms = self.timing.weight_gradients_ms if self.timing else None
        return self.flops / ms / 1e9 if ms else None

    def record(self) -> dict[str, Any]:
        timing = vars(self.timing) if self.timing else {}
        rates = {
            "forward_tflops": self.forward_tflops,
            "both_tflops": self.both_tflops,
            "weight_gradients_tflops": self.weight_gradients_tflops,
        }
        plain = {key: value for key, value in vars(self).items() if key != "timing"}
        return {**plain, **timing, **rates}


COLUMNS = (
    "tokens", "routing", "arm", "forward ms", "TFLOP/s", "forward + backward ms", "TFLOP/s", "of target",
    "weight gradients, TFLOP/s", "host syncs",
    "GB more", "off by",
)  # fmt: skip


def header() -> str:
    return "| " + " | ".join(COLUMNS) + " |\n" + "|---" * len(COLUMNS) + "|"


def line(row: Row) -> str:
    """The format of a row with figures."""
    timing, both = row.timing, row.both_tflops
    assert timing is not None
    assert both is not None
    cells = [
        str(row.tokens),
        row.skew,
        row.arm,
        f"{timing.forward_ms:.2f}",
        f"{row.forward_tflops:.0f}",
        f"{timing.both_ms:.2f}",
        f"{both:.0f}",
        f"{both / row.target:.0%} of {row.target:.0f}" if row.target else "",
        "" if row.weight_gradients_tflops is None else f"{row.weight_gradients_tflops:.0f}",
        "" if timing.host_syncs is None else f"{timing.host_syncs}",
        "" if timing.extra_bytes is None else f"{timing.extra_bytes / 1e9:.1f}",
        "" if row.distance is None else f"{row.distance:.1e}",
    ]
    return "| " + " | ".join(cells) + " |"


def not_run(rows: Iterable[Row]) -> list[str]:
    """A line for each reason why arms of `rows` have no figures, with these arms."""
    by_reason: dict[str, dict[str, None]] = {}  # dicts for their order
    for row in rows:
        if row.skipped:
            by_reason.setdefault(row.skipped, {})[row.arm] = None
    rest = " |" * (len(COLUMNS) - 2)
    return [f"| not run | | {'; '.join(arms)}: {reason}{rest}" for reason, arms in by_reason.items()]


def with_fp8_targets(rows: list[Row]) -> list[Row]:
    """The rows of one size of a layer, FP8's with its multiple of what our bf16 reached as target: of the bf16 arm with
    the same words after its precision, where there is one."""
    rates = {row.arm: row.both_tflops for row in rows if row.timing}

    def target(row: Row) -> float | None:
        if not row.arm.startswith("ours") or "fp8" not in row.arm:
            return row.target
        alike = f"ours bf16, {row.arm.partition(', ')[2]}"
        rate = rates.get(alike, rates.get("ours bf16"))
        return LAYER_FP8_OVER_BF16 * rate if rate else None

    return [replace(row, target=target(row)) for row in rows]


def machine(device: torch.device) -> dict[str, str]:
    """The device and the versions of everything that multiplies on it."""
    versions = {"torch": torch.__version__, "CUDA": torch.version.cuda or "none"}
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        peak = device_peak(name, "bf16")
        told = f"{peak / 1e12:.0f} TFLOP/s" if peak else "not known"
        versions |= {"device": name, "its bf16 peak": told, "cuBLASLt": _cublas_version()}
    else:
        versions["device"] = "CPU"
    for package in ("triton", "transformer_engine"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def _cublas_version() -> str:
    """As the library that torch has loaded says it: 130600 is 13.6.0."""
    for name in ("libcublasLt.so.13", "libcublasLt.so.12"):
        try:
            version = ctypes.CDLL(name).cublasLtGetVersion
        except (OSError, AttributeError):
            continue
        version.restype = ctypes.c_size_t
        return str(version())
    return "unknown"
