"""Numbers of the policy objective with which no token, or no rollout, would be trained on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

from parallel.errors import Fault
from trainer.config.rl.keys import Estimator, RlConfig

MOST_RATIO = 1e8  # bounds above it are never reached: log-ratios are cut to 20
# keys that are off without a value -> (the least, the bound that is out of range, both in words)
LIMITS: dict[str, tuple[float, float | None, str]] = {
    "clip_low": (0.0, 1.0, "0 to below 1"),
    "clip_high": (0.0, None, "0 or more"),
    "dual_clip": (1.0, None, "1 or more"),
    "veto_low": (0.0, 1.0, "0 to below 1"),
}


def check(rl: RlConfig, seq_len: int) -> Iterator[Fault]:
    """Faults of the numbers of `rl`, windows being `seq_len` tokens long."""
    if rl.group_size == 1:
        text = "rl.group_size=1 has no other rollouts to compare with; use 2 or more"
        yield Fault(text, "rl.group_size", 1, "2 or more")
    for low, high in (("alpha", "beta"), ("off_alpha", "off_beta")):
        least, most = getattr(rl, low), getattr(rl, high)
        if not 0 <= least < 1 < most <= MOST_RATIO:
            text = f"rl.{low}={least:g} and rl.{high}={most:g} must have 1 between them and be from 0 to {MOST_RATIO:g}"
            key, allowed = (low, "0 to below 1") if not 0 <= least < 1 else (high, f"above 1, to {MOST_RATIO:g}")
            yield Fault(f"{text}; use values such as 0.5 and 5", f"rl.{key}", getattr(rl, key), allowed)
    for key, (least, below, allowed) in LIMITS.items():
        value = getattr(rl, key)
        if value is not None and not (least <= value and (below is None or value < below)):
            text = f"rl.{key}={value:g} is out of range; use {allowed}, or null for none"
            yield Fault(text, f"rl.{key}", value, allowed)
    if rl.veto_high is not None and rl.veto_high <= 1:
        text = f"rl.veto_high={rl.veto_high:g} leaves out rollouts without a mismatch; use a number above 1, or null"
        yield Fault(text, "rl.veto_high", rl.veto_high, "above 1, such as 20")
    default = RlConfig()
    for key in ("kl_estimator", "kl_reference") if rl.kl_coef == 0 else ():
        value = getattr(rl, key)
        known = key != "kl_estimator" or value in get_args(Estimator)  # others are refused for themselves
        if known and value != getattr(default, key):
            text = f"rl.{key}={value} has no effect with rl.kl_coef=0"
            allowed = "a number above 0, such as 0.1"
            yield Fault(f"{text}; leave it out, or use {allowed}", "rl.kl_coef", rl.kl_coef, allowed)
    if rl.max_tokens > seq_len > 0:
        text = f"rl.max_tokens={rl.max_tokens} is longer than a window (data.seq_len={seq_len}); use {seq_len} or less"
        yield Fault(f"{text}, or longer windows", "rl.max_tokens", rl.max_tokens, f"{seq_len} or less")
