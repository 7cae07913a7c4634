"""Refusals of a run once it has read its questions, and the key of FP8's weights."""

import pytest
import torch

from tests.trainer.rl.toy import run_toy, toy_config
from trainer.rl.rollout.embedded import Embedded
from trainer.run.process import train

PROMPT = 4  # tokens of each of the toy's: three digits and a mark


def test_rollouts_that_may_be_longer_than_a_window_are_refused(tmp_path, capsys):
    """A prompt of P and an answer of G tokens are P + G - 1 inputs."""
    longest = 56 + 1 - PROMPT
    assert train(toy_config(tmp_path / "run", f"rl.max_tokens={longest + 1}")) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert f"rl.max_tokens={longest + 1}" in line
    assert f"rl.max_tokens={longest} or less" in line
    assert "data.seq_len=57" in line
    assert not (tmp_path / "run").exists(), "octavo runs would list it as failed"
    run_toy(tmp_path / "fits", f"rl.max_tokens={longest}")


def test_a_server_that_does_not_run_leaves_no_directory(tmp_path, capsys):
    """The record is opened before it is asked."""
    words = ("rl.engine=lmdeploy", "rl.exact=false", "rl.url=http://127.0.0.1:9,http://127.0.0.1:7")
    assert train(toy_config(tmp_path / "run", *words)) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert "http://127.0.0.1:9" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("key", "gap"), [("bf16", False), ("masters", True)])
def test_experts_in_fp8_quantise_what_the_key_says(tmp_path, monkeypatch, key, gap):
    """An engine that received weights in bf16 quantises their rounding. Training quantises it, too, unless
    `rl.fp8_weights` is masters."""
    genuine, seen = Embedded.generate, []

    def received(self, *args, **more):
        backends = [block.moe.experts.backend for stage in self.stages for block in stage.blocks]
        seen.extend(backend.rounding for backend in backends)
        before = [backend.rounding for backend in backends]
        for backend in backends:
            backend.rounding = torch.bfloat16
        try:
            return genuine(self, *args, **more)
        finally:
            for backend, rounding in zip(backends, before, strict=True):
                backend.rounding = rounding

    monkeypatch.setattr(Embedded, "generate", received)
    steps = run_toy(tmp_path / "run", "precision=fp8_reference", f"rl.fp8_weights={key}")
    assert set(seen) == {None if gap else torch.bfloat16}
    trained = [step for step in steps if step["tokens"]]
    assert trained
    for step in trained:
        assert (step["mismatch/k3"] > 1e-8) is gap
        assert (step["mismatch/max"] == 0.0) is not gap
