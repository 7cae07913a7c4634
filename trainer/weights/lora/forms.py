"""The forms in which a run's adapters are exported, and what fits which. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

from parallel.errors import UserError, one_of

Form = Literal["peft", "peft-3d"]
FORMS: tuple[Form, ...] = get_args(Form)
Adapter = Literal["merged", "peft", "peft-3d"]
ADAPTERS: tuple[Adapter, ...] = get_args(Adapter)


def check_adapter(adapter: str | None, target: str, run: Path) -> None:
    """Raises UserError for a form that does not exist, and for any of a run without adapters.

    target: `lora.target` of the run. run: its directory."""
    if adapter is not None and adapter not in ADAPTERS:
        text = f"--adapter={adapter}: no such form; use {one_of(ADAPTERS)}"
        raise UserError(text, where="--adapter", value=adapter, allowed=ADAPTERS)
    if adapter is not None and target == "none":
        allowed = "a run with lora.target=attention, experts or all"
        text = f"--adapter {adapter}: {run} has no adapters; give {allowed}, or leave --adapter out"
        raise UserError(text, where="--adapter", value=adapter, allowed=allowed)


def refuse_of_models(adapter: Form, dtype: str, *, pad: bool, text_only: bool, shard: object = None) -> None:
    """Raises UserError for what is about whole models, where adapters are written alone.

    shard: the largest size of a file, where one was given."""
    allowed = ("source", "bf16", "fp32")
    if dtype not in allowed:
        text = f"--dtype {dtype} is for matrices of a model, and --adapter {adapter} writes none; use {one_of(allowed)}"
        raise UserError(text, where="--dtype", value=dtype, allowed=allowed)
    for name, given in (("--pad", pad), ("--text-only", text_only)):
        if given:
            text = f"{name} changes a model, and --adapter {adapter} writes none; leave it out"
            raise UserError(text, where=name, value=True, allowed="--adapter merged")
    if shard is not None:
        text = f"--shard-gb divides a model, and --adapter {adapter} writes one file; leave it out"
        raise UserError(text, where="--shard-gb", value=shard, allowed="--adapter merged")
