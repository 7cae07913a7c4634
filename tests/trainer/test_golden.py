"""Ten steps that must never move: fp32 runs on counter-based tokens, by one process and by eight, compared with stored
losses.

No package has a hand in the tokens, so what moves these numbers is a change of the model, the loss, the optimizer, the
schedule or the order of the samples. `python -m tests.trainer.test_golden` writes the file anew; say in the commit why.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest

from tests.distributed.pool import on_ranks
from tests.trainer.tiny_run import steps, tiny_config
from trainer.config.compose import compose
from trainer.config.keys import Config
from trainer.run.process import train

GOLDEN = Path(__file__).parents[1] / "golden" / "run.json"
EIGHT = GOLDEN.with_name("toy_ep8.json")
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


def eight_config(directory: Path) -> Config:
    """The recipe for eight ranks on counter-based tokens.

    optim.eps: with its default of 1e-8, Adam's first steps move a weight by lr even where its gradient is rounding, and
    the norms of the tenth step differ by up to 6e-3 between torch's kernels for AVX-512, AVX2 and neither; so by 6e-7.
    """
    words = ["recipe=toy_ep8", "data=synthetic", "data.seq_len=32", "train.steps=10", "train.log_every=10"]
    words += ["logging.console=off", "train.device=cpu", "optim.eps=1e-4"]
    return compose([*words, f"run.dir={directory}"], world_size=8)


def run_eight(cfg: Config) -> dict[str, list[float]]:
    """As one of the eight ranks."""
    assert train(cfg) == 0
    return {key: [float(record[key]) for record in steps(Path(cfg.run.dir))] for key in KEYS}


def test_ten_steps_of_eight_ranks_are_the_stored_ones(tmp_path):
    stored = json.loads(EIGHT.read_text())
    found = on_ranks(8, run_eight, eight_config(tmp_path / "run"), timeout_s=150.0)[0]
    assert len(found["loss"]) == 10
    for key in KEYS:
        assert found[key] == pytest.approx(stored[key], rel=1e-5), key


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as directory:
        GOLDEN.parent.mkdir(exist_ok=True)
        GOLDEN.write_text(json.dumps(run(Path(directory, "one")), indent=1) + "\n")
        EIGHT.write_text(json.dumps(on_ranks(8, run_eight, eight_config(Path(directory, "eight")))[0], indent=1) + "\n")
