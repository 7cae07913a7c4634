"""`octavo export`: a training checkpoint as a Hugging Face directory."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trainer.weights.dtypes import DtypeName


def run_export(checkpoint: str, target: str, *, dtype: DtypeName, text_only: bool, shard_gb: float) -> int:
    """Exit code 0, or 1 with one line on stderr. Raises `ConfigError`."""
    from trainer.checkpoint.store import CheckpointError
    from trainer.weights.export import export  # imports torch
    from trainer.weights.hf_files import HuggingFaceError

    began = time.perf_counter()
    progress = _Progress(began)
    try:
        done = export(
            Path(checkpoint),
            Path(target),
            dtype=dtype,
            text_only=text_only,
            shard_bytes=round(shard_gb * 1e9),
            wrote=progress,
        )
    except (HuggingFaceError, CheckpointError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for warning in done.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    parts = f", with {done.carried} tensors of other parts as they were" if done.carried else ""
    print(
        f"{target}: the text model after step {done.step} in {done.dtypes}{parts}; {done.nbytes / 1e9:,.3f} GB in "
        f"{time.perf_counter() - began:,.1f} s"
    )
    return 0


class _Progress:
    """A line a few seconds apart, for a person who waits."""

    def __init__(self, began: float) -> None:
        self.began = self.told = began

    def __call__(self, done: int, total: int) -> None:
        now = time.perf_counter()
        if now - self.told < 5 or done == total:
            return
        self.told = now
        speed = done / (now - self.began)
        print(
            f"{done / 1e9:,.1f} of {total / 1e9:,.1f} GB, {speed / 1e9:.2f} GB/s, {(total - done) / speed:,.0f} s left",
            file=sys.stderr,
        )
