"""Normalisation and patches of signals, in NumPy: shared by the time-series tower and by what prepares its data.

Source: a serving engine's code for the published weights (lmdeploy, interns1_pro_ts.py).

Legend: T steps · C channels · S stride · P = 2 S steps of a patch · n patches.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

LONGEST = 240_000  # steps that the published rule keeps
WIDEST_PATCH = 20_000  # steps: rows of the published table of positions in a patch
EPS = 1e-8  # added by the published rule to a channel's standard deviation

Array = npt.NDArray[np.float64]


def normalised(values: npt.ArrayLike, eps: float = 0.0) -> npt.NDArray[np.float32]:
    """The z-score of each channel over its finite steps, in fp64.

    Args: values: [T, C], real; what is not finite is missing. eps: is added to the standard deviation.
    Returns: [T, C] in fp32. What is missing becomes 0, the channel's mean, and so does a constant channel: its computed
        deviation need not be 0.
    """
    found = np.zeros(np.shape(values)[::-1], np.float32)
    for channel, wide in enumerate(np.asarray(values).T):
        # Contiguous: NumPy adds neighbours pairwise, but the steps of [T, C] one after another.
        steps = np.ascontiguousarray(wide, dtype=np.float64)
        there = np.isfinite(steps)
        kept = steps if there.all() else steps[there]
        if not kept.size or kept.min() == kept.max():
            continue
        # Squares of large or small values leave fp64. A power of two changes no bit of other scores.
        exponent = -int(np.frexp(np.abs(kept).max())[1])
        with np.errstate(over="ignore", invalid="ignore"):
            steps, kept = np.ldexp(steps, exponent), np.ldexp(kept, exponent)
            scaled = (steps - kept.mean()) / (kept.std() + np.ldexp(eps, exponent))
        found[channel] = np.where(there, scaled, 0.0)
    return np.ascontiguousarray(found.T)


def known_rate(rate: float | None, steps: int) -> float:
    """The sampling rate in Hz, or what is published where it is unknown: None, or 0 and below."""
    return rate if rate is not None and rate > 0 else max(steps / 4, 1.0)


def patch_stride(rate: float) -> int:
    """Steps from a patch to the next, 2 to 160: floor(160 / (1 + exp(-rate / 100))^6), in fp32 as published.

    The precision counts: between 1664 and 3673 Hz it is 160 in fp32, but 159 in fp64.
    """
    if not rate > 0:
        raise ValueError(f"a sampling rate of {rate}; use one above 0, in Hz")
    one, hundred = np.float32(1), np.float32(100)
    return int(np.floor(np.float32(160) / (one + np.exp(-np.float32(rate) / hundred)) ** 6))


def patch_count(steps: int, rate: float, stride: int | None = None) -> int:
    """Patches n that the tower encodes; n is even, and at least 2 where published code stops.

    Without a stride they are the published ones: a patch that has no partner is left out, and its last steps with it.
    With one, that patch gets a partner of zeros, so that every step is in a patch.
    """
    used = patch_stride(rate) if stride is None else stride
    n = max(-(-(steps - 2 * used) // used) + 1, 2)
    return n // 2 * 2 if stride is None else -(-n // 2) * 2


def token_count(steps: int, rate: float, stride: int | None = None) -> int:
    """Embeddings that the tower makes of a signal of `steps` steps."""
    return (patch_count(steps, rate, stride) // 2 + 1) // 2


def adapted_stride(steps: int, rate: float, max_tokens: int) -> int:
    """The stride of the sampling rate, or the smallest larger one with which all steps are at most `max_tokens` tokens.

    A token is four strides, and the last patch reaches one beyond them.
    """
    return max(patch_stride(rate), -(-steps // (4 * max_tokens + 1)))
