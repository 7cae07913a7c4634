"""The bench of Muon at a small size: its ratio at the size that is promised, and the table of a study."""

from __future__ import annotations

from statistics import median

import pytest

from tests.bench.muon import final_loss, measure


@pytest.mark.slow
def test_a_step_of_16384_tokens_takes_at_most_a_tenth_more_than_adamws():
    """From passes over 2,048 tokens: that step has eight of them. Updates do not depend on the tokens."""
    taken = measure(rounds=2, tokens=2048)
    passes = median(step - update for figures in taken.values() for step, update in figures)
    update = {name: median(update for _, update in figures) for name, figures in taken.items()}
    assert (8 * passes + update["muon"]) / (8 * passes + update["adamw"]) < 1.10


@pytest.mark.slow
def test_a_run_of_the_study_is_not_repeated(tmp_path):
    words = [
        *("data=synthetic", "data.seq_len=16", "train.steps=2", "train.global_batch=4", "train.micro_batch=4"),
        *("model.vocab_size=64", "model.hidden_size=32", "model.num_layers=1", "model.head_dim=8", "optim=muon"),
        *("model.num_experts=8", "model.expert_width=16", "train.eval_batches=1", "train.device=cpu"),
    ]
    first = final_loss(tmp_path / "run", words)
    written = (tmp_path / "run" / "metrics.jsonl").stat().st_mtime_ns
    assert 0 < first < 10
    assert final_loss(tmp_path / "run", words) == first
    assert (tmp_path / "run" / "metrics.jsonl").stat().st_mtime_ns == written
