"""Rollouts, reinforcement learning and adapters on a GPU; on a CPU the same tests run, so that they work there."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.trainer.engine.asked import requests, serve
from tests.trainer.rl.toy import run_toy
from tests.trainer.tiny_run import steps, tiny_config
from trainer.config.compose import compose
from trainer.config.keys import LoraConfig, PrecisionConfig
from trainer.config.model import ModelConfig
from trainer.engine.engine import Engine
from trainer.engine.request import Completion, Request, Sampling
from trainer.model.decoder import Decoder
from trainer.model.exact.switch import make_exact
from trainer.model.experts.choose import choose_backend
from trainer.model.experts.held import held_weights
from trainer.precision import experts_unavailable
from trainer.rl.rollout.protocol import Rollout
from trainer.rl.routes import checked_routes
from trainer.run.process import train
from trainer.weights.export import export

GPU = pytest.param("cuda", marks=pytest.mark.gpu)
# Widths that every FP8 recipe takes.
MODEL = ModelConfig(
    vocab_size=320, hidden_size=128, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=32, num_experts=16,
    experts_per_token=4, router_groups=4, expert_width=128, positions="fope", max_position=1024, init_std=0.1,
)  # fmt: skip


def require(experts: str, device: str) -> None:
    if reason := experts_unavailable(experts, torch.device(device)):
        pytest.skip(reason)


def model_on(device: str, experts: str, dtype: torch.dtype, *, exact: bool) -> Decoder:
    backend = "grouped_mm"
    model = Decoder(MODEL, dtype, make_backend=choose_backend(experts, backend, rounding=torch.bfloat16))
    model.init_weights(3)
    return (make_exact(model) if exact else model).requires_grad_(False).to(device)


def check(done: Completion, limit: int) -> None:
    """An answer has a finite log-probability for each token, and the experts of each token that was read."""
    assert 1 <= len(done.ids) <= limit
    assert np.isfinite(done.log_probs).all()
    versions = np.zeros(len(done.ids), np.int64)
    rollout = Rollout(done.prompt, done.ids, done.log_probs, done.routes, versions, done.finish)
    assert checked_routes(rollout, MODEL, "engine", 0).any()


@pytest.mark.gpu
def test_greedy_text_and_routes_are_a_cpus() -> None:
    """fp32 with full matrix products, so that only the order of sums differs."""
    asked = [Request([5 + n, 9, 200 + n], 24, Sampling(temperature=0.0)) for n in range(6)]
    found = {}
    torch.backends.cuda.matmul.allow_tf32 = False
    for device in ("cpu", "cuda"):
        engine = Engine(model_on(device, "fp32", torch.float32, exact=True), cache_tokens=1024, batch=4, chunk=64)
        found[device] = engine.generate(asked)
    for one, other in zip(found["cpu"], found["cuda"], strict=True):
        assert one.ids == other.ids
        assert np.abs(one.log_probs - other.log_probs).max() < 1e-4
        assert (one.routes == other.routes).all()


@pytest.mark.parametrize("experts", ["bf16", "fp8_reference", "fp8_block", "fp8_current", "mxfp8"])
@pytest.mark.parametrize("device", ["cpu", GPU])
def test_an_engine_generates_with_these_experts(device: str, experts: str) -> None:
    require(experts, device)
    dtype = torch.float32 if experts == "fp8_reference" and device == "cpu" else torch.bfloat16
    engine = Engine(model_on(device, experts, dtype, exact=False), cache_tokens=2048, batch=4, chunk=64)
    asked = [Request(one.prompt[:30], 8, Sampling(1.0, seed=n)) for n, one in enumerate(
        requests(MODEL, 5, random.Random(1), longest=8)
    )]  # fmt: skip
    for answer in serve(engine, asked, random.Random(2)).values():
        check(answer, 8)


def test_transformer_engines_experts_generate_as_the_reference(stand_in: str) -> None:
    """Transformer Engine's own Python code over plain torch. Nothing is quantised twice: weights are held."""
    asked = [Request([5 + n, 9, 200 + n], 8, Sampling(temperature=0.0)) for n in range(4)]
    found = {}
    for experts in (stand_in, "fp8_reference"):
        model = model_on("cpu", experts, torch.bfloat16, exact=False)
        with held_weights(block.moe.experts for block in model.blocks):
            found[experts] = Engine(model, cache_tokens=2048, batch=4, chunk=64).generate(asked)
        for answer in found[experts]:
            check(answer, 8)
    for one, other in zip(*found.values(), strict=True):
        assert one.ids[0] == other.ids[0]
        assert abs(one.log_probs[0] - other.log_probs[0]) < 0.05


SLOW_CPU = pytest.param("cpu", marks=pytest.mark.slow)
PRECISIONS = [
    pytest.param("cpu", "fp32", marks=pytest.mark.slow), pytest.param("cpu", "fp8_reference", marks=pytest.mark.slow),
    *(pytest.param("cuda", name, marks=pytest.mark.gpu) for name in ("fp32", "bf16", "fp8_block")),
]  # fmt: skip


@pytest.mark.parametrize(("device", "precision"), PRECISIONS)
def test_the_toy_trains_for_two_steps_with_replay(tmp_path: Path, device: str, precision: str) -> None:
    require(compose(["recipe=rl_toy", f"precision={precision}"]).precision.experts, device)
    words = [f"precision={precision}", "rl.exact=false", "train.steps=2", f"train.device={device}", "rl.replay=replay"]
    found = run_toy(tmp_path / "run", *words)
    assert [step["step"] for step in found] == [1, 2]
    most = {"fp32": 1e-4, "fp8_reference": 0.05}.get(precision, 0.5)
    for step in found:
        assert step["mismatch/max"] < most
        assert step["rollout/tokens_per_second"] > 0
        if step["tokens"]:
            assert step["replay/flip_rate"] < 0.05


@pytest.mark.parametrize("device", [SLOW_CPU, GPU])
def test_adapters_train_on_a_base_in_fp8(tmp_path: Path, device: str) -> None:
    """Losses of Transformer Engine's GEMMs beside those of the reference's arithmetic on a CPU."""
    sizes = {name: getattr(MODEL, name) for name in ("hidden_size", "head_dim", "num_experts", "expert_width")}
    experts = "fp8_reference" if device == "cpu" else "fp8_block"
    require(experts, device)
    assert train(tiny_config(tmp_path / "base", steps=1, model=sizes)) == 0
    export(tmp_path / "base", tmp_path / "fp8", dtype="fp8")
    found = {}
    for where, name in {"cpu": "fp8_reference", device: experts}.items():
        cfg = tiny_config(tmp_path / where, steps=3, log_every=1, model=sizes, lr=0.1, name="sgd")
        cfg.train.device, cfg.checkpoint.init_from = where, str(tmp_path / "fp8")
        cfg.lora = LoraConfig(target="all", rank=2, base="fp8")
        linears = "fp32" if where == "cpu" else "bf16"
        cfg.precision = PrecisionConfig(linears=linears, experts=name, payload=linears)
        assert train(cfg) == 0
        found[where] = [step["loss"] for step in steps(tmp_path / where)]
    assert len(set(found[device])) == 3
    assert found[device] == pytest.approx(found["cpu"], rel=0.03)
