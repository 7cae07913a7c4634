"""Octavo from Python: the commands, as functions.

    from trainer import api

    cfg = api.compose("recipe=toy", "train.steps=20", "run.dir=runs/mine")
    api.train(cfg)
    api.export("runs/mine", "mine")
    print(api.load("runs/mine").generate("The melting point of", max_tokens=20))

Errors that the user can fix are `UserError`s (parallel/errors.py), whose faults name the key, option or file, its value
and what would work. This module imports no torch; a function that needs it does.
"""

from __future__ import annotations

import atexit
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from trainer.config.compose import compose as compose_words
from trainer.config.keys import Config
from trainer.run import directory

if TYPE_CHECKING:
    from trainer.engine.text_model import TextModel
    from trainer.weights.dtypes import DtypeName
    from trainer.weights.export import Exported
    from trainer.weights.lora.forms import Adapter
    from trainer.weights.upcycle.engine import Done


class RunFailedError(RuntimeError):
    """A run that did not reach its last step; the reason is on stderr. `code`: its exit code (130, 143: stopped)."""

    def __init__(self, code: int) -> None:
        super().__init__(f"the run ended with exit code {code}")
        self.code = code


def compose(*overrides: str, config_dirs: Sequence[str | Path] = (), world_size: int = 1) -> Config:
    """Compose a configuration from overrides such as `recipe=toy` and `optim.lr=1e-3`, and check it.

    config_dirs: directories with more recipes and options. world_size: ranks of the run, 1 or more. Raises ConfigError.
    """
    return compose_words(overrides, config_dirs=config_dirs, world_size=world_size)


def train(cfg: Config) -> Path | None:
    """Train to the last step of `cfg`, in this process or on every rank of a torchrun launch.

    An unfinished run in the run directory is resumed, a finished one is left alone. Returns the run directory on rank 0
    and None on the others. Raises ConfigError for a directory that cannot be used, RunFailedError for a run that failed
    or was stopped.
    """
    run = directory.choose(cfg) if os.environ.get("RANK", "0") == "0" else None
    from trainer.run.process import train as train_process

    code = train_process(cfg, run)
    if code:
        raise RunFailedError(code)
    return run.path if run is not None else None


def export(
    checkpoint: str | Path,
    target: str | Path,
    *,
    dtype: DtypeName = "source",
    text_only: bool = False,
    pad: bool = False,
    adapter: Adapter | None = None,
) -> Exported:
    """Write a training checkpoint as a Hugging Face directory, or its adapters as PEFT's.

    checkpoint: a run directory (its newest step) or a step-N directory in it. target: must not exist. dtype: of the
    text model; "source": as where the run started. text_only: leave vision, projector and time series out. pad: widen
    experts with zeros to a multiple of 128 where they are written in FP8. adapter: of a run with adapters; None or
    "merged": the model with them in its weights; "peft": the adapters alone, a pair of matrices for each expert;
    "peft-3d": the same with a pair for all experts of a layer. Alone they are fp32, or bf16 with dtype="bf16".
    Raises CheckpointError, ConfigError or HuggingFaceError; UserError for a dtype or a form that does not exist, for an
    adapter of a run without, and for text_only, pad or dtype="fp8" where adapters are written alone.
    """
    from trainer.weights.export import Exported
    from trainer.weights.export import export as export_checkpoint
    from trainer.weights.lora.forms import check_adapter, refuse_of_models

    if adapter is not None:
        from trainer.weights.opened import open_checkpoint

        opened = open_checkpoint(Path(checkpoint))
        check_adapter(adapter, opened.lora.target, opened.run_directory)
        if adapter != "merged":
            from trainer.weights.lora.peft import export_adapters

            refuse_of_models(adapter, dtype, pad=pad, text_only=text_only)
            stored = "BF16" if dtype == "bf16" else "F32"
            written = export_adapters(opened, Path(target), adapter, stored)
            return Exported(
                opened.step, written.nbytes, stored, 0, f"adapters of {opened.lora.target}", [],
                f"none; that of {written.base}", [],
            )  # fmt: skip
    return export_checkpoint(Path(checkpoint), Path(target), dtype=dtype, text_only=text_only, pad=pad)


def load(path: str | Path, *, device: Literal["cpu", "cuda"] | None = None, cache_tokens: int = 32_768) -> TextModel:
    """A model that generates text, from a run directory (its newest checkpoint), a step-N directory, or a Hugging Face
    directory.

    device: cpu or cuda; None: the GPU where there is one. cache_tokens: room for all prompts and answers together.
    Under torchrun the ranks share the experts, and what generates is collective (`TextModel`). What the computer cannot
    do as the run did is a warning.
    Raises CheckpointError, ConfigError or HuggingFaceError for a directory that cannot be read, or whose experts cannot
    be divided among the ranks; DataError for its tokenizer; WorldError for a machine without that device.
    """
    from trainer.engine.load import open_source

    source = open_source(Path(path))
    for warning in source.warnings:
        warnings.warn(warning, stacklevel=2)

    from parallel.world import start_world
    from trainer.engine.text_model import TextModel
    from trainer.run.host_memory import prepare_host_memory

    world = start_world(device or "auto")
    if world.size > 1:
        atexit.register(world.close)
    if world.device.type == "cpu":
        prepare_host_memory()
    return TextModel(source, world, cache_tokens=cache_tokens)


def upcycle(
    source: str | Path,
    target: str | Path,
    *,
    dtype: DtypeName = "source",
    counts: str | Path | None = None,
    workers: int = 1,
    **expansion: Any,
) -> Done:
    """Copy the experts of a Hugging Face directory into router groups, as a new directory.

    target: must not exist; an interrupted start is resumed. dtype: of the text model. counts: a file that `octavo
    upcycle --calibrate` wrote, for strategy="coactivation". workers: processes. expansion: fields of `Expansion`
    (trainer/weights/upcycle/placement.py), by default factor=4 and groups=8.
    Raises UpcycleError or HuggingFaceError; UserError for a dtype that does not exist, Python's TypeError for a name
    that is not a field of `Expansion`.
    """
    from trainer.weights.hf_files import open_directory
    from trainer.weights.hf_survey import survey_directory
    from trainer.weights.upcycle.coactivation import Counts
    from trainer.weights.upcycle.engine import run
    from trainer.weights.upcycle.journal import identity
    from trainer.weights.upcycle.placement import Expansion
    from trainer.weights.upcycle.stream import plan_upcycle

    opened, asked = survey_directory(open_directory(Path(source))), Expansion(**{"factor": 4, "groups": 8, **expansion})
    read = Counts.load(Path(counts), opened) if counts is not None else None
    planned = plan_upcycle(opened, asked, dtype, read)
    return run(Path(target), planned, lambda: identity(opened, asked.vocabulary), workers=workers)


def tokenize(
    inputs: Sequence[str | Path],
    tokenizer: str | Path,
    out: str | Path,
    *,
    domain: Literal["science", "general"],
    split: str | None = None,
    note: Callable[[str], None] = lambda line: None,
    **options: Any,
) -> dict[str, Any]:
    """Turn documents into shuffled shards of tokens, and return their manifest.

    inputs: .jsonl (also .gz), .parquet and .arrow files, directories of them, datasets saved by save_to_disk.
    tokenizer: a tokenizer.json. out: the directory to make; an interrupted start is resumed. split: of saved datasets,
    by default "train". note: called with a line for each file that is not read, and for what else a user should see.
    options: of `tokenize_source` (trainer/corpora/tokenize), such as heldout_fraction, seed and workers; name is that
    of `out`.
    Raises DataError.
    """
    from trainer.corpora.tokenize.inputs import find_files
    from trainer.corpora.tokenize.tokenize import tokenize_source

    files = find_files([Path(path) for path in inputs], split, lambda path, why: note(f"{path} is not read: {why}"))
    options = {"name": Path(out).name, "note": note, **options}
    return dict(tokenize_source(files, Path(tokenizer), Path(out), domain=domain, **options))
