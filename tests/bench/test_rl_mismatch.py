"""The figures of docs/rl_mismatch.md are those of the runs beside it, and the disturbances disturb only rollouts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.bench.rl_mismatch import ALIGNED, ARMS, DISTURBED, NOISE, WHOLE, cells, curves_of, picture, run, table
from trainer.rl.rollout.embedded import Embedded

DOCS = Path(__file__).parents[2] / "docs"
SHORT = ["train.steps=2", "train.global_batch=8", "rl.eval_questions=4", "train.micro_batch=2", "rl.group_size=4"]


def test_the_documented_runs_are_those_of_the_command():
    kept = json.loads((DOCS / "rl_mismatch.json").read_text())
    runs = kept["runs"]
    assert kept["noise"] == NOISE
    assert not kept["words"]
    found = {
        (name, arm, int(seed)) for name, arms in runs.items() for arm, of_seeds in arms.items() for seed in of_seeds
    }
    assert found == set(cells(3))
    for arms in runs.values():
        for of_seeds in arms.values():
            assert all(len(curve) == 200 for one in of_seeds.values() for curve in one["curves"].values())
    text = (DOCS / "rl_mismatch.md").read_text()
    assert "\n".join(table(runs)) in text
    assert kept["device"].split(",")[0] in text
    assert f"{sum(one['seconds'] for a in runs.values() for b in a.values() for one in b.values()):,.0f} CPU-s" in text
    assert (DOCS / "rl_mismatch.svg").read_text() == picture(runs)


def test_every_disturbance_has_every_correction_and_its_aligned_run():
    assert len(cells(1)) == len(ALIGNED) + len(DISTURBED) * len(ARMS) == 14
    assert ARMS[WHOLE] == ()


@pytest.mark.slow
@pytest.mark.parametrize("name", DISTURBED)
def test_a_disturbance_shows_in_k3_and_ends_with_the_rollouts(tmp_path, name):
    """In exact arithmetic it is the only mismatch, and there is none in the run after it."""
    genuine, words = Embedded.generate, [*SHORT, "rl.exact=true", f"data.cache_dir={tmp_path / 'cache'}"]
    k3 = run(name, "neither", 0, words, tmp_path / "disturbed")["curves"]["k3"]
    assert max(value for value in k3 if value is not None) > 1e-9
    assert Embedded.generate is genuine
    aligned = "aligned, FP8" if name == "masters in FP8" else "aligned"
    assert {*run(aligned, WHOLE, 0, words, tmp_path / "aligned")["curves"]["k3"]} <= {0.0, None}


def test_curves_have_none_for_steps_without_tokens():
    line = {"masked/mis_low": 0.01, "masked/mis_high": 0.0234567, "mismatch/k3": 1.23456e-5, "replay/flip_rate": 0.5,
            "solve_rate": 1.0}  # fmt: skip
    empty = {**dict.fromkeys(line), "solve_rate": 0.0}
    found = curves_of([line, empty])
    assert found == {"k3": [1.23e-5, None], "masked": [0.0335, None], "flips": [0.5, None], "solved": [1.0, 0.0]}
