"""Values outside their key's choices, and numbers outside the range of their key."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin

from parallel.errors import Fault, one_of
from trainer.config import coerce
from trainer.config.keys import Config
from trainer.config.say import did_you_mean

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
    "parallel.overlap",
    "parallel.timeout_s",
    "optim.lr",
    "optim.eps",
    "train.contrastive_temperature",
    "train.steps",
    "train.log_every",
    "train.global_batch",
    "train.micro_batch",
    "train.eval_batches",
    "train.max_skipped",
    "train.loss_chunk",
    "checkpoint.keep",
}
NOT_NEGATIVE = {
    "model.fope_gain",
    "model.balance_coef",
    "model.z_loss_coef",
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
}


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
    faults = {}
    for key, value in flat.items():
        if isinstance(value, float) and not math.isfinite(value):
            faults[key] = Fault(f"{key}={value} is not finite; use a finite number", key, value, "a finite number")
        elif key in POSITIVE and value <= 0:
            allowed = "1 or more" if isinstance(value, int) else "a number above 0"
            faults[key] = Fault(f"{key}={value} must be positive; use {allowed}", key, value, allowed)
        elif key in NOT_NEGATIVE and value < 0:
            faults[key] = Fault(f"{key}={value} is negative; use 0 or more", key, value, "0 or more")
    return faults
