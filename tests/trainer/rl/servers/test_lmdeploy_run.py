"""A run whose rollouts come over HTTP: the LMDeploy client, and our engine with weights of its own behind a server."""

from __future__ import annotations

import pytest
import torch

from tests.trainer.rl.servers.http_server import serving
from tests.trainer.rl.servers.stand_in import Server, write_model
from tests.trainer.rl.toy import run_toy, toy_config
from trainer.config.compose import compose
from trainer.config.errors import ConfigError
from trainer.model.decoder import Decoder
from trainer.rl.servers import lmdeploy
from trainer.run.process import train

WORDS = ("rl.engine=lmdeploy", "rl.exact=false", "rl.url=http://localhost:9")
FOPE = "model.positions=fope"  # a model of router groups is published with it


@pytest.mark.slow
def test_a_run_trains_on_rollouts_of_a_server_that_gets_its_weights(tmp_path):
    """The server starts with other weights; with the run's, in bf16, log-probabilities agree to their rounding."""
    cfg = toy_config(tmp_path / "run", FOPE).model
    server = Server(write_model(tmp_path / "server", cfg, seed=99))
    with serving(server) as url:
        steps = run_toy(tmp_path / "run", FOPE, *WORDS[:2], f"rl.url={url}", "rl.bucket_mb=1", "rl.concurrent=1")
    assert [step["step"] for step in steps] == [1, 2, 3]
    assert sum(step["tokens"] for step in steps) > 0
    model = Decoder(cfg, torch.float32)
    tables = sum(one.numel() for one in model.rotary.buffers())
    whole = 2 * sum(one.numel() for one in model.parameters()) + 4 * tables  # bf16, fp32
    assert server.nbytes == [whole] * 4  # before each step, and before the last evaluation
    for step in steps:
        assert step["sync/bytes"] == whole
        assert step["sync/seconds"] > 0
        assert step["staleness/max"] == 0
        if step["tokens"]:
            assert 0 < step["mismatch/max"] < 0.05


def test_a_server_that_does_not_answer_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(lmdeploy, "BACKOFF_S", 0.01)
    with serving(lambda *_: None) as url:
        assert train(toy_config(tmp_path / "run", *WORDS[:2], f"rl.url={url}")) == 2
    assert url in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("words", "where"),
    [
        (("rl.engine=lmdeploy", "rl.exact=false"), "rl.url"),
        ((*WORDS[:2], "rl.url=localhost"), "rl.url"),
        ((*WORDS[:2], "rl.url=http://localhost:port"), "rl.url"),
        ((WORDS[0], "rl.exact=true", WORDS[2]), "rl.exact"),
        ((WORDS[2],), "rl.url"),
        (("rl.bucket_mb=64",), "rl.bucket_mb"),
        (("rl.sync=distributed",), "rl.sync"),
        ((*WORDS, "rl.bucket_mb=0"), "rl.bucket_mb"),
        ((*WORDS, "precision=fp8_current"), "precision.experts"),
    ],
)
def test_keys_of_a_server_are_checked_before_the_run(words, where):
    with pytest.raises(ConfigError) as caught:
        compose(["recipe=rl_toy", *words], world_size=1)
    (fault,) = caught.value.faults
    assert fault.where == where
    assert fault.allowed
