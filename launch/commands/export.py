"""`octavo export`: a training checkpoint as a Hugging Face directory."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from launch.paths import check_all, must_not_exist
from launch.progress import ProgressDisplay
from trainer.config.command_line import Parser, above_zero, choice
from trainer.config.errors import print_warning
from trainer.weights.lora.forms import ADAPTERS, FORMS, check_adapter, refuse_of_models
from trainer.weights.opened import open_checkpoint

if TYPE_CHECKING:
    from trainer.weights.lora.forms import Form

SHARD_GB = 5.0


def prepare(parser: Parser, words: Sequence[str]) -> Callable[[], int]:
    """Raises `CommandError`, also for a destination that exists and where there is no whole checkpoint."""
    add = parser.add_argument
    add(
        "checkpoint",
        metavar="CKPT",
        help="a run directory (its newest checkpoint is exported) or one of its step-N directories",
    )
    add("target", metavar="DST", help="output directory; must not exist")
    add(
        "--dtype",
        **choice("source", "bf16", "fp32", "fp8"),
        default="source",
        help="dtype of the text model and of the towers that the run trained. source: same as the checkpoint the run "
        "started from (bf16 if trained from scratch); fp8: e4m3 in blocks of 128 x 128 with weight_scale_inv "
        "(default: source)",
    )
    add("--pad", action="store_true", help="with FP8: pad the width of the experts with zeros to a multiple of 128")
    add("--text-only", action="store_true", help="leave out the vision, projector and time-series weights")
    add(
        "--adapter",
        **choice(*ADAPTERS),
        help="of a run with adapters. merged: the model with the adapters in its weights; peft: the adapters alone, as "
        "PEFT writes them, a pair of matrices for each expert; peft-3d: the same with a pair for all experts of a "
        "layer (default: merged)",
    )
    add("--shard-gb", type=above_zero("5"), metavar="GB", help="maximum file size in GB (default: 5)")
    options = parser.read(words)
    checkpoint = Path(options.checkpoint)
    check_all(lambda: _open(checkpoint, options), lambda: must_not_exist(options.target))
    if options.adapter in FORMS:
        given = {"pad": options.pad, "text_only": options.text_only, "shard": options.shard_gb}
        refuse_of_models(options.adapter, options.dtype, **given)
        return partial(_export_adapters, checkpoint, Path(options.target), options.adapter, options.dtype)

    def work() -> int:
        from trainer.weights.export import export  # imports torch

        started = time.perf_counter()
        with ProgressDisplay() as progress:
            done = export(
                checkpoint,
                Path(options.target),
                dtype=options.dtype,
                text_only=options.text_only,
                pad=options.pad,
                shard_bytes=round((options.shard_gb or SHARD_GB) * 1e9),
                progress=progress,
            )
        for warning in done.warnings:
            print_warning(warning)
        parts = f", with {done.carried} tensors of other parts unchanged" if done.carried else ""
        print(
            f"{options.target}: the {done.parts} after step {done.step} in {done.dtypes}{parts}; "
            f"{done.nbytes / 1e9:,.3f} GB in {time.perf_counter() - started:,.1f} s"
        )
        print(f"tokenizer: {done.tokenizer}")
        if done.media:
            print(f"media: {done.media}")
        print(
            f"next: `octavo inspect {options.target}` says which programs can read it; "
            f"`octavo train ... checkpoint.init_from={options.target}` continues from it"
        )
        return 0

    return work


def _open(checkpoint: Path, options: argparse.Namespace) -> None:
    opened = open_checkpoint(checkpoint)
    opened.refuse_inside(Path(options.target))
    check_adapter(options.adapter, opened.lora.target, opened.run_directory)


def _export_adapters(checkpoint: Path, target: Path, form: Form, dtype: str) -> int:
    from trainer.weights.lora.peft import export_adapters

    started, opened = time.perf_counter(), open_checkpoint(checkpoint)
    written = export_adapters(opened, target, form, "BF16" if dtype == "bf16" else "F32")
    seconds = time.perf_counter() - started
    size = f"{written.nbytes / 1e9:,.3f} GB in {seconds:,.1f} s"
    print(f"{target}: adapters of {opened.lora.target} after step {opened.step}; {size}")
    print(f"next: PeftModel.from_pretrained(model, '{target}') puts them on the model in {written.base}")
    return 0
