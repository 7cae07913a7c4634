"""Runs on a mixture with images: read ahead, stopped, and resumed with another number of ranks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.distributed.pool import on_ranks
from tests.trainer.data.media import illustrated
from tests.trainer.illustrated_run import illustrated_config
from tests.trainer.tiny_run import events, losses, records, steps
from trainer.config.keys import Config, DataConfig
from trainer.data.media.images import decode
from trainer.data.media.rules import ImageKind
from trainer.run.loop import Trainer
from trainer.run.process import train

STEPS = 4


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    with pytest.MonkeyPatch.context() as patch:
        return illustrated.make_mixture(tmp_path_factory.mktemp("media"), patch)


def config(directory: Path, data: DataConfig, **overrides: Any) -> Config:
    every = {"steps": STEPS, "global_batch": 8, "micro_batch": 4, "log_every": 1, "schedule": "constant"}
    return illustrated_config(directory, data, **{**every, **overrides})


@pytest.mark.slow
def test_images_in_bytes_give_the_run_of_floats(tmp_path, data, monkeypatch):
    assert train(config(tmp_path / "bytes", data, steps=2)) == 0

    def floats(self, data, where):
        return self.rule.prepare(decode(data, where=where, max_pixels=self.decode_limit), where)

    monkeypatch.setattr(ImageKind, "prepare", floats)
    assert train(config(tmp_path / "floats", data, steps=2)) == 0
    assert losses(tmp_path / "bytes") == losses(tmp_path / "floats")


@pytest.mark.slow
def test_images_on_other_ranks_give_the_same_run(tmp_path, data):
    own, spread = tmp_path / "own", tmp_path / "spread"
    for directory, balance in ((own, False), (spread, True)):
        cfg = config(directory, data, micro_batch=2)
        cfg.parallel.dp_shard, cfg.parallel.balance_towers = 2, balance
        assert on_ranks(2, train, cfg) == [0, 0]
    of_own, of_spread = (
        [record for record in records(directory) if "grad_norm" in record or record.get("event") == "evaluation"]
        for directory in (own, spread)
    )
    for found, expected in zip(of_spread, of_own, strict=True):
        if "event" in found:
            assert found["heldout"] == pytest.approx(expected["heldout"], rel=1e-4)
            continue
        assert [found[key] for key in ("loss", "grad_norm")] == pytest.approx(
            [expected[key] for key in ("loss", "grad_norm")], rel=1e-4
        )
        assert "tower_load" not in expected
        if found["images"]:
            assert 1 <= found["tower_load"] <= found["tower_load_before"] <= 2
    assert any(found["tower_load"] < found["tower_load_before"] for found in of_spread if "tower_load" in found)


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


def decodes_of_an_evaluation(cfg: Config) -> tuple[int, int]:
    """Train; the exit code, and the images that this rank has decoded for the last evaluation."""
    decoded = 0
    genuine, evaluation = ImageKind.prepare, Trainer._evaluate

    def prepare(self: ImageKind, data: bytes, where: str) -> Any:
        nonlocal decoded
        decoded += 1
        return genuine(self, data, where)

    def evaluate(self: Trainer, *, final: bool = False) -> None:
        ImageKind.prepare = prepare
        evaluation(self, final=final)
        ImageKind.prepare = genuine

    Trainer._evaluate = evaluate
    try:
        return train(cfg), decoded
    finally:
        ImageKind.prepare, Trainer._evaluate = genuine, evaluation


def test_a_rank_decodes_the_held_out_images_of_its_own_batches(tmp_path, data):
    """The turns of two ranks have the windows of one rank's batches, each read by one of them."""
    whole, run = tmp_path / "whole", tmp_path / "run"
    one = config(whole, data, steps=1, micro_batch=2)
    one.train.eval_batches = 2
    code, of_one = decodes_of_an_evaluation(one)
    assert code == 0
    found = on_ranks(2, decodes_of_an_evaluation, config(run, data, steps=1, micro_batch=2))
    assert [code for code, _ in found] == [0, 0]
    decoded = [images for _, images in found]
    assert sum(decoded) == of_one
    assert 0 < min(decoded) < max(decoded) < of_one  # so one rank may have a turn of text while the other has images
    first, second = (events(directory, "evaluation")[-1]["heldout"] for directory in (whole, run))
    assert second == pytest.approx(first, rel=1e-3)


def test_what_could_not_be_read_is_logged_and_counted_at_the_end(tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        data = illustrated.make_mixture(tmp_path, patch)
    for split in ("train", "heldout"):
        path = tmp_path / "figures" / f"{split}-00000.media"
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
    run = tmp_path / "run"
    assert train(config(run, replace(data, on_fault="skip", verify="off"), steps=12)) == 0
    logged = [record for record in events(run, "warning") if "document" in record["message"]]
    counted = [record for record in logged if record.get("unreadable")]
    assert counted
    assert all("train split" in record["message"] for record in counted)
    held_out = [record["message"] for record in logged if not record.get("unreadable")]
    assert held_out
    assert all("heldout split" in message for message in held_out)
    assert len({*held_out}) == len(held_out)
    assert len({record["message"] for record in counted}) == len(counted)
    again = sum(record.get("unreadable", 0) for record in steps(run))
    assert again > 0
    total = len(counted) + again
    found = f"unreadable  {len(counted)} sample(s) or document(s), replaced or left out in {total} place(s)"
    assert found in events(run, "done")[-1]["text"]
