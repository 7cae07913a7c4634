"""Schedules, clipping and the guard that skips a step on the device."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from parallel.world import World
from trainer.config.keys import OptimConfig
from trainer.optim.native import NativeEngine
from trainer.optim.schedule import lr_at

NAN, INF = float("nan"), float("inf")


def small_model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5), nn.Linear(5, 3, bias=False))


def set_gradients(model: nn.Module, seed: int, scale: float = 1.0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=generator) * scale


def native(model: nn.Module, cfg: OptimConfig, moments: torch.dtype | None = None) -> NativeEngine:
    engine = NativeEngine(model, cfg, World(), moments=moments)
    engine.prepare()
    return engine


def snapshot(engine: NativeEngine) -> list[torch.Tensor]:
    moments = [value for name, value in engine.state().items() if name != "skipped"]
    return [tensor.detach().clone() for tensor in (*engine.stages[0].parameters(), *moments)]


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_warmup_stable_decay():
    cfg = OptimConfig(lr=1.0, schedule="wsd", warmup_steps=4, decay_fraction=0.2, min_lr_ratio=0.1)
    rates = [lr_at(step, cfg, 20) for step in range(1, 21)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4:16] == [1.0] * 12
    assert rates[16:] == pytest.approx([0.775, 0.55, 0.325, 0.1])


def test_cosine_and_constant():
    cosine = OptimConfig(lr=2.0, schedule="cosine", warmup_steps=0, min_lr_ratio=0.5)
    assert lr_at(10, cosine, 20) == pytest.approx(1.5)
    assert lr_at(20, cosine, 20) == pytest.approx(1.0)
    rates = [lr_at(step, cosine, 20) for step in range(1, 21)]
    assert rates == sorted(rates, reverse=True)
    constant = OptimConfig(lr=2.0, schedule="constant", warmup_steps=2)
    assert [lr_at(step, constant, 20) for step in (1, 2, 3, 20)] == [1.0, 2.0, 2.0, 2.0]


@pytest.mark.parametrize("schedule", ["wsd", "cosine", "constant"])
def test_a_run_of_one_step_has_a_rate(schedule):
    assert lr_at(1, OptimConfig(lr=1.0, schedule=schedule, min_lr_ratio=0.1), 1) > 0


def test_vectors_are_not_decayed():
    model = small_model()
    (optimizer,) = native(model, OptimConfig(weight_decay=0.1)).optimizers
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert {name: decay[id(p)] for name, p in model.named_parameters()} == {
        "0.weight": 0.1, "0.bias": 0.0, "1.weight": 0.0, "1.bias": 0.0, "2.weight": 0.1,
    }  # fmt: skip


@pytest.mark.parametrize("name", ["adamw", "sgd"])
@pytest.mark.parametrize("scale", [0.01, 100.0], ids=["below the limit", "above the limit"])
def test_clipping_is_torchs(name, scale):
    cfg = OptimConfig(name=name, lr=0.1, clip_norm=1.0, schedule="constant")
    ours, theirs = small_model(), small_model()
    engine, (plain,) = native(ours, cfg), native(theirs, cfg).optimizers
    for step in range(1, 4):
        set_gradients(ours, step, scale)
        set_gradients(theirs, step, scale)
        norm = engine.step(step, 3)["grad_norm"]
        assert norm.item() == pytest.approx(nn.utils.clip_grad_norm_(theirs.parameters(), 1.0).item())
        plain.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize(("name", "moments"), [("adamw", None), ("adamw", torch.bfloat16), ("sgd", None)])
@pytest.mark.parametrize("bad", [NAN, INF])
@pytest.mark.parametrize("clip_norm", [0.0, 1.0])
def test_a_step_that_is_not_finite_changes_nothing(name, moments, bad, clip_norm):
    """Bitwise: parameters, moments, step counts, at the first step and later, and the steps after it are as if it had
    never been."""
    cfg = OptimConfig(name=name, lr=0.1, clip_norm=clip_norm, schedule="constant")
    model, untouched = small_model(), small_model()
    engine, reference = native(model, cfg, moments), native(untouched, cfg, moments)
    seen = []
    for step, is_bad in enumerate([True, False, True, True, False], start=1):
        set_gradients(model, step)
        set_gradients(untouched, step)
        if is_bad:
            next(model.parameters()).grad[0, 0] = bad
            before = snapshot(engine)
            update = engine.step(step, 5)
            assert not torch.isfinite(update["grad_norm"])
            assert same(before, snapshot(engine))
        else:
            update = engine.step(step, 5)
            reference.step(step, 5)
        seen.append([update["skipped_in_a_row"].item(), update["skipped"].item()])
    assert same(snapshot(engine), snapshot(reference))
    assert seen == [[1, 1], [0, 1], [1, 2], [2, 3], [0, 3]]


@pytest.mark.parametrize(("name", "moments"), [("adamw", None), ("adamw", torch.bfloat16), ("sgd", None)])
@pytest.mark.parametrize("clip_norm", [0.0, 1.0])
def test_a_step_above_the_limit_changes_nothing(name, moments, clip_norm):
    """Bitwise, as one that is not finite; the norm is of the gradient before clipping. One at the limit is taken."""
    cfg = OptimConfig(name=name, lr=0.1, clip_norm=clip_norm, schedule="constant")
    model, untouched = small_model(), small_model()
    set_gradients(model, 1)
    limit = nn.utils.get_total_norm([p.grad for p in model.parameters()]).item() * 2
    engine, reference = (
        NativeEngine(one, cfg, World(), moments=moments, skip_above=above)
        for one, above in ((model, limit), (untouched, 0.0))
    )
    engine.prepare()
    reference.prepare()
    seen = []
    for step, scale in enumerate([100.0, 1.0, 100.0, float("nan"), 1.0], start=1):
        set_gradients(model, step, scale)
        set_gradients(untouched, step, scale)
        before = snapshot(engine)
        update = engine.step(step, 5)
        if scale == 1.0:
            reference.step(step, 5)
            assert not same(before, snapshot(engine))
        else:
            assert not update["grad_norm"] <= limit
            assert same(before, snapshot(engine))
        seen.append([update["skipped_in_a_row"].item(), update["skipped"].item()])
    assert same(snapshot(engine), snapshot(reference))
    assert seen == [[1, 1], [0, 1], [1, 2], [2, 3], [0, 3]]
    engine.skip_above = 0.5
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    next(model.parameters()).grad[0, 0] = 0.5
    assert engine.step(6, 6)["skipped_in_a_row"] == 0


@pytest.mark.parametrize("elements", [1, 7, 12, 1000], ids=lambda elements: f"{elements} at a time")
@pytest.mark.parametrize("scale", [0.01, 100.0], ids=["below the limit", "above the limit"])
def test_moments_in_bf16_are_adamw_in_fp32_rounded_after_each_step(monkeypatch, elements, scale):
    """However the elements are cut into pieces, and with clipping: the same formula, written out."""
    monkeypatch.setattr("trainer.optim.narrow_adamw.WIDENED", elements)
    cfg = OptimConfig(lr=0.1, clip_norm=1.0, schedule="constant", weight_decay=0.1)
    model = small_model()
    engine = native(model, cfg, torch.bfloat16)
    weights = {name: p.detach().double() for name, p in model.named_parameters()}
    means, squares = ({name: torch.zeros_like(w) for name, w in weights.items()} for _ in range(2))
    for step in range(1, 5):
        set_gradients(model, step, scale)
        grads = {name: p.grad.double() for name, p in model.named_parameters()}
        norm = torch.stack([grad.square().sum() for grad in grads.values()]).sum().sqrt()
        for name, grad in grads.items():
            grad = grad / max(1.0, norm.item())
            mean, square = 0.9 * means[name] + 0.1 * grad, 0.95 * squares[name] + 0.05 * grad.square()
            decay = 1 - 0.1 * 0.1 if grad.ndim > 1 else 1.0
            root = (square / (1 - 0.95**step)).sqrt() + 1e-8
            weights[name] = decay * weights[name] - 0.1 * mean / (1 - 0.9**step) / root
            means[name], squares[name] = (moment.float().bfloat16().double() for moment in (mean, square))
        engine.step(step, 4)
        state = engine.state()
        for name, p in model.named_parameters():
            torch.testing.assert_close(p.double(), weights[name], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(state[f"{name}.exp_avg"].double(), means[name], rtol=2**-7, atol=0)
            torch.testing.assert_close(state[f"{name}.exp_avg_sq"].double(), squares[name], rtol=2**-7, atol=0)
            assert state[f"{name}.step"] == step


def test_gradients_are_dropped_after_the_step():
    model = small_model()
    set_gradients(model, 1)
    native(model, OptimConfig()).step(1, 1)
    assert all(p.grad is None for p in model.parameters())
