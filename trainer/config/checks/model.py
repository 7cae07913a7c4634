"""Sizes of a model that do not fit each other."""

from __future__ import annotations

import math
from collections.abc import Iterator

from parallel.errors import Fault, one_of
from parallel.layout import divisors
from trainer.config.model import InternViTConfig, ModelConfig, TimeSeriesConfig, VisionConfig
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
    faults += [*_placeholders(m), *_vision(m.vision), *_signals(m.signals)]
    for key, tower in (("model.vision.out_width", m.vision), ("model.signals.out_width", m.signals)):
        if tower is not None and tower.out_width != m.hidden_size:
            text = f"{key}={tower.out_width} is not model.hidden_size={m.hidden_size}; use {m.hidden_size}"
            faults.append(Fault(text, key, tower.out_width, (m.hidden_size,)))
    if seq_len > m.max_position:
        text = f"data.seq_len={seq_len} is longer than model.max_position={m.max_position}"
        allowed = f"{m.max_position} or less"
        faults.append(Fault(f"{text}; use {allowed}, or raise model.max_position", "data.seq_len", seq_len, allowed))
    return faults


def _placeholders(m: ModelConfig) -> Iterator[Fault]:
    tokens = f"0 to {m.vocab_size - 1}"
    for name, tower, token in (("image", m.vision, m.image_token), ("signal", m.signals, m.signal_token)):
        key, section = f"model.{name}_token", "model.vision" if name == "image" else "model.signals"
        if tower is None and token is not None:
            yield Fault(f"{key}={token} has no use without {section}; use null", key, token, (None,))
        elif tower is not None and token is None and m.embedding is None:
            yield Fault(f"{key} is not set, and {section} needs it; use a token, {tokens}", key, None, tokens)
        elif token is not None and not 0 <= token < m.vocab_size:
            text = f"{key}={token} is not a token of model.vocab_size={m.vocab_size}; use {tokens}"
            yield Fault(text, key, token, tokens)
    if m.image_token is not None and m.image_token == m.signal_token:
        text = f"model.signal_token={m.signal_token} is model.image_token too; use another token"
        yield Fault(text, "model.signal_token", m.signal_token, tokens)


def _vision(v: VisionConfig | InternViTConfig | None) -> Iterator[Fault]:
    if isinstance(v, VisionConfig):
        yield from _heads("model.vision", v.width, v.num_heads, 4)
    elif isinstance(v, InternViTConfig):
        yield from _heads("model.vision", v.width, v.num_heads)
        block = v.patch_size * v.merge
        if v.tile_size % block:
            fit = tuple(size * block for size in {max(1, v.tile_size // block), v.tile_size // block + 1})
            text = f"model.vision.tile_size={v.tile_size} is not a multiple of patch_size x merge = {block}"
            yield Fault(f"{text}; use {one_of(fit)}", "model.vision.tile_size", v.tile_size, fit)


def _signals(s: TimeSeriesConfig | None) -> Iterator[Fault]:
    if s is not None:
        yield from _heads("model.signals", s.width, s.num_heads)
        yield from _heads("model.signals", s.patch_width, s.patch_heads, patches=True)


def _heads(section: str, width: int, heads: int, unit: int = 1, *, patches: bool = False) -> Iterator[Fault]:
    if width % (heads * unit) == 0:
        return
    key, whole = (f"{section}.patch_heads", "patch_width") if patches else (f"{section}.num_heads", "width")
    whole = f"{section}.{whole}"
    fit = closest([n for n in divisors(width) if width % (n * unit) == 0], heads)
    block = heads * unit
    widths = tuple(n * block for n in ([width // block] if width > block else []) + [width // block + 1])
    into = f" into heads of a multiple of {unit}" if unit > 1 else ""
    text = f"{key}={heads} does not divide {whole}={width}{into}; use "
    if fit:
        yield Fault(f"{text}{key}={one_of(fit)}, or {whole}={one_of(widths)}", key, heads, fit)
    else:  # no number of heads fits this width
        yield Fault(f"{text}{whole}={one_of(widths)}", whole, width, widths)


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
