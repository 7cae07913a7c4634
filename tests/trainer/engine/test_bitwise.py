"""Generation and one packed training forward pass have equal bits, whatever is batched with whatever."""

import random

import numpy as np
import pytest
import torch

from tests.trainer.engine.asked import Trained, assert_as_trained, requests, serve
from tests.trainer.model.tiny import build, model_config
from trainer.engine.engine import Engine
from trainer.model.decoder import Decoder
from trainer.model.exact.switch import make_exact
from trainer.model.experts.fp8_reference import Fp8Reference

MODELS = {
    "groups and FoPE": {},
    "one group and RoPE": {"router_groups": 1, "experts_per_token": 3, "positions": "rope", "num_kv_heads": 1},
    "fp8_reference": {"num_kv_heads": 6},
}


SLOW = {"one group and RoPE"}


@pytest.fixture(params=[pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in MODELS])
def model(request: pytest.FixtureRequest) -> Decoder:
    made = build(model_config(max_position=400, **MODELS[request.param])).requires_grad_(False)
    if request.param == "fp8_reference":
        for block in made.blocks:
            block.moe.experts.backend = Fp8Reference()
    return make_exact(made)


def test_answers_are_those_of_one_training_pass(model):
    rng = random.Random(1)
    fp8 = isinstance(model.blocks[0].moe.experts.backend, Fp8Reference)  # blocks of 128 rows: slow
    asked = requests(model.cfg, 64, rng, longest=10 if fp8 else 30)
    crowded = Engine(model, cache_tokens=1500, batch=9, chunk=40)  # requests wait, prompts come in pieces
    answers = serve(crowded, asked, rng)
    assert sum(answer.reused for answer in answers.values()) >= 1000
    assert crowded.pages.available == crowded.pages.count
    assert_as_trained(model, asked, answers)
    assert any(answer.prompt_scores is not None and answer.reused for answer in answers.values())
    if fp8 or model.cfg.router_groups == 1:
        return
    roomy = serve(Engine(model, cache_tokens=30_000, batch=64, chunk=600), asked, rng)
    assert {one: answer.ids for one, answer in roomy.items()} == {one: answer.ids for one, answer in answers.items()}
    for one, answer in roomy.items():
        assert np.array_equal(answer.log_probs, answers[one].log_probs)
        assert np.array_equal(answer.routes, answers[one].routes)


def test_bf16_has_equal_bits_too():
    rng = random.Random(2)
    model = make_exact(build(model_config(max_position=400), compute_dtype=torch.bfloat16).requires_grad_(False))
    asked = requests(model.cfg, 16, rng, longest=20)
    assert_as_trained(model, asked, serve(Engine(model, batch=9, chunk=40), asked, rng))


def test_a_model_in_usual_arithmetic_generates_too():
    rng = random.Random(3)
    model = build(model_config(max_position=400)).requires_grad_(False)
    answers = serve(Engine(model, batch=9, chunk=40), requests(model.cfg, 16, rng, longest=20), rng)
    trained = Trained(model, [[*answers[one].prompt, *answers[one].ids] for one in range(16)])
    for one, answer in answers.items():
        log_probs, routes = trained.of(one, len(answer.prompt))
        assert np.allclose(answer.log_probs, log_probs, rtol=0, atol=1e-4)
        assert np.array_equal(answer.routes, routes)


@pytest.mark.parametrize("compiler", [True, False])
def test_what_an_earlier_request_left_in_a_page_does_not_matter(compiler, monkeypatch):
    if not compiler:
        monkeypatch.setattr("trainer.model.exact.compiled.library", lambda: None)
    rng = random.Random(4)
    model = make_exact(build(model_config(max_position=400)).requires_grad_(False))
    engine = Engine(model, cache_tokens=640, batch=3, chunk=40)
    engine.cache.values.fill_(torch.nan)
    engine.cache.keys.fill_(torch.nan)
    asked = requests(model.cfg, 6, rng, longest=20)
    assert_as_trained(model, asked, serve(engine, asked, rng))


@pytest.mark.gpu
def test_a_device_generates():
    rng = random.Random(5)
    model = make_exact(build(model_config(max_position=400), compute_dtype=torch.bfloat16).requires_grad_(False).cuda())
    asked = requests(model.cfg, 8, rng, longest=20)
    answers = serve(Engine(model, batch=4, chunk=40), asked, rng)
    assert all(len(answer.log_probs) == len(answer.ids) for answer in answers.values())
    assert all(
        answer.prompt_scores is None or np.isfinite(answer.prompt_scores.log_probs).all() for answer in answers.values()
    )
    assert all(np.isfinite(answer.log_probs).all() for answer in answers.values())
