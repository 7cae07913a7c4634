"""Sizes of a model that do not fit each other."""

from __future__ import annotations

import math

from parallel.errors import Fault, one_of
from parallel.layout import divisors
from trainer.config.model import ModelConfig
from trainer.config.say import closest


def check(m: ModelConfig, seq_len: int) -> list[Fault]:
    """Faults of the section `model`, whose sizes must be positive. seq_len: tokens of one sample."""
    faults = []
    for key, other in (
        ("num_kv_heads", "num_heads"),
        ("router_groups", "num_experts"),
        ("router_groups", "experts_per_token"),
    ):
        part, total = getattr(m, key), getattr(m, other)
        if total % part:
            both = total if key == "num_kv_heads" else math.gcd(m.num_experts, m.experts_per_token)
            fit = closest(divisors(both), part)
            text = f"model.{key}={part} does not divide model.{other}={total}; use model.{key}={one_of(fit)}"
            faults.append(Fault(text, f"model.{key}", part, fit))
    if m.head_dim % 2:
        text = f"model.head_dim={m.head_dim} is odd, but rotary embeddings pair its channels; use {m.head_dim + 1}"
        faults.append(Fault(text, "model.head_dim", m.head_dim, (m.head_dim + 1,)))
    if m.experts_per_token > m.num_experts:
        text = f"model.experts_per_token={m.experts_per_token} is more than model.num_experts={m.num_experts}"
        allowed = f"{m.num_experts} or less"
        faults.append(Fault(f"{text}; use {allowed}", "model.experts_per_token", m.experts_per_token, allowed))
    faults += _positions(m)
    if seq_len > m.max_position:
        text = f"data.seq_len={seq_len} is longer than model.max_position={m.max_position}"
        allowed = f"{m.max_position} or less"
        faults.append(Fault(f"{text}; use {allowed}, or raise model.max_position", "data.seq_len", seq_len, allowed))
    return faults


def _positions(m: ModelConfig) -> list[Fault]:
    faults = []
    if m.rope_theta <= 1:
        text = f"model.rope_theta={m.rope_theta:g} must be more than 1, so that frequencies decrease; try 1e4"
        faults.append(Fault(text, "model.rope_theta", m.rope_theta, "more than 1, such as 1e4"))
    elif m.positions == "fope" and m.head_dim % 2 == 0 and m.fope_frequencies() < 1:
        text = f"model.max_position={m.max_position} is too small for model.positions=fope: it removes every frequency"
        allowed = "7 or more, or model.positions=rope"
        faults.append(Fault(f"{text}; use {allowed}", "model.max_position", m.max_position, allowed))
    if m.fope_pad_sin not in (0, 1):
        text = f"model.fope_pad_sin={m.fope_pad_sin:g} is not supported; use 1 (as published code does) or 0"
        faults.append(Fault(text, "model.fope_pad_sin", m.fope_pad_sin, (1, 0)))
    return faults
