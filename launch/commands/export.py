"""`octavo export`: a training checkpoint as a Hugging Face directory."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from launch.paths import check_all, must_not_exist
from launch.progress import ProgressDisplay
from trainer.config.command_line import Parser, above_zero, choice
from trainer.config.errors import print_warning
from trainer.weights.opened import open_checkpoint


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
    add("--shard-gb", type=above_zero("5"), default=5.0, metavar="GB", help="maximum file size in GB (default: 5)")
    options = parser.read(words)
    checkpoint = Path(options.checkpoint)
    check_all(lambda: open_checkpoint(checkpoint), lambda: must_not_exist(options.target))

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
                shard_bytes=round(options.shard_gb * 1e9),
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
