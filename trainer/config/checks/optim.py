"""Optimizer settings that are out of range or not available in an engine."""

from __future__ import annotations

from collections.abc import Iterator

from parallel.errors import Fault, one_of
from trainer.config.keys import Config, OptimConfig, PartConfig, PartsConfig


def doubtful(o: OptimConfig, steps: int) -> list[str]:
    """Return warnings about spans of the schedule that do not fit into `steps`, one line each.

    Not faults: a run may be continued with a larger train.steps, which changes none of these keys.
    """
    decay, warmup = o.decay_steps(steps), o.warmup_steps
    if warmup > steps:
        reached = o.lr * steps / warmup
        return [
            f"optim.warmup_steps={warmup} is longer than the run (train.steps={steps}): the learning rate ends at "
            f"{reached:.3g} and never reaches optim.lr={o.lr:g}; use optim.warmup_steps={steps // 10} or a larger "
            "train.steps"
        ]
    if o.schedule == "wsd" and decay and warmup + decay > steps:
        return [
            f"optim.warmup_steps={warmup} and the decay of the last {decay} steps (optim.decay_fraction="
            f"{o.decay_fraction:g}) are together longer than train.steps={steps}, which leaves the decay "
            f"{steps - warmup} steps; lower one of them"
        ]
    if o.schedule == "cosine" and warmup == steps:
        return [
            f"optim.warmup_steps={warmup} is the whole run (train.steps={steps}): with optim.schedule=cosine "
            "the learning rate never falls"
        ]
    return []


def check(o: OptimConfig) -> list[Fault]:
    """Faults of the section `optim`, apart from numbers that are only positive or negative."""
    faults = []
    if len(o.betas) != 2 or not all(0 <= beta < 1 for beta in o.betas):
        text = f"optim.betas={o.betas} must be two numbers from 0 to below 1; for example [0.9,0.95]"
        faults.append(Fault(text, "optim.betas", o.betas, "two numbers from 0 to below 1"))
    if not 0 <= o.momentum < 1:
        text = f"optim.momentum={o.momentum:g} is out of range; use 0 to below 1"
        faults.append(Fault(text, "optim.momentum", o.momentum, "0 to below 1"))
    for key, value in (("optim.decay_fraction", o.decay_fraction), ("optim.min_lr_ratio", o.min_lr_ratio)):
        if not 0 <= value <= 1:
            faults.append(Fault(f"{key}={value:g} is out of range; use 0 to 1", key, value, "0 to 1"))
    if o.zero_stage not in (1, 2, 3):
        text = f"optim.zero_stage={o.zero_stage} is not available; use 1, 2 or 3"
        faults.append(Fault(text, "optim.zero_stage", o.zero_stage, (1, 2, 3)))
    if o.offload == "nvme":
        faults += _check_nvme(o)
    elif o.engine == "native" and o.offload != "none" and o.name != "adamw":
        text = f"optim.offload={o.offload} is not available with optim.name={o.name}; use adamw, or optim.offload=none"
        faults.append(Fault(text, "optim.offload", o.offload, ("none",)))
    if o.offload_params != "none" and (o.zero_stage != 3 or o.offload == "none" or o.engine != "deepspeed"):
        text = f"optim.offload_params={o.offload_params} needs ZeRO-3 with its state on the host or on NVMe"
        needs = "optim.engine=deepspeed optim.zero_stage=3 and optim.offload=cpu or nvme"
        faults.append(
            Fault(
                f"{text}; use {needs}, or optim.offload_params=none",
                "optim.offload_params",
                o.offload_params,
                ("none",),
            )
        )
    if o.engine == "deepspeed" and o.name != "adamw":
        text = f"optim.name={o.name} is not available with optim.engine=deepspeed; use adamw, or optim.engine=native"
        faults.append(Fault(text, "optim.name", o.name, ("adamw",)))
    return faults


def unused_parts(cfg: Config) -> dict[str, Fault]:
    """Name -> fault of each part in `optim.parts` that the model does not have; its keys have no other faults."""
    m, parts, found = cfg.model, cfg.optim.parts, {}
    for name, tower in (("vision", m.vision), ("merger", m.vision), ("signals", m.signals)):
        if tower is None and getattr(parts, name) != PartConfig():
            section = "model.signals" if name == "signals" else "model.vision"
            text = f"optim.parts.{name} has no use without {section}; leave it out"
            found[name] = Fault(text, f"optim.parts.{name}", vars(getattr(parts, name)), (None,))
    return found


def check_parts(cfg: Config) -> Iterator[Fault]:
    """Faults of `optim.parts`."""
    m, parts = cfg.model, cfg.optim.parts
    unused = unused_parts(cfg)
    yield from unused.values()
    for name, part in vars(parts).items():
        if name in unused:
            continue
        if part.freeze and (part.lr is not None or part.weight_decay is not None):
            text = f"optim.parts.{name} is frozen, so its lr and weight_decay have no use; leave them out"
            yield Fault(text, f"optim.parts.{name}.freeze", True, (False,))
        if part.lr is not None and part.lr <= 0:
            text = f"optim.parts.{name}.lr={part.lr:g} must be positive; use a number above 0, or freeze the part"
            yield Fault(text, f"optim.parts.{name}.lr", part.lr, "a number above 0")
        if part.weight_decay is not None and part.weight_decay < 0:
            text = f"optim.parts.{name}.weight_decay={part.weight_decay:g} is negative; use 0 or more"
            yield Fault(text, f"optim.parts.{name}.weight_decay", part.weight_decay, "0 or more")
    there = ["text", "router", *(["vision", "merger"] if m.vision else []), *(["signals"] if m.signals else [])]
    if all(getattr(parts, name).freeze for name in there):
        keys = tuple(f"optim.parts.{name}.freeze=false" for name in there)
        yield Fault(f"every part of the model is frozen; use {one_of(keys)}", "optim.parts", there, keys)
    if cfg.optim.engine == "deepspeed" and parts != PartsConfig():
        text = "optim.parts is not available with optim.engine=deepspeed; leave it out, or use optim.engine=native"
        yield Fault(text, "optim.engine", "deepspeed", ("native",))


def _check_nvme(o: OptimConfig) -> Iterator[Fault]:
    if o.engine != "deepspeed" or o.zero_stage != 3:
        text = "optim.offload=nvme is only available with optim.engine=deepspeed optim.zero_stage=3; use them, or"
        allowed = ("none",) if o.engine == "native" and o.name != "adamw" else ("cpu", "none")
        yield Fault(f"{text} optim.offload={one_of(allowed)}", "optim.offload", o.offload, allowed)
    if o.nvme_dir is None:
        directory = "an existing directory on a local NVMe disk"
        text = f"optim.offload=nvme needs optim.nvme_dir; use {directory}, or optim.offload=cpu or none"
        yield Fault(text, "optim.nvme_dir", None, directory)
