"""A model with towers in bf16: its loss and gradients are near those of fp32."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from parallel.layout import Place
from tests.trainer.model.tiny import relative
from tests.trainer.stages.layouts import Case, step_batches
from trainer.data.media.placed import alike, placed
from trainer.model.dual_encoder import make_decoder
from trainer.model.multimodal import Multimodal
from trainer.model.towers.time_series import prepare_signal
from trainer.objectives.next_token import NextToken
from trainer.objectives.scalars import GlobalBatch


def initialised(**changed: object) -> Multimodal:
    cfg = replace(Case(towers=True, layers=2).config().model, **changed)
    with torch.device("meta"):
        model = make_decoder(cfg)
    model.to_empty(device="cpu").init_weights(1)
    assert isinstance(model, Multimodal)
    return model


def test_the_signals_tower_keeps_the_variance_of_what_passes_through_it():
    for name, weight in initialised(init_std=0.02).named_parameters():
        if name.startswith(("signals.", "vision.")) and weight.ndim > 1:
            kept = name.startswith("signals.") and name != "signals.positions"
            std = 1 / math.sqrt(weight[0].numel()) if kept else 0.02
            assert weight.std().item() == pytest.approx(std, rel=5 / weight.numel() ** 0.5), name


def test_signals_differ_from_the_first_step_whatever_the_decoders_spread():
    """They did not with a standard deviation of 0.02: fixed positions drowned them, and nothing was learned."""
    tower = initialised(init_std=0.02).signals
    assert tower is not None
    steps = torch.arange(64.0)
    signals = [prepare_signal(values) for values in (steps, torch.sin(steps), torch.sin(steps / 5), (steps - 20) ** 2)]
    with torch.no_grad():
        embeddings = tower(signals).view(len(signals), -1)
    spread = (embeddings - embeddings.mean(0)).square().mean().sqrt() / embeddings.square().mean().sqrt()
    assert spread > 0.2


def step(dtype: torch.dtype | None) -> tuple[float, dict[str, torch.Tensor]]:
    case = Case(towers=True, layers=2)
    cfg = case.config()
    with torch.device("meta"):
        model = make_decoder(cfg.model, dtype)
    model.to_empty(device="cpu")
    model.init_weights(1)
    placed_batches = [placed(batch, cfg.model) for batch in step_batches(case, Place())]
    batches = [alike(batch, cfg.model, images=True, signals=True) for batch in placed_batches]
    total = sum(NextToken(32)(model, batch, GlobalBatch(100, len(batches))).total for batch in batches)
    total.backward()
    return float(total), {
        name: p.grad for name, p in model.named_parameters() if name.startswith(("vision", "signals"))
    }


def test_towers_in_bf16_are_near_those_in_fp32():
    loss, expected = step(None)
    for _ in range(5):  # a backward pass that reads more than it should is wrong now and then
        found, grads = step(torch.bfloat16)
        assert abs(found - loss) < 0.02 * loss
        assert grads.keys() == expected.keys()
        assert all(grad.dtype == torch.float32 for grad in grads.values())
        far = {name: relative(grad, expected[name]) for name, grad in grads.items()}
        assert max(far.values()) < 0.5, max(far, key=far.get)
