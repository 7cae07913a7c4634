"""The table of LMDeploy's operators beside Octavo's, and the restatements beside LMDeploy's own code."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from parallel.fp8 import quantize_tiles
from tests.bench import lmdeploy_operators as theirs
from tests.bench.rl_operators import Sizes, as_markdown, rows
from tests.trainer.rl.servers.lmdeploy_process import environment
from tests.trainer.weights.peers.environments import require

SMALL = Sizes(T=24, H=256, E=64, K=8, G=8, d=32, n=2, I=64, V=512)
EQUAL = {
    "experts, of equal logits", "RoPE tables, before rounding", "SwiGLU", "log-probabilities, fp32 head",
    "FP8 weights, scale_fmt ue8m0", "FP8 activations, scale_fmt ue8m0",
}  # fmt: skip


def test_the_operators_that_flags_bring_together_are_equal_and_the_others_are_not():
    found = {row.operator: row for row in rows(SMALL)}
    assert found.keys() > EQUAL
    for name in EQUAL:
        assert (found[name].equal, found[name].gap) == (1, 0), name
    assert found["RMSNorm"].equal > 0.99
    for name in ("router logits", "rotation", "RoPE tables", "log-probabilities", "FP8 weights", "FP8 activations"):
        assert found[name].equal < 0.9, name
        assert found[name].remedy
    assert len(as_markdown([*found.values()]).splitlines()) == len(found) + 2


@pytest.mark.parametrize("power", range(-12, 12))
def test_tiles_whose_largest_number_is_448_times_a_power_of_two_have_equal_scales(power):
    """There fl32(x / 448) and x * fl32(1 / 448) could be on two sides of a power of two."""
    x = torch.full((1, 128), 0.25 * 448 * 2.0**power, dtype=torch.bfloat16)
    x[0, 7] = 448 * 2.0**power
    _, scale = quantize_tiles(x, (1, 128))
    assert torch.equal(1 / theirs.quantise_activation(x, "ue8m0")[1], scale)


def test_a_tile_of_numbers_below_1e_6_has_another_scale():
    """LMDeploy has a floor for the largest number of a tile; such tiles have one more thing in common with zero."""
    x = torch.full((1, 128), 1e-7, dtype=torch.bfloat16)
    _, scale = quantize_tiles(x, (1, 128))
    assert not torch.equal(1 / theirs.quantise_activation(x, "ue8m0")[1], scale)


@pytest.mark.slow
def test_the_restatements_are_lmdeploys(tmp_path):
    require("lmdeploy")
    script = Path(__file__).parent / "inside" / "lmdeploy_own_operators.py"
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, env=environment(tmp_path), check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.strip().splitlines()[-1])
    codes = {name: found.pop(name) for name in [*found] if name.startswith("activations") and name.endswith("codes")}
    assert {name: share for name, share in found.items() if share != 1} == {}
    assert len(found) > 20
    assert all(share > 0.95 for share in codes.values())  # casts of Triton's interpreter, see the script
