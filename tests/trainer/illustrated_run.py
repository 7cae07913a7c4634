"""Runs of a tiny model with both towers, on documents with images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.trainer.data.media import illustrated
from tests.trainer.stages.layouts import TOWERS
from tests.trainer.tiny_run import MODEL, tiny_config
from trainer.config.keys import Config, DataConfig
from trainer.run.process import train


def illustrated_config(run: Path, data: DataConfig, model: dict[str, Any] | None = None, **overrides: Any) -> Config:
    """data: of `illustrated.make_mixture`. model: keys of it beside the towers. overrides: as of `tiny_config`."""
    image, signal = illustrated.ids("<IMG_CONTEXT>", "<TS_CONTEXT>")
    vision = replace(TOWERS["vision"], patch_size=16, merge=2, frames=2, channels=3, out_width=MODEL["hidden_size"])
    signals = replace(TOWERS["signals"], out_width=MODEL["hidden_size"])
    towers = {"vision": vision, "image_token": image, "signals": signals, "signal_token": signal, "vocab_size": 312}
    cfg = tiny_config(run, model={**towers, **(model or {})}, **overrides)
    cfg.data = data
    return cfg


def train_illustrated(directory: Path, **model: Any) -> Path:
    """Make the documents in `directory` and train for one step. Returns the run's directory. model: keys of it."""
    with pytest.MonkeyPatch.context() as patch:
        data = illustrated.make_mixture(directory, patch)
    assert train(illustrated_config(directory / "run", data, model, steps=1)) == 0
    return directory / "run"
