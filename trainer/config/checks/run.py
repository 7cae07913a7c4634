"""Names and directories that are empty or cannot be used, and options of training that need another engine."""

from __future__ import annotations

import re
from collections.abc import Iterator

from parallel.errors import Fault, one_of
from trainer.config.keys import Config
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
        ("data.root", cfg.data.root, "the directory of the sources, or . for the working directory"),
        ("data.cache_dir", cfg.data.cache_dir, "a directory such as .cache/octavo"),
        ("optim.nvme_dir", cfg.optim.nvme_dir, "an existing directory on a local NVMe disk, or null"),
        ("logging.wandb_project", cfg.logging.wandb_project, "the name of a project, or logging.wandb=off"),
    ):
        needed = key != "logging.wandb_project" or cfg.logging.wandb != "off"
        if needed and value is not None and not value.strip():
            faults.append(Fault(f"{key} is empty; use {allowed}", key, value, allowed))
    faults += _unexpanded(cfg)
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


def _unexpanded(cfg: Config) -> Iterator[Fault]:
    """Directories with what only a shell expands, and not inside of KEY=VALUE: a directory named ~ would be made."""
    directories = {
        "run.dir": cfg.run.dir,
        "checkpoint.init_from": cfg.checkpoint.init_from,
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
