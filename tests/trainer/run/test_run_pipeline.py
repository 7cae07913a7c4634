"""Whole runs in a pipeline: what they log, evaluate, save and continue."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from parallel.errors import Fault
from parallel.pipeline import private
from tests.distributed.pool import on_ranks
from tests.trainer.tiny_run import events, steps, tiny_config
from trainer.run.process import train

LOGGED = ("loss", "balance", "z", "max_load", "grad_norm", "tokens", "skipped", "lr")


def trained(directory: Path, parallel: dict[str, Any], **overrides: Any) -> int:
    cfg = tiny_config(
        directory,
        model={"num_layers": 5, "z_loss_coef": 1e-3},
        global_batch=8,
        log_every=1,
        schedule="constant",
        **overrides,
    )
    for key, value in parallel.items():
        setattr(cfg.parallel, key, value)
    return train(cfg)


def test_a_pipeline_continues_a_run_of_one_process_and_the_reverse(tmp_path):
    """Two steps each, in turns; the record, the evaluation and the sample texts are those of one process."""
    alone, turns = tmp_path / "alone", tmp_path / "turns"
    options = {"sample_tokens": 4, "every": 2, "micro_batch": 2}
    assert trained(alone, {}, steps=6, **options) == 0
    for ranks, parallel, micro, last in (
        (2, {"pp": 2}, 2, 2),
        (1, {}, 2, 4),
        (4, {"pp": 2, "schedule": "zbv", "dp_shard": 2, "ep": 2}, 1, 6),
    ):
        codes = on_ranks(ranks, trained_to, turns, parallel, last, {**options, "micro_batch": micro}, timeout_s=120.0)
        assert codes == [0] * ranks
    for ours, theirs in zip(steps(turns), steps(alone), strict=True):
        assert {key: ours[key] for key in LOGGED} == pytest.approx({key: theirs[key] for key in LOGGED}, rel=2e-5)
    assert events(turns, "evaluation")[-1]["heldout"] == pytest.approx(
        events(alone, "evaluation")[-1]["heldout"], rel=1e-5
    )
    (told,) = [event["message"] for event in events(turns, "layout") if event["message"].startswith("pipeline zbv")]
    assert "4 stages: 1 1 2 1" in told or "4 stages: 2 1 1 1" in told


def test_a_torch_that_cannot_run_pipelines_is_refused_before_any_process_group(tmp_path, monkeypatch):
    fault = Fault("torch 2.11.0 ...", "torch", "2.11.0", private.WORKING)
    monkeypatch.setattr(private, "unavailable", lambda: fault)
    monkeypatch.setattr("trainer.run.process.start_world", lambda *_: pytest.fail("there is a process group"))
    raised: list[Any] = []
    monkeypatch.setattr("trainer.run.process.report", lambda error, **_: raised.append(error) or 2)
    assert trained(tmp_path, {"pp": 2}) == 2
    assert raised[0].faults == (fault,)


def trained_to(directory: Path, parallel: dict[str, Any], last: int, options: dict[str, Any]) -> int:
    return trained(directory, parallel, steps=last, **options)
