"""Position tables against their formulas in fp64, and FoPE's fixed matrices."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from tests.trainer.model.tiny import build, model_config, relative
from trainer.model.rotary import Rotary

POSITIONS = torch.tensor([0, 1, 5, 6, 0, 1, 63])
# Frequencies are rounded to fp32, as published code does: at position 63 that moves an angle by 4e-6.
BOUND = 1e-5


def angle(position: int, pair: int, theta: float, head_dim: int) -> float:
    return position * theta ** (-2.0 * pair / head_dim)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_rope(dtype):
    cfg = model_config(positions="rope", rope_theta=50.0, head_dim=12)
    cos, sin = Rotary(cfg)(POSITIONS, dtype)
    angles = torch.tensor(
        [[angle(t, i, 50.0, 12) for i in range(6)] for t in POSITIONS.tolist()], dtype=torch.float64
    ).view(7, 1, 1, 6)
    assert cos.dtype == sin.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert relative(cos, angles.cos()) <= BOUND
    assert relative(sin, angles.sin()) <= BOUND


@pytest.mark.parametrize("pad_sin", [1.0, 0.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_fope(dtype, pad_sin):
    theta, d, kv_heads = 200.0, 12, 3
    cfg = model_config(
        rope_theta=theta, head_dim=d, num_heads=6, num_kv_heads=kv_heads, max_position=40, fope_pad_sin=pad_sin
    )
    kept = [i for i in range(d // 2) if theta ** (-2.0 * i / d) > 2 * math.pi / 40]
    assert 1 < len(kept) < d // 2  # some are kept and some dropped, or the padding is not tried
    rotary = Rotary(cfg)
    generator = torch.Generator().manual_seed(0)
    for buffer in (rotary.cos_coef, rotary.sin_coef):
        assert buffer.shape == (kv_heads, len(kept), len(kept))
        buffer.copy_(torch.randn(buffer.shape, generator=generator))
    cos, sin = rotary.to(dtype)(POSITIONS, dtype)
    assert cos.dtype == sin.dtype == dtype
    for found, wave, matrices, pad in (
        (cos, math.cos, rotary.cos_coef, 1.0),
        (sin, math.sin, rotary.sin_coef, pad_sin),
    ):
        expected = torch.full((len(POSITIONS), kv_heads, 1, d // 2), pad, dtype=torch.float64)
        for row, t in enumerate(POSITIONS.tolist()):
            for head in range(kv_heads):
                for column in range(len(kept)):
                    expected[row, head, 0, column] = sum(
                        wave(angle(t, i, theta, d)) * matrices[head, i, column].item() for i in kept
                    )
        assert relative(found, expected) <= BOUND


def test_identity_matrices_give_rope():
    """FoPE whose frequencies are all kept and whose matrices are the identity is RoPE, for every kv head."""
    fope, rope = (Rotary(model_config(positions=p, max_position=10_000)) for p in ("fope", "rope"))
    for buffer in fope.buffers():
        buffer.copy_(torch.eye(4))
    for found, expected in zip(fope(POSITIONS, torch.float64), rope(POSITIONS, torch.float64), strict=True):
        assert torch.equal(found, expected.expand(-1, 2, -1, -1))


def test_tables_of_a_bf16_model_are_not_rounded():
    """At 20,000 a bf16 angle would be off by tens of turns."""
    model = build(model_config(positions="rope"), compute_dtype=torch.bfloat16)
    cos, _ = model.rotary(torch.tensor([20_000]), torch.bfloat16)
    assert abs(cos[0, 0, 0, 0].item() - math.cos(20_000)) < 1e-6


def xavier_std(shape: tuple[int, ...], gain: float) -> float:
    fan_in, fan_out = nn.init._calculate_fan_in_and_fan_out(torch.empty(shape))
    return gain * math.sqrt(2.0 / (fan_in + fan_out))


@pytest.mark.parametrize("gain", [0.5, 2.0])
def test_fope_matrices_start_as_identity_plus_xavier_normal(gain):
    cfg = model_config(
        num_heads=8, num_kv_heads=4, head_dim=128, rope_theta=5e6, max_position=262_144, fope_gain=gain, num_layers=1
    )
    rotary = build(cfg).rotary
    noise: list[Tensor] = []
    for buffer in (rotary.cos_coef, rotary.sin_coef):
        assert buffer.shape == (4, 45, 45)
        assert not buffer.requires_grad
        noise.append(buffer - torch.eye(45))
        assert noise[-1].std().item() == pytest.approx(xavier_std((4, 45, 45), gain), rel=0.03)
        assert abs(noise[-1].mean().item()) < 4 * noise[-1].std().item() / noise[-1].numel() ** 0.5
        assert abs(noise[-1].diagonal(dim1=1, dim2=2).mean().item()) < 0.3 * noise[-1].std().item()
    heads = torch.cat(noise).flatten(1)
    correlation = torch.corrcoef(heads) - torch.eye(8)
    assert correlation.abs().max() < 0.1  # cos and sin and every head draw their own
