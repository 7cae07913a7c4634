"""Options that a configuration sets and that change nothing."""

from __future__ import annotations

from collections.abc import Iterator

from trainer.config.checks.precision import TRANSFORMER_ENGINE
from trainer.config.keys import Config, DataConfig, OptimConfig, TrainConfig
from trainer.config.ranks import RankMap

# keys of `optim` that not every optimizer reads
OF_OPTIMIZERS = {
    "betas": ("adamw", "muon"),
    "eps": ("adamw", "muon"),
    "momentum": ("sgd", "muon"),
    "adamw_lr_ratio": ("muon",),
    "adjust_lr": ("muon",),
    "ns_steps": ("muon",),
    "ns_dtype": ("muon",),
}


def without_effect(cfg: Config, ranks: RankMap) -> list[str]:
    """Options that are set and change nothing with this map of ranks, each in a line with the reason, for a warning."""
    p, q, found = cfg.parallel, cfg.precision, []

    def warn(option: str, why: str) -> None:
        found.append(f"{option} has no effect here, because {why}")

    if ranks.dispatch == "local":
        why = "each rank has all experts"
        if p.overlap > 1:
            warn(f"parallel.overlap={p.overlap}", why)
        if p.regather:
            warn("parallel.regather=true", why)
        if q.payload != q.linears:
            warn(f"precision.payload={q.payload}", why)
    elif q.experts in TRANSFORMER_ENGINE and p.regather:
        warn("parallel.regather=true", "Transformer Engine saves its own quantised rows")
    if cfg.train.offload_activations and cfg.train.device == "cpu":
        warn("train.offload_activations=true", "a CPU's memory is the host's")
    if cfg.optim.nvme_dir is not None and cfg.optim.offload != "nvme":
        warn(f"optim.nvme_dir={cfg.optim.nvme_dir}", f"optim.offload={cfg.optim.offload} puts nothing on NVMe")
    for option, value, why in _of_pairs(cfg):
        warn(f"{option}={value}", why)
    default = OptimConfig()
    for key, optimizers in OF_OPTIMIZERS.items():
        if cfg.optim.name not in optimizers and (value := getattr(cfg.optim, key)) != getattr(default, key):
            warn(f"optim.{key}={value}", f"optim={cfg.optim.name} does not use it")
    if cfg.optim.engine == "native" and cfg.optim.zero_stage != default.zero_stage:
        warn(f"optim.zero_stage={cfg.optim.zero_stage}", "optim.engine=native shards by parallel.dp_shard")
    if q.experts not in ("fp32", "bf16") and cfg.model.expert_backend != "grouped_mm":
        warn(f"model.expert_backend={cfg.model.expert_backend}", f"precision.experts={q.experts} has its own back end")
    once = p.reduce_every == "step" or (p.reduce_every == "auto" and ranks.plan.ranks > 1)
    if q.accumulate != "fp32" and not once:
        warn(f"precision.accumulate={q.accumulate}", "gradients are reduced after every micro-batch")
    if ranks.plan.ranks == 1:
        why = "parallel.pp=1 makes one stage of all layers"
        if p.schedule != "1f1b":
            warn(f"parallel.schedule={p.schedule}", why)
        if p.stages_per_rank:
            warn(f"parallel.stages_per_rank={p.stages_per_rank}", why)
    if ranks.layout.cp == 1 and p.cp_kind != "ulysses":
        warn(f"parallel.cp_kind={p.cp_kind}", "each rank has whole sequences")
    if p.balance_towers:
        if cfg.model.vision is None:
            warn("parallel.balance_towers=true", "the model has no vision tower")
        elif ranks.layout.stage_ranks == 1:
            warn("parallel.balance_towers=true", "one rank runs the tower")
    if ranks.layout.shard == 1:
        why = "no weight is sharded"
        if q.reductions != "fp32":
            warn(f"precision.reductions={q.reductions}", why)
        if q.accumulate != "fp32":
            warn(f"precision.accumulate={q.accumulate}", why)
        if p.reshard_experts:
            warn("parallel.reshard_experts=true", why)
        if p.reduce_every == ("step" if ranks.plan.ranks == 1 else "micro_batch"):
            warn(f"parallel.reduce_every={p.reduce_every}", why)
    elif p.reshard_experts and ranks.plan.ranks > 1:
        warn("parallel.reshard_experts=true", "weights stay gathered on the stages of a pipeline")
    return found


def _of_pairs(cfg: Config) -> Iterator[tuple[str, object, str]]:
    """Keys of images with captions that are set where none are read: name, value and reason."""
    if cfg.data.name != "pairs":
        for key in ("min_pixels", "max_pixels"):
            if (value := getattr(cfg.data, key)) != getattr(DataConfig, key):
                yield f"data.{key}", value, f"only data.name=pairs reads it, and this is data.name={cfg.data.name}"
    if cfg.train.objective != "image_text" and cfg.train.pair_loss != TrainConfig.pair_loss:
        why = f"only train.objective=image_text reads it, and this is train.objective={cfg.train.objective}"
        yield "train.pair_loss", cfg.train.pair_loss, why
