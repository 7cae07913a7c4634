"""The GPU bench at a tiny size on the CPU: every arm runs, and those that run make the same numbers."""

from __future__ import annotations

import pytest
import torch

from tests.bench.gpu.__main__ import run
from tests.bench.gpu.clock import Clock
from tests.bench.gpu.routing import Slice
from tests.bench.gpu.sections import SECTIONS
from tests.bench.gpu.table import Row

TINY = Slice(hidden=64, width=32, experts=16, heads=4, kv_heads=2, head_dim=16)


@pytest.mark.slow
def test_a_run_prints_every_section_and_no_arm_is_off(capsys):
    rows: list[Row] = []
    run(list(SECTIONS), [16], 1, TINY, torch.float32, Clock(torch.device("cpu")), rows)
    out = capsys.readouterr().out
    assert all(section.title in out for section in SECTIONS.values())
    assert {row.section for row in rows} == set(SECTIONS)
    assert {row.skew for row in rows if row.section == "moe"} == {"uniform", "zipf"}
    assert sum(row.skipped is None for row in rows) > len(SECTIONS)
    assert not [row for row in rows if row.skipped and row.skipped.startswith("FAILED")]
