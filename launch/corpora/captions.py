"""`octavo captions`: figures of PDFs with their captions and context, described by vision models."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from launch.corpora.describing import add_describing, read_describing
from launch.corpora.routing import add_routing, read_routing
from launch.paths import check_all, must_exist
from launch.progress import ProgressDisplay
from trainer.config.command_line import Parser, above_zero, number, whole_number
from trainer.config.errors import CommandError
from trainer.config.say import counted

if TYPE_CHECKING:
    from trainer.corpora.captions.describing import Describing
    from trainer.corpora.captions.inputs import Input
    from trainer.corpora.captions.routing.stage import Options as RoutingOptions

LEAST_DPI, MOST_DPI = 20, 1200
SHOWN = 5  # inputs with problems that are printed


def prepare(parser: Parser, words: Sequence[str]) -> Callable[[], int]:
    """Raises `CommandError`, also for an input that does not exist."""
    _options(parser)
    options = parser.read(words)
    if not options.inputs:
        remedy = "name PDFs, directories of PDFs, or .jsonl lists of them"
        raise CommandError(f"octavo captions: missing INPUT; {remedy}", where="INPUT", allowed=remedy)
    check_all(*(partial(must_exist, path, "give an existing file or directory") for path in options.inputs))
    if os.path.lexists(options.out) and not os.path.isdir(options.out):
        remedy = "give a new directory, or that of an earlier start"
        text = f"octavo captions: OUT {options.out} is not a directory; {remedy}"
        raise CommandError(text, where="OUT", value=options.out, allowed=remedy)
    routes, describing = read_routing(options), read_describing(options)
    from trainer.corpora.captions.inputs import find_inputs

    return partial(_work, options, find_inputs(options.inputs), routes, describing)


def _options(parser: Parser) -> None:
    parser.add_argument("out", metavar="OUT", help="directory of the stages; the same command resumes in it")
    help = "PDF, directory of PDFs, or .jsonl list of {path, licence, source}"
    parser.add_argument("inputs", nargs="*", metavar="INPUT", help=help)
    parser.add_argument(
        "--dpi",
        type=number(lambda dpi: LEAST_DPI <= dpi <= MOST_DPI, f"a number from {LEAST_DPI} to {MOST_DPI}, such as 150"),
        default=150.0,
        metavar="N",
        help="resolution of the crops, in pixels per inch (150)",
    )
    parser.add_argument(
        "--seconds",
        type=above_zero("120"),
        default=120.0,
        metavar="N",
        help="most that one document may take; a slower one is dropped (120)",
    )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parser.add_argument(
        "--workers", type=whole_number(1), default=cores, metavar="N", help="processes (one for each core)"
    )
    add_routing(parser)
    add_describing(parser)


def _work(
    options: argparse.Namespace, inputs: Sequence[Input], routes: RoutingOptions, describing: Describing | None
) -> int:
    from trainer.corpora.captions.layout.stage import Options
    from trainer.corpora.captions.pipeline import run_pipeline

    started = time.perf_counter()
    out = Path(options.out)
    settings = Options(options.dpi, options.seconds, options.workers)
    try:
        with ProgressDisplay() as progress:
            reports = run_pipeline(out, inputs, settings, describing, routes=routes, progress=progress)
    except KeyboardInterrupt:
        print(f"interrupted; the same command resumes in {out}", file=sys.stderr)
        return 130
    for report in reports:
        for name, count in report.counts.items():
            dropped = ", ".join(f"{number:,} {reason}" for reason, number in sorted(count.dropped.items()))
            print(
                f"{report.stage}: {count.kept:,} of {count.came:,} {name}{f'; dropped: {dropped}' if dropped else ''}"
            )
        for line in report.lines[:SHOWN]:
            print(f"note: {line}", file=sys.stderr)
        if (more := len(report.lines) - SHOWN) > 0:
            print(f"note: {counted(more, 'more line')} in {out / report.stage / 'report.json'}", file=sys.stderr)
    print(f"{out}: {time.perf_counter() - started:,.1f} s")
    return 0
