"""The parts of `make bench-gpu` after pre-training: on a CPU at tiny sizes, so that they work when a GPU is there."""

from __future__ import annotations

import json
import tempfile

import pytest
import torch

from tests.bench.gpu.__main__ import bench, parse
from tests.bench.gpu.after import SIZES, apart, generation, lora, rl, table
from tests.bench.gpu.clock import Clock
from tests.bench.gpu.routing import Slice

CPU = torch.device("cpu")


@pytest.mark.slow
def test_generation_compares_equal_texts(tmp_path):
    found = generation(Clock(CPU), SIZES["tiny"], tmp_path, torch.float32, rounds=1)
    assert [*found] == ["Octavo's engine", "Octavo's engine, exact", "transformers, static"]
    for row in found.values():
        assert row["tokens_per_second"] > 0
        assert row["equal_answers"] == row["of"] == SIZES["tiny"].requests
    assert table(found).count("tokens_per_second") == 3


@pytest.mark.slow
def test_a_step_of_adapters_is_measured_and_counted(tmp_path):
    found = lora(CPU, SIZES["tiny"], tmp_path, "fp8_reference")
    assert 0 < found["counted_bytes"] < found["peak_bytes"]  # the peak is that of the whole process here
    assert len(set(found["losses"])) == 4


def test_a_step_of_rl_has_parts(tmp_path):
    found = rl(CPU, SIZES["tiny"], tmp_path, "fp32")
    assert sum(found["shares"].values()) == pytest.approx(1)
    assert found["shares"]["rollout"] > 0 < found["shares"]["train"]
    assert found["largest_mismatch"] < 1e-4


@pytest.mark.slow
def test_the_bench_runs_them_and_writes_them_down(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    args = ["--sections", "rl,lora", "--sizes", "tiny", "--rounds", "1", "--json", str(tmp_path / "found.json")]
    failed = bench(parse(args), CPU, Slice(), torch.float32)
    found = json.loads((tmp_path / "found.json").read_text())["after"]
    assert not failed
    assert {name for name, row in found.items() if "skipped" not in row} == {"rl, tiny: bf16", "lora, tiny: bf16"}


def test_what_a_machine_cannot_compute_is_skipped(tmp_path):
    assert "skipped" in apart("lora", "tiny", CPU, tmp_path, "fp8_block")
