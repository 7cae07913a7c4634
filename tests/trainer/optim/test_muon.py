"""Muon in one process: Newton-Schulz against an SVD, whole steps against torch.optim.Muon, which weights it takes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from parallel.world import World
from tests.trainer.tiny_run import tiny_config
from trainer.config.compose import compose
from trainer.config.keys import OptimConfig
from trainer.config.model import newton_schulz_flops
from trainer.model.decoder import Decoder
from trainer.optim.hidden import hidden_matrices
from trainer.optim.native import NativeEngine
from trainer.optim.newton_schulz import A, B, C, orthogonalise

SHAPES = [(1, 7, 12), (3, 12, 7), (2, 9, 9), (5, 1, 6), (4, 6, 1), (1, 1, 1)]
LR, DECAY, STEPS = 0.02, 0.3, 3


def random(shape: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def by_svd(stack: Tensor, iterations: int = 5) -> Tensor:
    """The same from the singular values: s -> a s + b s^3 + c s^5, of s divided by the root of the sum of squares."""
    left, values, right = torch.linalg.svd(stack, full_matrices=False)
    values = values / values.square().sum(-1, keepdim=True).sqrt()
    for _ in range(iterations):
        values = A * values + B * values**3 + C * values**5
    return left @ (values.unsqueeze(-1) * right)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_iterations_are_the_quintic_of_each_singular_value(shape):
    stack = random(shape, 1)
    torch.testing.assert_close(orthogonalise(stack, 5), by_svd(stack), rtol=0, atol=1e-12)
    single = orthogonalise(stack.float(), 5)
    torch.testing.assert_close(single.double(), by_svd(stack), rtol=0, atol=2e-4)


@pytest.mark.parametrize("shape", [(4, 24, 40), (4, 40, 24)], ids=str)
def test_the_result_is_near_the_nearest_orthogonal_matrix(shape):
    """Every singular value ends between 0.68 and 1.21, in the directions of the matrix' own singular vectors."""
    stack = random(shape, 2)
    left, _, right = torch.linalg.svd(stack, full_matrices=False)
    found = orthogonalise(stack, 5)
    values = torch.linalg.svdvals(found)
    assert values.min() > 0.68
    assert values.max() < 1.21
    nearest = left @ right
    assert torch.cosine_similarity(found.flatten(1), nearest.flatten(1)).min() > 0.97


def test_one_iteration_of_many_is_scaled_by_itself():
    """A stack is its matrices one by one; zero stays zero, and NaN stays in its own matrix."""
    stack = random((4, 5, 8), 3)
    stack[0] *= 1e6
    stack[1] = 0.0
    stack[2, 1, 1] = float("nan")
    found = orthogonalise(stack, 5)
    for number in (0, 3):
        torch.testing.assert_close(found[number], by_svd(stack[number : number + 1])[0], rtol=0, atol=1e-12)
    assert (found[1] == 0).all()
    assert found[2].isnan().all()


@pytest.mark.parametrize("shape", [(3, 6, 10), (2, 10, 6), (1, 8, 8)], ids=str)
def test_flops_are_those_of_the_products_that_run(shape):
    with FlopCounterMode(display=False) as counter:
        orthogonalise(torch.randn(shape), 4)
    assert counter.get_total_flops() == shape[0] * newton_schulz_flops(*shape[1:], 4)


# ---- in the engine


def engine_of(dtype: torch.dtype = torch.float64, moments: torch.dtype | None = None, **keys) -> NativeEngine:
    model = Decoder(tiny_config("unused").model).to(dtype)
    model.init_weights(3)
    options = {"lr": LR, "weight_decay": DECAY, "momentum": 0.9, "clip_norm": 0.0, "schedule": "constant", **keys}
    engine = NativeEngine(model, OptimConfig(name="muon", **options), World(), moments=moments)
    engine.prepare()
    return engine


def give_gradients(engine: NativeEngine, step: int, scale: float = 1.0) -> None:
    for number, p in enumerate(engine.named.values()):
        p.grad = random(tuple(p.shape), 1000 * step + number, p.dtype) * scale


def matrices(name: str, weight: Tensor, rows: dict[str, tuple[int, ...]]) -> list[Tensor]:
    """Every matrix of a hidden weight by itself."""
    if weight.ndim == 2:
        return list(weight.split(rows[name]))
    return list(weight.flatten(0, -3))


def test_the_weights_that_are_orthogonalised():
    model = tiny_config("unused").model
    rows = hidden_matrices(Decoder(model))
    heads, kv = model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
    layer = {
        "attention.qkv": (heads, kv, kv),
        "attention.out": (model.hidden_size,),
        "moe.experts.w13": (model.expert_width,),
        "moe.experts.w2": (model.hidden_size,),
    }
    assert rows == {f"layers.{n}.{name}": of for n in range(model.num_layers) for name, of in layer.items()}
    named = dict(Decoder(model).named_parameters())
    assert sum(named[name].numel() for name in rows) == model.hidden_matrix_params()


def test_a_models_flops_are_those_of_its_step():
    engine = engine_of(torch.float32, ns_steps=3)
    give_gradients(engine, 1)
    with FlopCounterMode(display=False) as counter:
        engine.step(1, 1)
    assert counter.get_total_flops() == engine.stages[0].cfg.newton_schulz_flops(3)


def test_the_largest_model_spends_less_than_one_percent_on_it():
    cfg = compose(["recipe=cpt_6t", "optim=muon"], world_size=512)
    tokens = cfg.train.global_batch * cfg.data.seq_len
    assert tokens > 100e6
    share = cfg.model.newton_schulz_flops(cfg.optim.ns_steps) / (tokens * cfg.model.flops_per_token(cfg.data.seq_len))
    assert 0 < share < 0.01


@pytest.mark.parametrize("adjust", ["match_rms_adamw", "original"])
@pytest.mark.parametrize("scale", [1.0, 1e-3], ids=["clipped", "below the limit"])
def test_steps_are_momentum_then_svd_in_fp64(adjust, scale):
    """Nesterov momentum of clipped gradients, decoupled decay by the rate itself, the factor for each shape."""
    engine = engine_of(adjust_lr=adjust, clip_norm=20.0)
    rows = hidden_matrices(engine.stages[0])
    weights = {name: matrices(name, engine.named[name].detach().clone(), rows) for name in rows}
    buffers = {name: [torch.zeros_like(matrix) for matrix in weights[name]] for name in rows}
    for step in range(1, STEPS + 1):
        give_gradients(engine, step, scale)
        grads = {name: matrices(name, engine.named[name].grad.clone(), rows) for name in rows}
        norm = torch.cat([p.grad.flatten() for p in engine.named.values()]).norm()
        clip = max(1.0, (norm / 20.0).float().item())
        assert engine.step(step, STEPS)["grad_norm"].item() == pytest.approx(norm.item())
        for name, parts in weights.items():
            for matrix, buffer, grad in zip(parts, buffers[name], grads[name], strict=True):
                buffer.mul_(0.9).add_(0.1 * grad / clip)
                high, wide = matrix.shape
                factor = 0.2 * max(high, wide) ** 0.5 if adjust == "match_rms_adamw" else max(1, high / wide) ** 0.5
                update = by_svd((0.9 * buffer + 0.1 * grad / clip).unsqueeze(0))[0]
                matrix.mul_(1 - LR * DECAY).sub_(LR * factor * update)
    for name, parts in weights.items():
        found = matrices(name, engine.named[name].detach(), rows)
        for one, other in zip(found, parts, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("adjust", ["match_rms_adamw", "original"])
def test_two_dimensional_weights_take_the_steps_of_torchs_muon(adjust):
    """That one iterates in bfloat16 whatever the weights are in."""
    engine = engine_of(torch.float32, adjust_lr=adjust, ns_dtype="bf16")
    names = [name for name in hidden_matrices(engine.stages[0]) if name.endswith("attention.out")]
    theirs = {name: torch.nn.Parameter(engine.named[name].detach().clone()) for name in names}
    options = {"lr": LR, "weight_decay": DECAY, "momentum": 0.9, "adjust_lr_fn": adjust}
    muon = torch.optim.Muon(list(theirs.values()), **options)
    for step in range(1, STEPS + 1):
        give_gradients(engine, step)
        for name, p in theirs.items():
            p.grad = engine.named[name].grad.clone()
        engine.step(step, STEPS)
        muon.step()
    state = engine.state()
    for name, p in theirs.items():
        torch.testing.assert_close(state[f"{name}.momentum_buffer"], muon.state[p]["momentum_buffer"], rtol=0, atol=0)
        torch.testing.assert_close(engine.named[name].detach(), p.detach(), rtol=0, atol=LR * STEPS * 2**-6)


def test_all_other_weights_take_adamws_steps_at_their_own_rate():
    ratio, betas = 0.25, [0.8, 0.9]
    engine = engine_of(adamw_lr_ratio=ratio, betas=betas, eps=1e-6)
    rows = hidden_matrices(engine.stages[0])
    copies = {name: torch.nn.Parameter(p.detach().clone()) for name, p in engine.named.items() if name not in rows}
    groups = [
        {"params": [p for p in copies.values() if p.ndim > 1], "weight_decay": DECAY},
        {"params": [p for p in copies.values() if p.ndim == 1], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, lr=LR * ratio, betas=tuple(betas), eps=1e-6)
    for step in range(1, STEPS + 1):
        give_gradients(engine, step)
        for name, p in copies.items():
            p.grad = engine.named[name].grad.clone()
        engine.step(step, STEPS)
        adamw.step()
    for name, p in copies.items():
        torch.testing.assert_close(engine.named[name].detach(), p.detach(), rtol=1e-9, atol=1e-12)


def live(engine: NativeEngine) -> list[Tensor]:
    moments = [tensor for name, tensor in engine.state().items() if name != "skipped"]
    return [tensor.detach().clone() for tensor in (*engine.named.values(), *moments)]


@pytest.mark.parametrize("moments", [None, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("clip_norm", [0.0, 1.0])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_step_that_is_not_finite_leaves_every_bit(moments, clip_norm, bad):
    engine, reference = (engine_of(torch.float32, moments, clip_norm=clip_norm) for _ in range(2))
    with torch.no_grad():
        for of in (engine, reference):
            of.named["layers.0.attention.out"][0, :2] = -0.0
    skipped = []
    for step, is_bad in enumerate([True, False, True, True, False], start=1):
        give_gradients(engine, step)
        give_gradients(reference, step)
        if is_bad:
            engine.named["layers.1.moe.experts.w2"].grad[0, 0, 0] = bad
            before = live(engine)
            skipped.append(engine.step(step, 5)["skipped"].item())
            assert all(
                torch.equal(a.view(torch.uint8), b.view(torch.uint8))
                for a, b in zip((t.reshape(-1) for t in before), (t.reshape(-1) for t in live(engine)), strict=True)
            )
        else:
            skipped.append(engine.step(step, 5)["skipped"].item())
            reference.step(step, 5)
    assert all(torch.equal(a, b) for a, b in zip(live(engine), live(reference), strict=True))
    assert skipped == [1, 1, 2, 3, 3]


def test_momentum_in_bf16_is_that_of_fp32_rounded_after_each_step():
    engine = engine_of(torch.float32, torch.bfloat16)
    rows = hidden_matrices(engine.stages[0])
    buffers = {name: torch.zeros_like(engine.named[name]) for name in rows}
    for step in range(1, STEPS + 1):
        give_gradients(engine, step)
        for name, buffer in buffers.items():
            buffer.copy_(buffer.lerp(engine.named[name].grad, 0.1).bfloat16())
        engine.step(step, STEPS)
    state = engine.state()
    for name, buffer in buffers.items():
        assert state[f"{name}.momentum_buffer"].dtype == torch.bfloat16
        assert torch.equal(state[f"{name}.momentum_buffer"].float(), buffer), name


def test_a_weight_without_a_gradient_is_left_alone():
    engine = engine_of()
    name = "layers.0.moe.experts.w13"
    before = engine.named[name].detach().clone()
    for step in (1, 2):
        give_gradients(engine, step)
        engine.named[name].grad = None
        engine.step(step, 2)
    assert torch.equal(engine.named[name], before)
    assert not torch.equal(engine.named["layers.1.moe.experts.w13"], before)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_gpu_orthogonalises_and_skips_without_waiting(dtype):
    model = Decoder(tiny_config("unused").model).cuda()
    model.init_weights(3)
    cfg = OptimConfig(name="muon", lr=LR, ns_dtype=dtype, schedule="constant")
    engine = NativeEngine(model, cfg, World(device=torch.device("cuda")))
    engine.prepare()
    alone = engine_of(torch.float32, momentum=0.9, weight_decay=0.1, clip_norm=1.0, ns_dtype=dtype)
    for of in (engine, alone):
        give_gradients(alone, 1)
        for p, q in zip(of.named.values(), alone.named.values(), strict=True):
            p.grad = q.grad.to(p.device)
        if of is engine:
            torch.cuda.set_sync_debug_mode("error")
        try:
            of.step(1, 1)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    for name in hidden_matrices(model):
        torch.testing.assert_close(engine.named[name].cpu(), alone.named[name], rtol=0, atol=LR * 2**-5)
