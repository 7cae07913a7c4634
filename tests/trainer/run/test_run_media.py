"""Runs on a mixture with images: read ahead, stopped, and resumed with another number of ranks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.distributed.pool import on_ranks
from tests.trainer.data.media import illustrated
from tests.trainer.stages.layouts import TOWERS
from tests.trainer.tiny_run import MODEL, losses, records, tiny_config
from trainer.config.keys import Config, DataConfig
from trainer.run.process import train

STEPS = 4


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    with pytest.MonkeyPatch.context() as patch:
        return illustrated.make_mixture(tmp_path_factory.mktemp("media"), patch)


def config(directory: Path, data: DataConfig, **overrides: Any) -> Config:
    image, signal = illustrated.ids("<IMG_CONTEXT>", "<TS_CONTEXT>")
    vision = replace(TOWERS["vision"], patch_size=16, merge=2, frames=2, channels=3, out_width=MODEL["hidden_size"])
    signals = replace(TOWERS["signals"], out_width=MODEL["hidden_size"])
    towers = {"vision": vision, "image_token": image, "signals": signals, "signal_token": signal, "vocab_size": 312}
    every = {"steps": STEPS, "global_batch": 8, "micro_batch": 4, "log_every": 1, "schedule": "constant"}
    cfg = tiny_config(directory, model=towers, **{**every, **overrides})
    cfg.data = data
    return cfg


@pytest.mark.slow
def test_images_are_the_same_after_a_stop_and_on_two_ranks(tmp_path, data):
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert train(config(whole, replace(data, workers=1))) == 0
    assert train(config(run, data, steps=2)) == 0
    assert losses(run) == losses(whole)[:2]
    assert on_ranks(2, train, config(run, data, micro_batch=2)) == [0, 0]
    ours, theirs = (np.array([float.fromhex(loss) for _, loss in losses(directory)]) for directory in (run, whole))
    np.testing.assert_allclose(ours, theirs, rtol=1e-3)
    found = [record for record in records(whole) if record.get("event") == "evaluation"]
    assert found
