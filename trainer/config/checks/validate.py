"""What a well-typed configuration can still get wrong, all of it at once, each with the values that would work."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

from trainer.config import coerce as schema
from trainer.config.coerce import one_of
from trainer.config.ranks import Plan, plan
from trainer.data.mixture.spec import beyond_epochs, contradictions
from trainer.model.experts.te.support import RECIPES, wrong_sizes

if TYPE_CHECKING:
    from trainer.config.keys import Config

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

# A moment in bf16 stops when a step would change it by less than half a unit in the last place, up to 1/256 of it. With
# this beta that is where it is within 8 % of what it averages, with 0.99 within 40 %.
MAX_BETA_OF_BF16 = 0.95


def validate(cfg: Config, world_size: int) -> list[str]:
    """All mistakes of `cfg` on `world_size` ranks, one line each; an empty list if it can run.

    Pure: looks at no device, file or environment.
    """
    flat = schema.flatten(schema.to_dict(cfg), schema.keys(type(cfg)))
    errors = _enumerations(type(cfg), flat)
    wrong_range = _ranges(flat)
    errors += wrong_range.values()
    # A size that is zero or negative is reported above; dividing by it would say it again, or crash.
    if not any(key.startswith("model.") for key in wrong_range):
        errors += _model(cfg)
    if not {"train.global_batch", "train.micro_batch"} & set(wrong_range):
        errors += _batch(cfg, world_size)
    if not any(key.startswith(("model.", "parallel.", "train.", "data.")) for key in wrong_range):
        errors += _parallel(cfg, world_size)
    errors += _precision(cfg)
    errors += _data(cfg)
    if "data.seq_len" not in wrong_range:
        errors += contradictions(cfg.data) or beyond_epochs(cfg.data, cfg.train.steps, cfg.train.global_batch)
    errors += _schedule(cfg)
    errors += _engine(cfg, world_size)
    errors += _run(cfg)
    return errors


def _enumerations(config_type: type, flat: dict[str, Any]) -> list[str]:
    errors = []
    known = schema.keys(config_type)
    for key, value in flat.items():
        hint = schema.find(key, known)
        if get_origin(hint) is Literal and value not in get_args(hint):
            if len(get_args(hint)) == 1:
                errors.append(f"{key}={flat[key]} cannot be chosen; it is always {get_args(hint)[0]}")
                continue
            near = schema.did_you_mean(str(flat[key]), get_args(hint))
            errors.append(f"{key}={flat[key]} does not exist; use {one_of(get_args(hint))}{near}")
    return errors


def _ranges(flat: dict[str, Any]) -> dict[str, str]:
    """Key -> line, for numbers outside the range of their kind."""
    errors = {}
    for key, value in flat.items():
        if isinstance(value, float) and not math.isfinite(value):
            errors[key] = f"{key}={value} is not finite; use a finite number"
        elif key in POSITIVE and value <= 0:
            would_work = "1 or more" if isinstance(value, int) else "a number above 0"
            errors[key] = f"{key}={value} must be positive; use {would_work}"
        elif key in NOT_NEGATIVE and value < 0:
            errors[key] = f"{key}={value} is negative; use 0 or more"
    return errors


def _model(cfg: Config) -> list[str]:
    m, errors = cfg.model, []
    if m.num_heads % m.num_kv_heads:
        errors.append(_divides("model.num_kv_heads", m.num_kv_heads, "model.num_heads", m.num_heads))
    if m.head_dim % 2:
        errors.append(f"model.head_dim={m.head_dim} is odd and rotary pairs need an even one; use {m.head_dim + 1}")
    if m.num_experts % m.router_groups:
        errors.append(_divides("model.router_groups", m.router_groups, "model.num_experts", m.num_experts))
    if m.experts_per_token % m.router_groups:
        errors.append(_divides("model.router_groups", m.router_groups, "model.experts_per_token", m.experts_per_token))
    if m.experts_per_token > m.num_experts:
        errors.append(
            f"model.experts_per_token={m.experts_per_token} is more than model.num_experts={m.num_experts}; "
            f"use {m.num_experts} or less"
        )
    if m.rope_theta <= 1:
        errors.append(f"model.rope_theta={m.rope_theta:g} gives no falling frequencies; use more than 1, such as 1e4")
    elif m.positions == "fope" and m.head_dim % 2 == 0 and m.fope_frequencies() < 1:
        errors.append(
            f"model.max_position={m.max_position} leaves positions=fope no frequency, as none turns once within it; "
            "use 7 or more, or model.positions=rope"
        )
    if m.fope_pad_sin not in (0, 1):
        errors.append(f"model.fope_pad_sin={m.fope_pad_sin:g} is not a padding in use; use 1 (published code) or 0")
    if cfg.data.seq_len > m.max_position:
        errors.append(
            f"data.seq_len={cfg.data.seq_len} is longer than model.max_position={m.max_position}; "
            f"use {m.max_position} or less, or raise model.max_position"
        )
    return errors


def _parallel(cfg: Config, world_size: int) -> list[str]:
    p, m, errors = cfg.parallel, cfg.model, []
    try:
        chosen = plan(p, m, world_size)
    except ValueError as error:
        return [str(error)]
    if not _width_fits(chosen, m.expert_width):
        copies = [n for n in _divisors(world_size) if _copies_fit(cfg, world_size, n)]
        errors.append(
            f"model.expert_width={m.expert_width} is cut into {_width_parts(chosen)} parts "
            f"({chosen.layout.expert_dp} by dp_shard/ep, {chosen.placement.width_shards} by router group), which do "
            "not divide it; use "
            + (f"parallel.dp_replicate={one_of(copies)} with parallel.dp_shard=0" if copies else "another width")
        )
    if chosen.layout.ep > 1 and m.hidden_size % 2 and "bf16" in (cfg.precision.linears, cfg.precision.payload):
        errors.append(
            f"model.hidden_size={m.hidden_size} is odd, and in bf16 pairs of numbers travel between expert-parallel "
            f"ranks; use {m.hidden_size + 1}, or fp32 for precision.linears and precision.payload"
        )
    if cfg.precision.experts in (*RECIPES, "fp8_reference"):
        sides = m.hidden_size, m.expert_width, chosen.placement.width_shards
        errors += wrong_sizes(cfg.precision.experts, *sides)
    if p.regather and cfg.train.recompute != "none":
        errors.append(
            f"parallel.regather=true keeps for backward what train.recompute={cfg.train.recompute} would make again; "
            "use parallel.regather=false (recomputing gathers again by itself), or train.recompute=none"
        )
    tokens = cfg.train.micro_batch * cfg.data.seq_len
    if tokens % p.overlap:
        errors.append(
            f"parallel.overlap={p.overlap} does not divide the {tokens} tokens of a micro-batch; "
            f"use {one_of(_near(_divisors(tokens), p.overlap))}"
        )
    if chosen.dispatch == "all_to_all":
        for key, value, default in (
            ("parallel.overlap", p.overlap, 1),
            ("parallel.regather", p.regather, False),
            ("precision.payload", cfg.precision.payload, cfg.precision.linears),
        ):
            if value != default:
                only = f"{key}={str(value).lower()} is an option of parallel.dispatch=all_gather"
                errors.append(f"{only}; use {key}={str(default).lower()}, or parallel.dispatch=all_gather")
    return errors


def _precision(cfg: Config) -> list[str]:
    p, o, errors = cfg.precision, cfg.optim, []
    if {p.experts, p.linears} == {"fp32", "bf16"}:
        errors.append(
            f"precision.experts={p.experts} is not precision.linears={p.linears}, the dtype of the activations that "
            f"come to the experts; use precision=fp32 or precision=bf16"
        )
    if p.payload == "fp32" and p.linears == "bf16":
        errors.append("precision.payload=fp32 is wider than precision.linears=bf16; use precision.payload=bf16 or fp8")
    if p.moments == "bf16" and o.name == "adamw" and max(o.betas, default=0) > MAX_BETA_OF_BF16:
        errors.append(
            f"optim.betas=[{','.join(f'{beta:g}' for beta in o.betas)}] with precision.moments=bf16 would let moments "
            f"stick: a step takes {1 - max(o.betas):.1e} of a difference, which bf16 rounds away; use betas of "
            f"{MAX_BETA_OF_BF16} or less, or precision.moments=fp32"
        )
    if p.moments == "bf16" and o.name != "adamw":
        errors.append(f"precision.moments=bf16 is an option of optim.name=adamw, not of {o.name}; use fp32 or adamw")
    if p.moments == "bf16" and o.engine == "deepspeed":
        errors.append("precision.moments=bf16 is not known to optim.engine=deepspeed; use fp32, or optim.engine=native")
    return errors


def _width_parts(chosen: Plan) -> int:
    return chosen.placement.width_shards * chosen.layout.expert_dp if chosen.layout.shard > 1 else 1


def _width_fits(chosen: Plan, width: int) -> bool:
    return width % _width_parts(chosen) == 0


def _copies_fit(cfg: Config, world_size: int, copies: int) -> bool:
    """Whether the layout works with this many copies of the sharded model."""
    try:
        other = plan(replace(cfg.parallel, dp_replicate=copies, dp_shard=0), cfg.model, world_size)
    except ValueError:
        return False
    return _width_fits(other, cfg.model.expert_width)


def _batch(cfg: Config, world_size: int) -> list[str]:
    total, micro = cfg.train.global_batch, cfg.train.micro_batch
    unit = micro * world_size
    if total % unit == 0:
        return []
    around = sorted({max(unit, total // unit * unit), (total // unit + 1) * unit})
    text = f"train.global_batch={total} is not a multiple of train.micro_batch={micro} x {world_size} rank(s) = {unit}"
    advice = f"use train.global_batch={one_of(around)}"
    if total % world_size == 0:
        advice += f", or train.micro_batch={one_of(_near(_divisors(total // world_size), micro))}"
    return [f"{text}; {advice}"]


def _data(cfg: Config) -> list[str]:
    fraction = cfg.data.holdout_fraction
    if not 0 < fraction < 1:
        return [f"data.holdout_fraction={fraction:g} must lie between 0 and 1; use one such as 0.02"]
    return []


def _schedule(cfg: Config) -> list[str]:
    o, errors = cfg.optim, []
    if len(o.betas) != 2 or not all(0 <= beta < 1 for beta in o.betas):
        errors.append(f"optim.betas={o.betas} must be two numbers from 0 to below 1; use some such as [0.9,0.95]")
    if not 0 <= o.momentum < 1:
        errors.append(f"optim.momentum={o.momentum:g} is out of range; use 0 to below 1")
    for key, value in (("decay_fraction", o.decay_fraction), ("min_lr_ratio", o.min_lr_ratio)):
        if not 0 <= value <= 1:
            errors.append(f"optim.{key}={value:g} is out of range; use 0 to 1")
    return errors


def _engine(cfg: Config, world_size: int) -> list[str]:
    o, errors = cfg.optim, []
    if o.zero_stage not in (1, 2):
        errors.append(f"optim.zero_stage={o.zero_stage} is not available; use 1 or 2")
    if o.engine == "native":
        if o.offload != "none":
            errors.append(f"optim.offload={o.offload} needs optim.engine=deepspeed; use that, or optim.offload=none")
        return errors
    if o.name != "adamw":
        errors.append(f"optim.name={o.name} is not known to optim.engine=deepspeed; use adamw, or optim.engine=native")
    try:
        layout = plan(cfg.parallel, cfg.model, world_size).layout
    except ValueError:  # `_parallel` tells
        return errors
    for key, value, what in (("ep", layout.ep, "experts"), ("dp_shard", layout.dp_shard, "weights")):
        if value > 1:
            errors.append(
                f"parallel.{key}={value} spreads {what} over ranks, which optim.engine=deepspeed needs whole on each; "
                f"use parallel.{key}=1, or optim.engine=native"
            )
            break  # ep alone already asks for dp_shard
    return errors


def _run(cfg: Config) -> list[str]:
    errors = []
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", cfg.run.name):
        errors.append(f"run.name={cfg.run.name!r} names a directory; use letters, digits, '_', '-' and '.'")
    if cfg.run.dir is not None and not cfg.run.dir.strip():
        errors.append("run.dir is empty; use a directory, or null for runs/<name>-<hash>")
    if cfg.checkpoint.init_from is not None and not cfg.checkpoint.init_from.strip():
        errors.append("checkpoint.init_from is empty; use a Hugging Face directory, or null for random weights")
    if not cfg.data.root.strip():
        errors.append("data.root is empty; use the directory of the sources, or . for the working directory")
    if not cfg.data.cache_dir.strip():
        errors.append("data.cache_dir is empty; use a directory such as .cache/octavo")
    if cfg.logging.wandb != "off" and not cfg.logging.wandb_project.strip():
        errors.append("logging.wandb_project is empty; use a project's name, or logging.wandb=off")
    return errors


def _divides(key: str, value: int, of_key: str, of: int) -> str:
    return f"{key}={value} does not divide {of_key}={of}; use {one_of(_near(_divisors(of), value))}"


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]


def _near(values: list[int], wanted: int, count: int = 6) -> list[int]:
    return sorted(sorted(values, key=lambda value: (abs(value - wanted), value))[:count])
