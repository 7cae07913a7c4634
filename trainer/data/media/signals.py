"""Signals for the time-series tower: how many steps a token has, and the numbers that the tower takes. No torch."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from trainer.data.errors import DataError
from trainer.data.media.readers.recording import Recording, checked
from trainer.model.towers import signal_patches
from trainer.model.towers.signal_patches import LONGEST, WIDEST_PATCH

MODES = ("adapt", "cut")


class PreparedSignal(NamedTuple):
    """The fields of `time_series.Signal`, as an array: values [T, C] fp32, normalised; rate; stride."""

    values: npt.NDArray[np.float32]
    rate: float
    stride: int | None


@dataclass(frozen=True)
class SignalRule:
    """From a recording to the tower's input, the same in training, evaluation and export.

    long: "cut" is the published rule: the first 240,000 steps, with a warning that gives the count left out. "adapt"
        loses nothing: patches and their stride widen, so that a signal of any length is at most `max_tokens` tokens and
        every step is in a patch. A signal that fits has the published stride.
    max_tokens: of "adapt". The default is what 240,000 steps at 1664 Hz or more have, so that longer signals need
        no more memory in the tower.

    In both, channels become z-scores over their finite steps. Missing steps and constant channels become 0. "cut" adds
    1e-8 to the standard deviation, as published; "adapt" adds nothing, so that volts give what microvolts give.
    """

    long: str = "adapt"
    max_tokens: int = 384

    def __post_init__(self) -> None:
        if self.long not in MODES:
            raise DataError(
                f"--signal long={self.long}; use {' or '.join(MODES)}",
                where="--signal long",
                value=self.long,
                allowed=MODES,
            )
        if self.max_tokens < 1:
            raise DataError(
                f"--signal max_tokens={self.max_tokens}; use 1 or more",
                where="--signal max_tokens", value=self.max_tokens, allowed="1 or more",
            )  # fmt: skip

    def stride(self, steps: int, rate: float | None, where: str = "signal") -> int | None:
        """Steps from a patch to the next, None for the published one.

        Raises: DataError for a signal so long that a patch would have more than the tower's 20,000 steps.
        """
        if self.long == "cut":
            return None
        rate = signal_patches.known_rate(rate, steps)
        stride = signal_patches.adapted_stride(steps, rate, self.max_tokens)
        if stride > WIDEST_PATCH // 2:
            longest = (4 * self.max_tokens + 1) * (WIDEST_PATCH // 2)
            raise DataError(
                f"{where}: {steps:,} steps do not fit in --signal max_tokens={self.max_tokens}; cut the signal to "
                f"{longest:,} steps, or use more tokens",
                where=where, value=steps, allowed=longest,
            )  # fmt: skip
        return stride

    def left_out(self, steps: int) -> int:
        """Steps of a signal that are not read."""
        return max(steps - LONGEST, 0) if self.long == "cut" else 0

    def tokens(self, steps: int, rate: float | None, where: str = "signal") -> int:
        """Embeddings that the tower makes of a signal. Raises DataError without steps, or as `stride` does."""
        if steps < 1:
            raise DataError(f"{where}: a signal of {steps} steps", where=where, value=steps, allowed="1 or more")
        kept = steps - self.left_out(steps)
        stride = self.stride(kept, rate, where)
        return signal_patches.token_count(kept, signal_patches.known_rate(rate, kept), stride)

    def prepare(self, recording: Recording, where: str = "signal") -> PreparedSignal:
        """The tower's input. Raises DataError without finite values, for a bad shape, or as `stride` does."""
        recording = checked(recording, where)
        left_out = self.left_out(recording.steps)
        if left_out:
            warnings.warn(
                f"{where}: --signal long=cut leaves out {left_out:,} of {recording.steps:,} steps; adapt keeps them",
                stacklevel=2,
            )
        kept = recording.steps - left_out
        scaled = signal_patches.normalised(recording.values, signal_patches.EPS if self.long == "cut" else 0.0)[:kept]
        return PreparedSignal(
            scaled, signal_patches.known_rate(recording.rate, kept), self.stride(kept, recording.rate, where)
        )
