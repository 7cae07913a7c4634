"""Values outside their key's choices, and numbers outside the range of their key."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin

from parallel.errors import Fault, one_of
from trainer.config import coerce
from trainer.config.keys import Config
from trainer.config.say import did_you_mean, show

# Keys that must be above zero, and keys that may also be zero.
POSITIVE = {
    "model.vocab_size",
    "model.hidden_size",
    "model.num_layers",
    "model.num_heads",
    "model.num_kv_heads",
    "model.head_dim",
    "model.num_experts",
    "model.experts_per_token",
    "model.router_groups",
    "model.expert_width",
    "model.max_position",
    "model.norm_eps",
    "model.init_std",
    "model.router_temperature",
    "data.seq_len",
    "data.tokens_per_source",
    "data.min_pixels",
    "data.max_pixels",
    "parallel.overlap",
    "parallel.pp",
    "parallel.cp",
    "parallel.timeout_s",
    "optim.lr",
    "optim.eps",
    "optim.adamw_lr_ratio",
    "optim.ns_steps",
    "lora.rank",
    "lora.alpha",
    "lora.plus_ratio",
    "train.contrastive_temperature",
    "train.steps",
    "train.log_every",
    "train.global_batch",
    "train.micro_batch",
    "train.eval_batches",
    "train.max_skipped",
    "train.loss_chunk",
    "checkpoint.keep",
    "rl.group_size",
    "rl.max_tokens",
    "rl.updates",
    "rl.oversample",
    "rl.bucket_mb",
    "rl.rollout_workers",
    "rl.concurrent",
    "rl.deadline_s",
    "rl.environment_s",
    "rl.eval_questions",
}
NOT_NEGATIVE = {
    "model.fope_gain",
    "model.balance_coef",
    "model.z_loss_coef",
    "parallel.stages_per_rank",
    "parallel.dp_replicate",
    "parallel.dp_shard",
    "parallel.ep",
    "optim.weight_decay",
    "optim.clip_norm",
    "optim.warmup_steps",
    "data.max_skips",
    "data.workers",
    "train.seed",
    "train.eval_every",
    "train.sample_tokens",
    "checkpoint.every",
    "rl.entropy_coef",
    "rl.kl_coef",
    "rl.skip_grad_norm",
    "rl.max_staleness",
    "rl.environment_workers",
    "rl.ray_cpus",
    "rl.ray_gpus",
}

TOWERS = ("model.vision.", "model.signals.")  # sections whose numbers are all above zero
LEAST = {
    "model.head_dim": 2,
    "model.max_position": 7,
    "model.rope_theta": 2,
    "rl.group_size": 2,
}  # what other checks take
OWN_CHECK = {
    "data.holdout_fraction",
    "lora.dropout",
    "rl.alpha",
    "rl.beta",
    "rl.off_alpha",
    "rl.off_beta",
}  # floats with a narrower range, which another check reports
# The most that code and files hold: int64 for numbers, uint64 for the seed of a generator, fp32 for factors on tensors.
MOST, MOST_SEED = 2**63 - 1, 2**64 - 1
LEAST_FLOAT, MOST_FLOAT = 1.2e-38, 3.4e38
MOST_SECONDS = 1e9  # 31 years; the clocks of threads and collectives end not far beyond


def unknown_choices(flat: Mapping[str, Any]) -> list[Fault]:
    """Faults of keys with a fixed set of values. flat: dotted key -> value."""
    faults = []
    known = coerce.keys(Config)
    for key, value in flat.items():
        hint = coerce.find(key, known)
        choices = get_args(hint) if get_origin(hint) is Literal else (value,)
        if value in choices:
            continue
        if len(choices) == 1:
            text = f"{key}={value} is not available; the only value is {choices[0]}"
        else:
            text = f"{key}={value} does not exist; use {one_of(choices)}{did_you_mean(str(value), choices)}"
        faults.append(Fault(text, key, value, choices))
    return faults


def out_of_range(flat: Mapping[str, Any]) -> dict[str, Fault]:
    """Key -> fault, for numbers outside the range of their kind. flat: dotted key -> value."""
    found = {key: _fault(key, value) for key, value in flat.items() if isinstance(value, int | float)}
    return {key: fault for key, fault in found.items() if fault is not None}


def _fault(key: str, value: float) -> Fault | None:
    positive = key in POSITIVE or key.startswith(TOWERS)
    if isinstance(value, float) and not math.isfinite(value):
        return Fault(f"{key}={value} is not finite; use a finite number", key, value, "a finite number")
    if positive and value <= 0:
        allowed = f"{LEAST.get(key, 1)} or more" if isinstance(value, int) else "a number above 0"
        return Fault(f"{key}={show(value)} must be positive; use {allowed}", key, value, allowed)
    if key in NOT_NEGATIVE and value < 0:
        return Fault(f"{key}={show(value)} is negative; use 0 or more", key, value, "0 or more")
    if isinstance(value, int):
        most = MOST_SEED if key == "train.seed" else MOST
        if abs(value) > most:
            least = LEAST.get(key, 1) if positive else 0
            allowed = f"{least} to {most}" if positive or key in NOT_NEGATIVE else f"{most} or less"
            return Fault(f"{key}={show(value)} is too large; use {allowed}", key, value, allowed)
    elif key == "parallel.timeout_s" and value > MOST_SECONDS:
        allowed = f"{MOST_SECONDS:g} or less"
        return Fault(f"{key}={value:g} is too long; use {allowed}", key, value, allowed)
    elif key in OWN_CHECK:
        return None
    elif abs(value) > MOST_FLOAT or (positive and value < LEAST_FLOAT):
        allowed = f"{LEAST.get(key, LEAST_FLOAT if positive else 0):g} to {MOST_FLOAT:g}"
        return Fault(f"{key}={value:g} does not fit in fp32; use {allowed}", key, value, allowed)
    return None


def too_many_tokens(cfg: Config) -> list[Fault]:
    """A run whose last token has no number in int64. All sizes must be in range."""
    sample_tokens = cfg.train.global_batch * cfg.data.seq_len
    most = MOST // sample_tokens
    if cfg.train.steps <= most:
        return []
    if not most:
        batch, allowed = cfg.train.global_batch, f"{MOST // cfg.data.seq_len} or less"
        text = f"train.global_batch={batch} x data.seq_len={cfg.data.seq_len} is more than {MOST} tokens"
        return [Fault(f"{text}; use {allowed}", "train.global_batch", batch, allowed)]
    allowed = f"{most} or less"
    text = f"train.steps={cfg.train.steps} of {sample_tokens} tokens are more than {MOST} tokens; use {allowed}"
    return [Fault(text, "train.steps", cfg.train.steps, allowed)]
