"""The bench against TRL: both sides do the same work."""

import pytest

from tests.bench.rl_trl import WORKLOADS, measure
from tests.trainer.weights.peers.environments import require


@pytest.mark.slow
def test_both_sides_train_the_same_model_on_equally_many_tokens():
    require("trl")
    found, workload = measure("short", 2, ("octavo", "TRL")), WORKLOADS["short"]
    for ours, theirs in zip(found["octavo"], found["TRL"], strict=True):
        assert ours.tokens == theirs.tokens == workload.prompts * workload.group * workload.answer
        assert 0.9 * ours.tokens < ours.trained <= ours.tokens
        assert ours.entropy == pytest.approx(theirs.entropy, abs=0.1)
        for step in (ours, theirs):
            assert step.grad_norm > 0
            assert 0 < step.reward < 1
            assert sum(step.parts.values()) == pytest.approx(step.cpu_s)
