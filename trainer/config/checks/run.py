"""Names and directories that are empty or cannot be used, and options of training that need another engine."""

from __future__ import annotations

import re
from collections.abc import Iterator

from parallel.errors import Fault, one_of
from parallel.layout import divisors
from trainer.config.keys import Config, PartConfig
from trainer.config.say import IN_A_NAME


def check(cfg: Config) -> list[Fault]:
    """Faults of the sections `run`, `checkpoint` and `logging`, of the directories in `data`, and of the objective."""
    faults = []
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", cfg.run.name):
        text = f"run.name={cfg.run.name!r} becomes part of a directory's name; use {IN_A_NAME}"
        faults.append(Fault(text, "run.name", cfg.run.name, IN_A_NAME))
    for key, value, allowed in (
        ("run.dir", cfg.run.dir, "a directory, or null for runs/<name>-<hash>"),
        ("checkpoint.init_from", cfg.checkpoint.init_from, "a Hugging Face directory, or null for random weights"),
        ("rl.kl_reference", cfg.rl.kl_reference, "a Hugging Face directory, or null for the run's first weights"),
        ("data.root", cfg.data.root, "the directory of the sources, or . for the working directory"),
        ("data.cache_dir", cfg.data.cache_dir, "a directory such as .cache/octavo"),
        ("optim.nvme_dir", cfg.optim.nvme_dir, "an existing directory on a local NVMe disk, or null"),
        ("logging.wandb_project", cfg.logging.wandb_project, "the name of a project, or logging.wandb=off"),
    ):
        needed = key != "logging.wandb_project" or cfg.logging.wandb != "off"
        if needed and value is not None and not value.strip():
            faults.append(Fault(f"{key} is empty; use {allowed}", key, value, allowed))
    faults += [*_unexpanded(cfg), *_lora(cfg)]
    if not cfg.train.trains_head and cfg.optim.engine == "deepspeed":
        text = (
            f"train.objective={cfg.train.objective} freezes the LM head, which optim.engine=deepspeed does not support"
        )
        faults.append(Fault(f"{text}; use optim.engine=native", "optim.engine", cfg.optim.engine, ("native",)))
    if cfg.optim.engine == "deepspeed" and cfg.optim.zero_stage == 3 and cfg.train.recompute == "selective":
        text = "train.recompute=selective meets the gathers of optim.zero_stage=3, which it cannot repeat"
        works = ("none", "full")
        faults.append(Fault(f"{text}; use {one_of(works)}", "train.recompute", "selective", works))
    return faults


def _lora(cfg: Config) -> Iterator[Fault]:
    """Faults of adapters, and of what does not go with them."""
    lora = cfg.lora
    if not 0 <= lora.dropout < 1:
        text = f"lora.dropout={lora.dropout:g} is out of range; use 0 to below 1"
        yield Fault(text, "lora.dropout", lora.dropout, "0 to below 1")
    if lora.target == "none":
        if lora.base != "linears":
            text = f"lora.base={lora.base} is of a base that adapters are trained for, and lora.target is none"
            yield Fault(f"{text}; use lora.base=linears, or a target", "lora.base", lora.base, ("linears",))
        return
    if lora.dropout and lora.target == "experts":
        text = (
            f"lora.dropout={lora.dropout:g} is for attention's adapters and lora.target=experts has none: a mask for "
            "every row of every expert would have to be kept for backward, and PEFT has no dropout in fused experts"
        )
        yield Fault(f"{text}; use lora.dropout=0, or lora.target=all", "lora.dropout", lora.dropout, (0.0,))
    if cfg.checkpoint.init_from is None:
        allowed = "a Hugging Face directory"
        text = f"lora.target={lora.target} trains adapters of published weights, and checkpoint.init_from is null"
        yield Fault(f"{text}; use {allowed}", "checkpoint.init_from", None, allowed)
    refused: tuple[tuple[str, str, tuple[str, ...], str], ...] = (
        ("train.objective", cfg.train.objective, ("next_token",), "needs other parameters than adapters"),
        ("optim.engine", cfg.optim.engine, ("native",), "takes the whole model"),
        ("optim.name", cfg.optim.name, ("adamw", "sgd"), "is for whole matrices"),
        ("optim.offload", cfg.optim.offload, ("none",), "has little to move: adapters are small"),
    )
    for key, chosen, works, why in refused:
        if chosen not in works:
            text = f"{key}={chosen} {why}, and lora.target={lora.target} is set; use {one_of(works)}"
            yield Fault(text, key, chosen, works)
    for name, part in vars(cfg.optim.parts).items():
        if part != PartConfig():
            text = f"optim.parts.{name} has no use with lora.target={lora.target}, which freezes all parts"
            yield Fault(f"{text}; leave it out", f"optim.parts.{name}", vars(part), (None,))
    of_fp8 = ("fp8_block",) if lora.base == "fp8" else ()  # Transformer Engine's GEMM of codes as they are stored
    if cfg.precision.experts not in (precisions := (cfg.precision.linears, "fp8_reference", *of_fp8)):
        text = f"precision.experts={cfg.precision.experts} is for experts that are trained"
        text = f"{text}; with lora.target={lora.target} and lora.base={lora.base} use {one_of(precisions)}"
        yield Fault(text, "precision.experts", cfg.precision.experts, precisions)
    if cfg.model.expert_backend != "grouped_mm":
        text = f"model.expert_backend={cfg.model.expert_backend} is for experts that are trained; use grouped_mm"
        yield Fault(text, "model.expert_backend", cfg.model.expert_backend, ("grouped_mm",))
    if lora.target == "attention":
        return
    p, groups = cfg.parallel, cfg.model.router_groups
    if p.dispatch != "all_to_all" and groups > 1 and p.ep > groups:
        text = f"parallel.ep={p.ep} cuts each expert's width, which its adapters need whole"
        fit = tuple(divisors(groups))
        yield Fault(f"{text}; use {one_of(fit)}, or lora.target=attention", "parallel.ep", p.ep, fit)


def _unexpanded(cfg: Config) -> Iterator[Fault]:
    """Directories with what only a shell expands, and not inside of KEY=VALUE: a directory named ~ would be made."""
    directories = {
        "run.dir": cfg.run.dir,
        "checkpoint.init_from": cfg.checkpoint.init_from,
        "rl.kl_reference": cfg.rl.kl_reference,
        "data.root": cfg.data.root,
        "data.cache_dir": cfg.data.cache_dir,
        "optim.nvme_dir": cfg.optim.nvme_dir,
        **{f"data.sources.{name}.path": source.path for name, source in cfg.data.sources.items()},
        **{f"data.pairs.{name}.path": source.path for name, source in cfg.data.pairs.items()},
        **{f"data.zero_shot.{name}": path for name, path in cfg.data.zero_shot.items()},
        "data.tokenizer": cfg.data.tokenizer,
    }
    for key, path in directories.items():
        if found := re.match(r"~[\w.-]*(?=/|$)|(?:.*/)?(\$\w+)(?=/|$)", path or ""):
            allowed = f"the whole path, or ./{path} for a directory of that name"
            text = f"{key}={path}: {found[1] or found[0]} is not expanded here; use {allowed}"
            yield Fault(text, key, path, allowed)
