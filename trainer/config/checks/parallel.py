"""Batches and models that cannot be divided over the ranks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from parallel.context.slices import divides, divisors_of_heads
from parallel.errors import Fault, one_of
from parallel.layout import OTHER_RANKS, divisors
from parallel.pipeline.plan import MOST_STAGES_PER_RANK, RULES, PipelineError
from trainer.config.checks.precision import FP8_MULTIPLES, TRANSFORMER_ENGINE, WHOLE_BLOCKS
from trainer.config.errors import ConfigError
from trainer.config.keys import Config, ModelConfig, TrainConfig
from trainer.config.ranks import RankMap, cut_model, map_ranks
from trainer.config.say import closest

MOST_TRIED = 256  # numbers of ranks in each direction that a remedy is looked for among


def check_batch(train: TrainConfig, readers: int) -> list[Fault]:
    """A global batch that is not a whole number of micro-batches on every rank that reads samples of its own. Both
    sizes must be positive."""
    total, micro = train.global_batch, train.micro_batch
    unit = micro * readers
    if total % unit == 0:
        return []
    around = tuple(sorted({max(unit, total // unit * unit), (total // unit + 1) * unit}))
    product = f"{micro} x {readers} = {unit}"
    text = f"train.global_batch={total} must be a multiple of train.micro_batch x ranks = {product}"
    advice = f"use train.global_batch={one_of(around)}"
    if total % readers == 0:
        advice += f", or train.micro_batch={one_of(closest(divisors(total // readers), micro))}"
    return [Fault(f"{text}; {advice}", "train.global_batch", total, around)]


def check(cfg: Config, world_size: int) -> list[Fault]:
    """Faults of the section `parallel` on `world_size` ranks. All sizes in `cfg` must be in range."""
    try:
        ranks = map_ranks(cfg.parallel, cfg.model, world_size)
    except ConfigError as error:
        return [_with_sizes_that_work(cfg, world_size, fault) for fault in error.faults]
    m, p = cfg.model, cfg.parallel
    frozen = cfg.lora.base == "fp8"
    sizes = fp8_sizes(cfg.precision.experts, m, ranks.placement.width_shards, frozen=frozen)
    faults = [*_width(cfg, world_size, ranks), *sizes]
    if ranks.layout.ep > 1 and m.hidden_size % 2 and "bf16" in (cfg.precision.linears, cfg.precision.payload):
        text = (
            f"model.hidden_size={m.hidden_size} is odd, but expert-parallel ranks exchange bf16 values in pairs; "
            f"use {m.hidden_size + 1}, or fp32 for precision.linears and precision.payload"
        )
        faults.append(Fault(text, "model.hidden_size", m.hidden_size, (m.hidden_size + 1,)))
    if p.regather and cfg.train.recompute not in ("none", "attention"):
        text = (
            f"parallel.regather=true has no use with train.recompute={cfg.train.recompute}, which gathers again by "
            "itself; use parallel.regather=false, or train.recompute=none or attention"
        )
        faults.append(Fault(text, "parallel.regather", True, (False,)))
    if ranks.layout.cp > 1:
        faults += _of_context(cfg, world_size)
    tokens = cfg.train.micro_batch * cfg.data.seq_len // ranks.layout.cp
    if tokens % p.overlap:
        fit = closest(divisors(tokens), p.overlap)
        text = (
            f"parallel.overlap={p.overlap} does not divide the {tokens} tokens of a rank in a micro-batch; use "
            f"{one_of(fit)}"
        )
        faults.append(Fault(text, "parallel.overlap", p.overlap, fit))
    if ranks.dispatch == "all_to_all":
        faults += _of_all_gather_only(cfg)
    if cfg.optim.engine == "deepspeed":
        faults += _of_native_engine_only(ranks)
        if cfg.model.vision is not None or cfg.model.signals is not None:
            text = "optim.engine=deepspeed needs a gradient of every weight in every step, and a step without images or"
            text += " signals has none of the towers; use optim.engine=native, or a model without towers"
            faults.append(Fault(text, "optim.engine", "deepspeed", ("native",)))
    if ranks.plan.ranks > 1:
        faults += _of_pipeline(cfg, ranks)
    return faults


def runs(cfg: Config, world_size: int, **sizes: Any) -> bool:
    """Return True if nothing is wrong with the layout, the batch included, with other `sizes` of `parallel`."""
    readers = world_size // (sizes.get("pp", cfg.parallel.pp) * sizes.get("cp", cfg.parallel.cp))
    return _sound(cfg, world_size, **sizes) and not check_batch(cfg.train, readers)


def _sound(cfg: Config, world_size: int, **sizes: Any) -> bool:
    """As `runs`, for any batch: an unsuitable one has a fault of its own."""
    other = replace(cfg, parallel=replace(cfg.parallel, **sizes))
    try:
        map_ranks(other.parallel, other.model, world_size)  # so that `check` needs no remedy for the axes
    except ConfigError:
        return False
    return all(fault.where == "train.global_batch" for fault in check(other, world_size))


def _working(cfg: Config, world_size: int, key: str, sizes: Iterable[int], **others: int) -> tuple[int, ...]:
    """Those of `sizes` of `parallel.<key>` with which no check finds another fault, or none but the batch's."""
    candidates = tuple(sizes)
    for fits in (runs, _sound):
        if found := tuple(n for n in candidates if fits(cfg, world_size, **{key: n}, **others)):
            return found
    return ()


def _with_sizes_that_work(cfg: Config, world_size: int, fault: Fault) -> Fault:
    """The fault of an axis with the sizes, and the numbers of ranks, that no other check refuses, if there are any."""
    problem, found, _ = fault.text.partition("; use ")
    key = fault.where.removeprefix("parallel.")
    if key == "stages_per_rank":
        return _with_schedules_that_work(cfg, world_size, fault)
    if not found or key not in ("pp", "cp", "dp_replicate", "dp_shard", "ep"):
        return fault
    all_sizes = divisors(world_size)
    works = _working(cfg, world_size, key, all_sizes)
    listed = [n for n in works if isinstance(fault.allowed, tuple) and n in fault.allowed]
    sizes = closest(listed or works, fault.value)
    allowed: tuple[int, ...] | str = sizes
    remedies = [f"parallel.{key}={one_of(sizes)}"] if sizes else []
    if key == "ep" and (shards := [n for n in all_sizes if n > 1 and _sound(cfg, world_size, dp_shard=n)]):
        remedies.append(f"parallel.dp_shard={one_of(closest(shards, fault.value))}")
    if worlds := _worlds(cfg, world_size):
        remedies.append(f"{OTHER_RANKS} equal to {one_of(worlds)}")
        allowed = allowed or remedies[-1]
    return Fault(f"{problem}; use {', or '.join(remedies)}", fault.where, fault.value, allowed) if remedies else fault


def _with_schedules_that_work(cfg: Config, world_size: int, fault: Fault) -> Fault:
    """The fault of a schedule with another number of stages, with the numbers and the schedules that no other check
    refuses."""
    numbers = _working(cfg, world_size, "stages_per_rank", range(1, MOST_STAGES_PER_RANK + 1))
    schedules = [name for name in RULES if _sound(cfg, world_size, schedule=name)]
    if not numbers:
        return fault
    other = f", or parallel.schedule={one_of(schedules)}" if schedules else ""
    text = f"{fault.text.partition('; use ')[0]}; use parallel.stages_per_rank={one_of(numbers)}{other}"
    return replace(fault, text=text, allowed=numbers)


def _worlds(cfg: Config, world_size: int) -> tuple[int, ...]:
    """The next smaller and the next larger number of ranks that work with the sizes of `parallel`, or would with
    another batch."""
    p = cfg.parallel
    unit = p.pp * p.cp * max(1, p.dp_replicate) * max(1, p.dp_shard)
    here = world_size // unit
    smaller = [n * unit for n in range(here, max(0, here - MOST_TRIED), -1) if n * unit != world_size]
    larger = [n * unit for n in range(here + 1, here + MOST_TRIED)]
    for fits in (runs, _sound):
        nearest = (next((n for n in some if fits(cfg, n)), None) for some in (smaller, larger))
        if found := tuple(n for n in nearest if n is not None):
            return found
    return ()


def _of_context(cfg: Config, world_size: int) -> list[Fault]:
    """Sequences that the ranks cannot share."""
    m, p, seq_len = cfg.model, cfg.parallel, cfg.data.seq_len
    faults = []
    if cfg.train.objective == "contrastive":
        text = (
            f"train.objective=contrastive needs whole documents on a rank, which parallel.cp={p.cp} cuts; use "
            "parallel.cp=1, or train.objective=next_token"
        )
        faults.append(Fault(text, "parallel.cp", p.cp, (1,)))
    if seq_len % p.cp:
        near = tuple(n * p.cp for n in (seq_len // p.cp, seq_len // p.cp + 1) if n)
        fit = _fitting_cp(cfg, world_size, divisors(seq_len))
        text = (
            f"parallel.cp={p.cp} must divide data.seq_len={seq_len}; use parallel.cp={one_of(fit)}, or "
            f"data.seq_len={one_of(near)}"
        )
        faults.append(Fault(text, "parallel.cp", p.cp, fit))
    if p.cp_kind == "ulysses" and not divides(m.num_heads, m.num_kv_heads, p.cp):
        fit = _fitting_cp(cfg, world_size, divisors_of_heads(m.num_heads, m.num_kv_heads))
        text = (
            f"parallel.cp={p.cp} ranks cannot share model.num_heads={m.num_heads} with model.num_kv_heads="
            f"{m.num_kv_heads} equally; use parallel.cp={one_of(fit)}, or parallel.cp_kind=ring, which takes any"
        )
        faults.append(Fault(text, "parallel.cp", p.cp, fit))
    return faults


def _fitting_cp(cfg: Config, world_size: int, candidates: Sequence[int]) -> tuple[int, ...]:
    """The candidates closest to `parallel.cp` that work with the number of ranks and the length of sequences."""

    def fits(cp: int) -> bool:
        m = cfg.model
        of_heads = cfg.parallel.cp_kind != "ulysses" or divides(m.num_heads, m.num_kv_heads, cp)
        return cfg.data.seq_len % cp == 0 and of_heads and _width_fits(cfg, world_size, cp=cp)

    fit = [cp for cp in candidates if fits(cp)]
    return closest(_working(cfg, world_size, "cp", fit) or fit, cfg.parallel.cp) or (1,)


def _of_pipeline(cfg: Config, ranks: RankMap) -> list[Fault]:
    """Faults of the schedule and the stages of a pipeline."""
    plan, train = ranks.plan, cfg.train
    faults: list[Fault] = []
    whole = tuple(name for name, rule in RULES.items() if not rule.splits_backward)
    try:
        cut_model(cfg, plan)
    except ConfigError as error:
        faults += [_with_pipelines_that_work(cfg, ranks, fault) for fault in error.faults]
    else:
        # of rollouts there are as many micro-batches as they fill, or more
        faults += [] if cfg.train.objective == "policy" else _too_few_micro_batches(cfg.train, ranks)
    if plan.rule.splits_backward and train.compile:
        text = (
            f"parallel.schedule={plan.schedule} computes the gradients of inputs and of weights at different times, "
            "but a compiled block has one backward function for both; use train.compile=false, or "
            f"parallel.schedule={one_of(whole)}"
        )
        faults.append(Fault(text, "train.compile", True, (False,)))
    if plan.rule.splits_backward and cfg.precision.experts in TRANSFORMER_ENGINE:
        text = (
            f"parallel.schedule={plan.schedule} runs a backward pass in two parts, but precision.experts="
            f"{cfg.precision.experts} frees what it kept after the first; use parallel.schedule={one_of(whole)}"
        )
        faults.append(Fault(text, "parallel.schedule", plan.schedule, whole))
    if plan.rule.splits_backward and cfg.parallel.reduce_every == "micro_batch":
        text = (
            f"parallel.schedule={plan.schedule} computes the gradients of weights apart from those of inputs, where "
            "parallel.reduce_every=micro_batch cannot reduce them one layer at a time; use parallel.reduce_every=auto, "
            f"or parallel.schedule={one_of(whole)}"
        )
        faults.append(Fault(text, "parallel.reduce_every", "micro_batch", ("auto", "step")))
    if plan.rule.splits_backward and train.recompute not in ("full", "none"):
        why = "keeps can be read only once" if train.recompute == "selective" else "recomputes would never be freed"
        text = (
            f"parallel.schedule={plan.schedule} recomputes a block for the gradients of its inputs and again for those "
            f"of its weights, but what train.recompute={train.recompute} {why}; use train.recompute=full or none, or "
            f"parallel.schedule={one_of(whole)}"
        )
        faults.append(Fault(text, "train.recompute", train.recompute, ("full", "none")))
    return faults


def _with_pipelines_that_work(cfg: Config, ranks: RankMap, fault: Fault) -> Fault:
    """The fault of more stages than layers with the sizes that divide the ranks."""
    world_size, each = ranks.layout.world, ranks.plan.stages_per_rank
    short = [n for n in divisors(world_size) if n == 1 or n * each <= cfg.model.num_layers]
    fit = _working(cfg, world_size, "pp", short) or tuple(short)
    return replace(fault, text=f"{fault.text.partition('; use ')[0]}; use parallel.pp={one_of(fit)}", allowed=fit)


def _too_few_micro_batches(train: TrainConfig, ranks: RankMap) -> list[Fault]:
    """Numbers of micro-batches that the schedule does not take."""
    plan, readers = ranks.plan, ranks.layout.readers
    of_step = train.micro_batch * readers
    if train.global_batch % of_step:  # reported elsewhere
        return []
    try:
        plan.require(train.global_batch // of_step, of_step)
    except PipelineError as error:
        of_rank = train.global_batch // readers
        smaller = closest([n for n in divisors(of_rank) if plan.takes(of_rank // n)], train.micro_batch)
        advice = f", or train.micro_batch={one_of(smaller)}" if smaller else ""
        return [replace(fault, text=fault.text + advice) for fault in error.faults]
    return []


def _of_all_gather_only(cfg: Config) -> list[Fault]:
    faults = []
    for key, value, default in (
        ("parallel.overlap", cfg.parallel.overlap, 1),
        ("parallel.regather", cfg.parallel.regather, False),
        ("precision.payload", cfg.precision.payload, cfg.precision.linears),
    ):
        if value != default:
            text = f"{key}={str(value).lower()} works only with parallel.dispatch=all_gather"
            advice = f"use {key}={str(default).lower()}, or parallel.dispatch=all_gather"
            faults.append(Fault(f"{text}; {advice}", key, value, (default,)))
    return faults


def _of_native_engine_only(ranks: RankMap) -> list[Fault]:
    for key, value, what in (
        ("parallel.ep", ranks.layout.ep, "experts"),
        ("parallel.dp_shard", ranks.layout.dp_shard, "weights"),
        ("parallel.pp", ranks.layout.pp, "layers"),
        ("parallel.cp", ranks.layout.cp, "sequences"),
    ):
        if value > 1:  # ep alone already asks for dp_shard, so one fault is enough
            text = f"{key}={value} spreads {what} over ranks, but optim.engine=deepspeed needs all of them on each rank"
            if key == "parallel.ep":
                text += " (its ZeRO knows expert groups only of its own MoE layers, deepspeed.moe and AutoEP)"
            return [Fault(f"{text}; use {key}=1, or optim.engine=native", key, value, (1,))]
    return []


def _width(cfg: Config, world_size: int, ranks: RankMap) -> list[Fault]:
    """Experts whose width cannot be cut into as many parts as ranks share it."""
    width, parts = cfg.model.expert_width, _width_parts(ranks)
    if width % parts == 0:
        return []
    sizes = divisors(world_size)
    copies = tuple(n for n in sizes if _width_fits(cfg, world_size, dp_replicate=n, dp_shard=0))
    copies = _working(cfg, world_size, "dp_replicate", copies, dp_shard=0) or copies
    shares = tuple(n for n in sizes if ranks.layout.cp > 1 and _width_fits(cfg, world_size, cp=n))
    shares = _working(cfg, world_size, "cp", shares) or shares
    advice = "another width"
    if copies:
        advice = f"parallel.dp_replicate={one_of(copies)} with parallel.dp_shard=0"
    elif shares:
        advice = f"parallel.cp={one_of(shares)}"
    text = (
        f"model.expert_width={width} is not divisible by the {parts} ranks that share an expert "
        f"(dp_shard/ep = {ranks.layout.expert_dp}, times {ranks.placement.width_shards} per router group)"
    )
    return [Fault(f"{text}; use {advice}", "model.expert_width", width, advice)]


def _width_parts(ranks: RankMap) -> int:
    return ranks.placement.width_shards * ranks.layout.expert_dp if ranks.layout.shard > 1 else 1


def _width_fits(cfg: Config, world_size: int, **sizes: Any) -> bool:
    """Return True if the layout works with other sizes of `parallel`."""
    try:
        other = map_ranks(replace(cfg.parallel, **sizes), cfg.model, world_size)
    except ConfigError:
        return False
    return cfg.model.expert_width % _width_parts(other) == 0


def fp8_sizes(experts: str, model: ModelConfig, width_shards: int, *, frozen: bool = False) -> list[Fault]:
    """Sides of an expert that the GEMMs of an FP8 recipe do not take.

    experts: the value of precision.experts. width_shards: ranks that share an expert's width. frozen: experts stay in
    FP8 as they are stored, and Transformer Engine takes blocks of theirs that are whole.
    """
    if experts not in FP8_MULTIPLES:
        return []
    multiple = WHOLE_BLOCKS if frozen and experts == "fp8_block" else FP8_MULTIPLES[experts]
    faults = []
    for key, unit in (("hidden_size", multiple), ("expert_width", multiple * width_shards)):
        size = getattr(model, key)
        if size % unit:
            near = (size // unit * unit, size // unit * unit + unit) if size > unit else (unit,)
            shared = f" ({multiple} on each of {width_shards} ranks)" if unit > multiple else ""
            text = f"precision.experts={experts} needs model.{key} to be a multiple of {unit}{shared}, not {size}"
            advice = f"use {one_of(near)}, or experts in bf16 or fp32"
            faults.append(Fault(f"{text}; {advice}", f"model.{key}", size, near))
    return faults
