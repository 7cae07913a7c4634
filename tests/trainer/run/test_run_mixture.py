"""Runs on a mixture: stopped and resumed, with another number of ranks, with damage and with corpora that changed."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.distributed.pool import on_ranks
from tests.printed import error_line
from tests.trainer.data.small_mixture import make_mixture, rewrite_manifest
from tests.trainer.tiny_run import events, losses, tiny_config
from trainer.config.keys import Config, DataConfig
from trainer.run.loop import Trainer
from trainer.run.process import train

STEPS, BATCH = 10, 12
EDGE = 240 // BATCH  # the phase's, which a run of 22 steps passes


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    with pytest.MonkeyPatch.context() as patch:
        return make_mixture(tmp_path_factory.mktemp("mixture"), patch)


def config(directory: Path | str, data: DataConfig, **overrides: Any) -> Config:
    cfg = tiny_config(
        directory, model={"vocab_size": 300}, **{"steps": STEPS, "global_batch": BATCH, "micro_batch": 6, **overrides}
    )
    cfg.data = data
    return cfg


def seen_in(directory: Path) -> dict[int, list[int]]:
    """Step -> the samples of all ranks, sorted; of the step's last run where it was run twice."""
    found: dict[int, dict[int, list[int]]] = {}
    for path in sorted(directory.glob("samples-*.jsonl")):
        for line in map(json.loads, path.read_text().splitlines()):
            found.setdefault(line["step"], {})[line["rank"]] = line["samples"]
    return {step: sorted(itertools.chain(*ranks.values())) for step, ranks in found.items()}


def logged_run(cfg: Config, stop_at: int | None, log: str) -> int:
    """Train, write down which samples each step took, and end with a signal in step `stop_at`."""
    genuine = Trainer._train_step

    def train_step(self: Trainer, batches: Any, *counts: int) -> None:
        samples = [sample for batch in batches for sample in batch.samples]
        with open(f"{log}/samples-{self.world.size}-{self.world.rank}-{stop_at}.jsonl", "a") as file:
            file.write(json.dumps({"step": self.position.step + 1, "rank": self.world.rank, "samples": samples}) + "\n")
        if self.position.step + 1 == stop_at and self.world.rank == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        genuine(self, batches, *counts)

    Trainer._train_step = train_step
    try:
        return train(cfg)
    finally:
        Trainer._train_step = genuine


def test_stopped_twice_and_resumed_by_other_worlds_no_sample_is_lost_or_repeated(tmp_path, data) -> None:
    """Over the phase's edge; the part that one process does alone is bit for bit that of the run never stopped."""
    steps = EDGE + 2
    run, whole, log = tmp_path / "run", tmp_path / "whole", tmp_path / "log"
    log.mkdir()
    assert train(config(whole, replace(data, workers=1), steps=steps, schedule="constant")) == 0
    assert logged_run(config(run, data, steps=steps, schedule="constant"), 7, str(log)) == 143
    assert losses(run) == losses(whole)[:7]
    two_ranks = config(run, data, steps=steps, schedule="constant", micro_batch=3)
    assert on_ranks(2, logged_run, two_ranks, EDGE, str(log)) == [143] * 2
    last = config(run, replace(data, workers=2), steps=steps, schedule="constant", micro_batch=2)
    assert logged_run(last, None, str(log)) == 0
    assert seen_in(log) == {step: list(range((step - 1) * BATCH, step * BATCH)) for step in range(1, steps + 1)}
    ours, theirs = (np.array([float.fromhex(loss) for _, loss in losses(directory)]) for directory in (run, whole))
    np.testing.assert_allclose(ours, theirs, rtol=2e-3)


def test_changed_corpora_are_refused_unless_allowed(tmp_path, monkeypatch, capsys) -> None:
    (tmp_path / "corpora").mkdir()
    data = make_mixture(tmp_path / "corpora", monkeypatch)
    assert train(config(tmp_path / "run", data, steps=2)) == 0
    rewrite_manifest(tmp_path / "corpora" / "web", name="other")
    assert train(config(tmp_path / "run", data, steps=3)) == 2
    error_line(capsys.readouterr().err, "data.allow_changed=true")
    assert train(config(tmp_path / "run", replace(data, allow_changed=True), steps=3)) == 0
    assert len(events(tmp_path / "run", "warning")) == 1


def run_code(directory: str, data: DataConfig) -> int:
    return train(config(directory, data, micro_batch=3))


def test_missing_corpora_are_an_error_to_fix_before_the_start_on_every_rank(tmp_path, data, capsys) -> None:
    missing = replace(data, root=str(tmp_path / "nowhere"))
    assert run_code(str(tmp_path / "one"), missing) == 2
    for name, line in zip(data.sources, capsys.readouterr().err.splitlines(), strict=True):
        error_line(line, f"data.sources.{name}", tmp_path / "nowhere")
    assert on_ranks(2, run_code, str(tmp_path / "two"), missing) == [2, 2]


def test_windows_that_cannot_be_read_are_logged_and_end_the_run_past_their_budget(
    tmp_path, monkeypatch, capsys
) -> None:
    (tmp_path / "corpora").mkdir()
    data = make_mixture(tmp_path / "corpora", monkeypatch, verify="off", on_fault="skip", max_skips=2)
    path = tmp_path / "corpora" / "web" / "train-00000.bin"
    tokens = np.fromfile(path, "<u2")
    tokens[100::640] = 60_000  # one window in twenty
    tokens.tofile(path)
    assert train(config(tmp_path / "run", data, steps=20)) == 1
    messages = [warning["message"] for warning in events(tmp_path / "run", "warning")]
    replaced = [message for message in messages if len(re.findall(r"\bwindow \d+", message)) == 2]
    assert len(replaced) == 3
    error_line(capsys.readouterr().err, "data.max_skips=2")
    enough = replace(data, max_skips=100, verify="sampled")
    assert train(config(tmp_path / "run", enough, steps=20)) == 0
    at_start = [w["message"] for w in events(tmp_path / "run", "warning") if "MiB" in w["message"]]
    assert len(at_start) == 1
    assert str(path) in at_start[0]
    assert train(config(tmp_path / "other", replace(data, on_fault="fail"), steps=20)) == 1
    error_line(capsys.readouterr().err, "data.on_fault=skip")
