"""Whole runs with DeepSpeed behind the optimizer's seam."""

from __future__ import annotations

import os
import shutil
import sys
from concurrent.futures import ProcessPoolExecutor
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path

import pytest

from parallel.zero import nvme
from tests.distributed.pool import on_ranks
from tests.parallel.zero.async_io import need_async_io
from tests.parallel.zero.fresh_groups import forget_groups
from tests.printed import error_line
from tests.trainer.tiny_run import events, losses, records, steps, tiny_config
from trainer.checkpoint.slices import StoredState
from trainer.run.process import train

needs_deepspeed = pytest.mark.skipif(find_spec("deepspeed") is None, reason="needs the extra deepspeed")
OFFLOADED = {"engine": "deepspeed", "zero_stage": 2, "offload": "cpu"}


def run(directory: str, keys: dict) -> int:
    try:
        return train(tiny_config(directory, schedule="constant", global_batch=8, **keys))
    finally:
        forget_groups()


def run_alone(directory: str, keys: dict) -> int:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        os.environ.pop(name)  # as `python -m trainer` has it
    return run(directory, keys)


def values(directory: Path) -> list[float]:
    return [step["loss"] for step in steps(directory)]


@needs_deepspeed
def test_a_run_is_that_of_the_native_engine_and_resumes_bitwise_and_on_other_ranks(tmp_path):
    """Two micro-batches a step and rank. The second half of the run is done by two ranks, and by one with the state at
    another stage and place."""
    native, whole, halves, alone = (tmp_path / name for name in ("native", "whole", "halves", "alone"))
    assert on_ranks(2, run, str(native), {}) == [0, 0]
    assert on_ranks(2, run, str(whole), OFFLOADED, timeout_s=120) == [0, 0]
    assert values(whole) == pytest.approx(values(native), rel=1e-5)
    assert on_ranks(2, run, str(halves), {**OFFLOADED, "steps": 4}, timeout_s=120) == [0, 0]
    shutil.copytree(halves, alone)
    assert on_ranks(2, run, str(halves), OFFLOADED, timeout_s=120) == [0, 0]
    assert losses(halves) == losses(whole)
    one = {**OFFLOADED, "zero_stage": 1, "offload": "none", "micro_batch": 4}
    assert on_ranks(1, run_alone, str(alone), one, timeout_s=120) == [0]
    assert values(alone)[4:] == pytest.approx(values(whole)[4:], rel=1e-6)
    (start,) = [r["message"] for r in records(alone) if r.get("event") == "run" and "continued" in r["message"]]
    assert "AdamW by DeepSpeed, ZeRO-1" in start
    assert values(whole)[0] > values(whole)[-1]


PARTITIONED = {"engine": "deepspeed", "zero_stage": 3, "offload": "cpu", "offload_params": "cpu", "recompute": "full"}


@needs_deepspeed
def test_partitioned_weights_train_evaluate_and_resume_in_other_stages_and_ranks(tmp_path):
    """As above for stage 3; the LM head is used by the objective, by the evaluations and by the sample texts."""
    native, halves, flat, alone = (tmp_path / name for name in ("native", "halves", "flat", "alone"))
    assert on_ranks(2, run, str(native), {"eval_every": 3}) == [0, 0]
    assert on_ranks(2, run, str(halves), {**PARTITIONED, "steps": 4, "eval_every": 3}, timeout_s=120) == [0, 0]
    shutil.copytree(halves, flat)
    shutil.copytree(halves, alone)
    assert on_ranks(2, run, str(halves), {**PARTITIONED, "eval_every": 3}, timeout_s=120) == [0, 0]
    assert values(halves) == pytest.approx(values(native), rel=1e-5)
    heldout = [event["heldout"]["synthetic"] for event in events(native, "evaluation")]
    found = {event["step"]: event["heldout"]["synthetic"] for event in events(halves, "evaluation")}
    assert [found[step] for step in (3, 6, 8)] == pytest.approx(heldout, rel=1e-5)
    assert on_ranks(2, run, str(flat), OFFLOADED, timeout_s=120) == [0, 0]
    assert values(flat)[4:] == pytest.approx(values(halves)[4:], rel=1e-6)
    one = {**PARTITIONED, "offload_params": "none", "recompute": "none", "micro_batch": 4}
    assert on_ranks(1, run_alone, str(alone), one, timeout_s=120) == [0]
    assert values(alone)[4:] == pytest.approx(values(halves)[4:], rel=1e-6)
    assert StoredState(halves / "checkpoints" / "step-8").shape("model.layers.0.moe.experts.w13") == (8, 2, 16, 32)


LARGER = {"hidden_size": 64, "expert_width": 96, "num_layers": 4}  # of 2.7 MB: its decayed weights are in files


@needs_deepspeed
@pytest.mark.slow
def test_state_on_nvme_trains_resumes_in_other_places_and_leaves_no_files(tmp_path):
    """The halves of a run in turn on the device, on NVMe and on the host, against the native engine."""
    disk, native = tmp_path / "disk", tmp_path / "native"
    disk.mkdir()
    need_async_io(disk)
    on_nvme = {**PARTITIONED, "offload": "nvme", "nvme_dir": str(disk), "model": LARGER}
    on_host = {**PARTITIONED, "model": LARGER}
    assert on_ranks(1, run_alone, str(native), {"model": LARGER}, timeout_s=120) == [0]
    for name, first, second in [("to the host", on_nvme, on_host), ("from the host", on_host, on_nvme)]:
        directory = tmp_path / name
        assert on_ranks(1, run_alone, str(directory), {**first, "steps": 4}, timeout_s=120) == [0]
        assert on_ranks(1, run_alone, str(directory), second, timeout_s=120) == [0]
        assert values(directory) == pytest.approx(values(native), rel=1e-5)
        assert list(disk.iterdir()) == []
        starts = [event["message"] for event in events(directory, "run")]
        assert any("state on NVMe, weights on the CPU" in start for start in starts)


def run_on_gpu(directory: str, keys: dict) -> int:
    cfg = tiny_config(directory, schedule="constant", global_batch=8, model=LARGER, **keys)
    cfg.train.device = "cuda"
    return train(cfg)


@needs_deepspeed
@pytest.mark.gpu
@pytest.mark.parametrize("offload", ["none", "cpu", "nvme"])
def test_partitioned_weights_on_a_gpu_train_as_the_native_engine_does(offload, tmp_path):
    keys = {**PARTITIONED, "offload": offload, "offload_params": "none" if offload == "none" else "cpu"}
    disk = tmp_path / "disk"
    disk.mkdir()
    if offload == "nvme":
        if fault := nvme.unavailable(disk):
            pytest.skip(fault.text)
        keys["nvme_dir"] = str(disk)
    for name, of_run in (("native", {}), ("zero", keys)):
        # A new process: DeepSpeed chooses its device at the import, and the pool's workers may have it for the CPU.
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            assert process.submit(run_on_gpu, str(tmp_path / name), of_run).result(timeout=1800) == 0
    assert values(tmp_path / "zero") == pytest.approx(values(tmp_path / "native"), rel=1e-4)
    assert list(disk.iterdir()) == []


def test_what_nvme_lacks_is_one_line_before_anything_starts(tmp_path, capfd, monkeypatch):
    keys = {"engine": "deepspeed", "zero_stage": 3, "offload": "nvme"}
    assert train(tiny_config(tmp_path / "run", **keys, nvme_dir=str(tmp_path / "missing"))) == 2
    error_line(capfd.readouterr().err, f"optim.nvme_dir={tmp_path / 'missing'}")
    monkeypatch.setenv("CXX", "compiler-that-is-missing")
    assert train(tiny_config(tmp_path / "run", **keys, nvme_dir=str(tmp_path))) == 2
    error_line(capfd.readouterr().err, "optim.offload=nvme", "compiler-that-is-missing", "g++")
    assert not (tmp_path / "run").exists()


def test_where_deepspeed_is_missing_one_line_names_the_extra(tmp_path, capfd, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "deepspeed"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "deepspeed", None)  # importing it now raises ImportError
    assert train(tiny_config(tmp_path, engine="deepspeed")) == 2
    error_line(capfd.readouterr().err, "pip install -e '.[deepspeed]'")
