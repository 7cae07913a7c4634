"""Ten steps that must never move: an fp32 run on counter-based tokens, compared with stored losses.

No package has a hand in the tokens, so what moves these numbers is a change of the model, the loss, the optimizer, the
schedule or the order of the samples. `python -m tests.trainer.test_golden` writes the file anew; say in the commit why.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest

from tests.trainer.tiny_run import steps, tiny_config
from trainer.config import Config
from trainer.run import train

GOLDEN = Path(__file__).parents[1] / "golden" / "run.json"
KEYS = ("loss", "grad_norm", "balance", "z")
MODEL = {
    "vocab_size": 256, "hidden_size": 64, "num_layers": 3, "num_heads": 8, "num_kv_heads": 4, "head_dim": 16,
    "num_experts": 32, "experts_per_token": 8, "router_groups": 4, "expert_width": 32, "z_loss_coef": 1e-3,
}  # fmt: skip


def golden_config(directory: Path) -> Config:
    cfg = tiny_config(directory, model=MODEL, steps=10, global_batch=8, micro_batch=4, lr=2e-3, seed=7)
    cfg.data.seq_len = 64
    return cfg


def run(directory: Path) -> dict[str, list[float]]:
    assert train(golden_config(directory)) == 0
    return {key: [float(record[key]) for record in steps(directory)] for key in KEYS}


@pytest.mark.parametrize("backend", ["grouped_mm", "loop"])
def test_ten_steps_are_the_stored_ones(tmp_path, monkeypatch, backend):
    stored = json.loads(GOLDEN.read_text())
    monkeypatch.setattr("tests.trainer.test_golden.MODEL", {**MODEL, "expert_backend": backend})
    found = run(tmp_path)
    assert len(found["loss"]) == 10
    assert found["loss"][-1] < found["loss"][0] - 0.1
    assert found["loss"] == pytest.approx(stored["loss"], rel=1e-4)
    assert found["balance"] == pytest.approx(stored["balance"], rel=1e-4)
    assert found["z"] == pytest.approx(stored["z"], rel=1e-4)
    assert found["grad_norm"] == pytest.approx(stored["grad_norm"], rel=1e-4)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as directory:
        GOLDEN.parent.mkdir(exist_ok=True)
        GOLDEN.write_text(json.dumps(run(Path(directory)), indent=1) + "\n")
