"""A pipeline on GPUs, one a rank: the same losses as one GPU has."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.distributed.pool import on_ranks
from tests.trainer.tiny_run import events, steps, tiny_config
from trainer.run.process import train


def run(directory: Path, pp: int, schedule: str) -> int:
    cfg = tiny_config(directory, model={"num_layers": 4}, steps=3, log_every=1, global_batch=8)
    cfg.train.device = "cuda"
    cfg.parallel.pp, cfg.parallel.schedule = pp, schedule
    return train(cfg)


@pytest.mark.gpu
@pytest.mark.parametrize("schedule", ["1f1b", "zbv"])
def test_two_gpus_in_a_pipeline_train_as_one(tmp_path, schedule):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    assert on_ranks(1, run, tmp_path / "one", 1, "1f1b", timeout_s=120.0) == [0]
    assert on_ranks(2, run, tmp_path / "two", 2, schedule, timeout_s=120.0) == [0, 0]
    for one, two in zip(steps(tmp_path / "one"), steps(tmp_path / "two"), strict=True):
        for name in ("loss", "balance", "grad_norm", "max_load"):
            assert two[name] == pytest.approx(one[name], rel=1e-4), name
    held_out = [events(tmp_path / name, "evaluation")[-1]["heldout"] for name in ("one", "two")]
    assert held_out[1] == pytest.approx(held_out[0], rel=1e-4)
