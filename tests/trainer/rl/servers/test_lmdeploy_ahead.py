"""A run with rollouts ahead of training beside a server with LMDeploy's protocol in another process."""

from __future__ import annotations

import pytest

from tests.trainer.rl.asynchronous.records import rounds_of
from tests.trainer.rl.servers.stand_in import own_server, write_model
from tests.trainer.rl.toy import run_toy, toy_config

WORDS = (
    "model.positions=fope", "rl.exact=false", "rl.max_tokens=24", "rl.reward=overlap", "rl.max_staleness=2",
    "train.steps=6", "optim.lr=1e-4",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_run_trains_on_what_a_server_draws_while_it_trains(tmp_path, monkeypatch):
    """Within the bound, in the order of the questions; what a change of weights cuts continues under the new ones."""
    folder = write_model(tmp_path / "server", toy_config(tmp_path / "run", *WORDS).model, seed=99)
    rounds = rounds_of(monkeypatch)
    with own_server(folder) as url:
        lines = run_toy(tmp_path / "run", *WORDS, "rl.engine=lmdeploy", f"rl.url={url}", "rl.bucket_mb=1")
    assert [line["step"] for line in lines] == [*range(1, 7)]
    assert [group.sample for _, groups in rounds for group in groups] == [*range(24)]
    every = [(version, one) for version, groups in rounds for group in groups for one in group.rollouts]
    assert all(version - 2 <= one.versions.min() <= one.versions.max() <= version for version, one in every)
    assert any(len({*one.versions.tolist()}) > 1 for _, one in every)
    assert 0 < max(line["staleness/max"] for line in lines if line["tokens"]) <= 2
    trained = [line for line in lines if line["tokens"]]
    assert len(trained) > 2
    for line in trained:
        assert line["sync/bytes"] > 0
        assert line["mismatch/max"] > 0
        assert line["mismatch/k3"] < 0.01
        if not line["staleness/max"]:  # of equal weights, but for their rounding to bf16
            assert line["mismatch/max"] < 0.05
    assert not lines[0]["staleness/max"]
