"""Run every check of a configuration."""

from __future__ import annotations

from parallel.errors import Fault
from trainer.config import coerce
from trainer.config.checks import data, memory, model, optim, parallel, precision, ranges, run
from trainer.config.checks.kinds import chats, pairs, questions
from trainer.config.keys import Config


def validate(cfg: Config, world_size: int | None) -> list[Fault]:
    """All faults of `cfg` on `world_size` ranks (None: any number that fits); an empty list if it can run.

    Pure: does not look at devices, files or the environment.
    """
    if world_size is not None and world_size < 1:
        allowed = "a whole number, 1 or more"
        return [Fault(f"WORLD_SIZE={world_size}: use {allowed}", "WORLD_SIZE", world_size, allowed)]
    flat = coerce.flatten(coerce.to_dict(cfg), coerce.keys(Config))
    unused = tuple(f"{fault.where}." for fault in optim.unused_parts(cfg).values())  # reported as a whole
    out_of_range = ranges.out_of_range({key: value for key, value in flat.items() if not key.startswith(unused)})
    impossible = [*ranges.unknown_choices(flat), *out_of_range.values()]
    faults = []
    # A size that is zero or negative is reported above; a check that divides by it would report it again, or crash.
    sound = {section for section in vars(cfg) if not any(key.startswith(f"{section}.") for key in out_of_range)}
    if "model" in sound:
        faults += model.check(cfg.model, cfg.data.seq_len)
    if world_size is not None and not {"train.global_batch", "train.micro_batch"} & out_of_range.keys():
        sequences = 1 if {"parallel.pp", "parallel.cp"} & out_of_range.keys() else cfg.parallel.pp * cfg.parallel.cp
        if world_size % sequences == 0:
            faults += parallel.check_batch(cfg.train, world_size // sequences)
    if world_size is not None and {"model", "parallel", "train", "data"} <= sound:
        faults += parallel.check(cfg, world_size)
    if not {"train.global_batch", "train.steps", "data.seq_len"} & out_of_range.keys():
        faults += ranges.too_many_tokens(cfg)
    faults += precision.check(cfg.precision, cfg.optim)
    faults += data.check(cfg.data)
    if not any(key.startswith(("data.seq_len", "data.sources.", "data.phases.")) for key in out_of_range):
        faults += data.check_mixture(cfg.data) or data.check_length(cfg.data, cfg.train.steps, cfg.train.global_batch)
    faults += data.check_towers(cfg.data, cfg.model)
    faults += [*pairs.check(cfg), *chats.check(cfg), *questions.check(cfg)]
    faults += [*optim.check(cfg.optim), *optim.check_parts(cfg)]
    faults += memory.check(cfg)
    faults += run.check(cfg)
    reported = {fault.where for fault in impossible}  # what cannot be at all has no further fault
    return [*impossible, *(fault for fault in faults if fault.where not in reported)]
