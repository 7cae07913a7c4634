"""`octavo upcycle`: a Hugging Face checkpoint with its experts copied into router groups, as a new directory."""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from trainer.weights.upcycle.errors import UpcycleError
from trainer.weights.upcycle.placement import (
    FOPE_GAIN,
    FOPE_MAX_POSITION,
    FOPE_THETA,
    Expansion,
    Placement,
    check,
    place,
)

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

    from trainer.weights.hf_survey import Source
    from trainer.weights.hf_write import Shard
    from trainer.weights.upcycle.engine import Done
    from trainer.weights.upcycle.stream import Upcycled

BETWEEN = 5.0  # seconds between two lines of progress
NAMED = 8  # finished files that --dry-run names
TOKENS = 1 << 17  # that --calibrate reads
STRATEGIES = ("halves", "coactivation", "spread")
DTYPES = ("source", "bf16", "fp32", "fp8")


def run_upcycle(parser: argparse.ArgumentParser, words: Sequence[str]) -> int:
    """Exit code 0, 1 with one line on stderr, or 130 where Ctrl-C came; leaves by SystemExit for wrong words."""
    _options(parser)
    options = parser.parse_args(words)
    if options.seed < 0:
        parser.error(f"--seed={options.seed}: use 0 or more")
    if options.gb_per_s is not None and not options.dry_run:
        parser.error("--gb-per-s is of --dry-run, which is not given")
    if options.calibrate:
        from launch.commands.calibrate import run_calibrate

        if options.target is not None or options.counts is None:
            parser.error("--calibrate FILE ... takes SRC alone, and --counts FILE for what it finds")
        return run_calibrate(
            options.source,
            options.calibrate,
            options.counts,
            tokens=TOKENS if options.tokens is None else options.tokens,
            factor=options.factor,
            groups=options.groups,
            seed=options.seed,
            device=options.device or "auto",
        )
    for name in ("tokens", "device"):
        if getattr(options, name) is not None:
            parser.error(f"--{name} is of --calibrate, which is not given")
    options.gb_per_s = 1.0 if options.gb_per_s is None else options.gb_per_s
    if options.target is None:
        parser.error("the following arguments are required: DST")
    if options.workers < 1:
        parser.error(f"--workers={options.workers}: use 1 or more")
    for name in ("shard_gb", "gb_per_s"):
        if not 0 < getattr(options, name) < math.inf:
            parser.error(f"--{name.replace('_', '-')}={getattr(options, name)} is no size; use a number above 0")
    if (options.counts is None) != (options.strategy != "coactivation"):
        parser.error("--strategy coactivation and --counts FILE go together; --calibrate makes the file")
    from trainer.weights.hf_files import HuggingFaceError

    expansion = Expansion(**{field.name: getattr(options, field.name) for field in fields(Expansion)})
    try:
        if Path(options.source).resolve() in Path(options.target).resolve().parents:
            raise UpcycleError(f"{options.target} is inside {options.source}; give a directory outside of the source")
        return (_dry_run if options.dry_run else _run)(options, expansion)
    except (UpcycleError, HuggingFaceError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _run(options: argparse.Namespace, expansion: Expansion) -> int:
    from trainer.weights.hf_files import open_directory
    from trainer.weights.hf_survey import look_at
    from trainer.weights.hf_write import must_not_exist, side_files

    target, began = Path(options.target), time.perf_counter()
    must_not_exist(target)  # before a second of planning
    source = look_at(open_directory(Path(options.source)))
    _, planned = _planned(source, options, expansion)
    from trainer.weights.upcycle.engine import Interrupted, run
    from trainer.weights.upcycle.journal import identity

    vocabulary = side_files(Path(expansion.vocabulary)) if expansion.vocabulary is not None else ()
    for warning in planned.facts["warnings"]:
        print(f"warning: {warning}", file=sys.stderr)
    try:
        with _Progress() as progress:
            done = run(
                target,
                planned,
                lambda: identity(source, vocabulary),
                workers=options.workers,
                shard_bytes=round(options.shard_gb * 1e9),
                progress=progress,
            )
    except Interrupted as interrupted:
        print(f"\n{interrupted}", file=sys.stderr)
        return 130
    _report(target, planned, done, time.perf_counter() - began)
    return 0


def _planned(source: Source, options: argparse.Namespace, expansion: Expansion) -> tuple[Placement, Upcycled]:
    check(source.model, expansion)
    counts = None
    if options.counts is not None:
        from trainer.weights.upcycle.coactivation import Counts

        counts = Counts.load(Path(options.counts), source)
    model = source.model
    per_token = model.experts_per_token if expansion.experts_per_token is None else expansion.experts_per_token
    told = time.perf_counter()

    def searched(layers: int) -> None:
        nonlocal told
        if time.perf_counter() - told >= BETWEEN and layers < model.num_layers:
            told = time.perf_counter()
            print(f"cuts of {layers} of {model.num_layers} layers are chosen", file=sys.stderr)

    placement = place(model.num_experts, per_token, expansion, model.num_layers, counts, searched)
    from trainer.weights.upcycle.stream import upcycled  # imports torch

    return placement, upcycled(source, expansion, placement, options.dtype)


def _report(target: Path, planned: Upcycled, done: Done, seconds: float) -> None:
    for fault in done.faults:
        print(f"warning: {fault}; it was made again", file=sys.stderr)
    kept = f", {done.kept} of them kept from an earlier start" if done.kept else ""
    model = planned.model
    print(
        f"{target}: {model.num_experts} experts in {model.router_groups} groups, {model.experts_per_token} per token; "
        f"{done.nbytes / 1e9:,.3f} GB in {done.shards} file(s){kept}, in {seconds:,.1f} s"
    )


def _dry_run(options: argparse.Namespace, expansion: Expansion) -> int:
    from trainer.storage.space import free_space
    from trainer.weights.hf_survey import look_at
    from trainer.weights.hf_write import cut
    from trainer.weights.upcycle.dryrun import directory_or_description

    directory, remarks = directory_or_description(Path(options.source))
    source = look_at(directory)
    placement, planned = _planned(source, options, expansion)
    old, new = source.model, planned.model
    shards = cut(planned.groups, round(options.shard_gb * 1e9))
    sizes = [shard.size for shard in shards]
    need = sum(sizes)
    begun, there = _unfinished(options, expansion, source, planned, shards, whole=not remarks)
    place, free = free_space(Path(options.target).parent)
    seconds = need / (options.gb_per_s * 1e9)
    found = placement.facts()
    towers = sum(math.prod(tensor.shape) for tensor in source.carried)
    rows = [
        ("parameters, all", f"{old.num_params() + towers:,}", f"{new.num_params() + towers:,}"),
        ("parameters, text", f"{old.num_params():,}", f"{new.num_params():,}"),
        ("active per token", f"{old.active_params():,}", f"{new.active_params():,}"),
        ("experts", f"{old.num_experts:,}", f"{new.num_experts:,}"),
        ("router groups", str(old.router_groups), str(new.router_groups)),
        ("experts per token", str(old.experts_per_token), str(new.experts_per_token)),
        ("vocabulary", f"{old.vocab_size:,}", f"{new.vocab_size:,}"),
        ("positions", old.positions, new.positions),
    ]
    print(f"{options.source} -> {options.target}: nothing is written\n")
    print(f"{'':20}{'before':>20}{'after':>20}")
    for name, before, after in rows:
        print(f"{name:20}{before:>20}{after:>20}")
    copies = sorted({found["fewest_copies_of_an_expert"], found["most_copies_of_an_expert"]})
    print(
        f"\nplacement   {expansion.strategy}, cuts {expansion.cuts}: {placement.per_group} experts in each group, "
        f"{' to '.join(map(str, copies))} copies of each, twice in a group: {found['experts_twice_in_a_group']}"
    )
    print(f"noise       {expansion.noise:g}, identical copies: {'yes' if placement.identical else 'no'}")
    print(f"files       {len(shards)} of {min(sizes) / 1e9:,.3f} to {max(sizes) / 1e9:,.3f} GB: {shards[0].name} ...")
    print(f"disk        {(need - there) / 1e9:,.3f} GB needed, {free / 1e9:,.3f} GB free in {place}")
    print(f"time        {_duration(seconds)} at {options.gb_per_s:g} GB/s, all workers together")
    for remark in remarks:
        print(f"source      {remark}")
    for warning in planned.facts["warnings"]:
        print(f"warning     {warning}")
    for line in begun:
        print(line)
    if need - there > free:
        print(f"warning     the disk is too small by {(need - there - free) / 1e9:,.3f} GB")
    return 0


def _unfinished(
    options: argparse.Namespace,
    expansion: Expansion,
    source: Source,
    planned: Upcycled,
    shards: Sequence[Shard],
    *,
    whole: bool,
) -> tuple[list[str], int]:
    """What to say of an earlier start's work, and the bytes of its finished files that would be kept.

    whole: the source's weights are there, of which the plan of a start says what they were.
    """
    from trainer.weights.hf_files import HuggingFaceError
    from trainer.weights.hf_write import side_files
    from trainer.weights.upcycle.engine import plan_of
    from trainer.weights.upcycle.journal import identity, unfinished, work_path

    vocabulary = side_files(Path(expansion.vocabulary)) if expansion.vocabulary is not None else ()
    target = Path(options.target)
    if not whole and work_path(target).exists():
        return [f"unfinished  {work_path(target)}; whether it is of these options is not known without the weights"], 0
    try:
        files = unfinished(target, lambda: plan_of(planned, shards, identity(source, vocabulary)))
    except HuggingFaceError as error:
        return [f"warning     {error}"], 0
    if files is None:
        return [], 0
    more = f" and {len(files) - NAMED} more" if len(files) > NAMED else ""
    names = f": {', '.join([*files][:NAMED])}{more}" if files else ""
    return [
        f"unfinished  {len(files)} of {len(shards)} files are finished in {work_path(target)}{names}",
        "            the same command without --dry-run verifies them, and goes on from there",
    ], sum(files.values())


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:,.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


class _Progress:
    """A bar on a terminal, elsewhere a line a few seconds apart. It begins with the first call: by then the workers are
    forked, and none of them has half a bar's thread."""

    def __init__(self) -> None:
        self.bar: Bar | None = None
        self.task: TaskID | None = None
        self.began = self.told = time.perf_counter()

    def __enter__(self) -> Callable[[int, int, int], None]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.stop()

    def __call__(self, made: int, kept: int, total: int) -> None:
        now = time.perf_counter()
        if not made:
            self.began = now  # what was there is being verified, which says nothing of the speed
        speed = made / max(now - self.began, 1e-9)
        left = f"{_duration((total - made - kept) / speed)} left" if speed else ""
        if sys.stderr.isatty():
            if self.bar is None:
                self._begin(total)
            assert self.bar is not None
            assert self.task is not None
            self.bar.update(self.task, completed=made + kept, speed=f"{speed / 1e9:.2f} GB/s", left=left)
        elif now - self.told >= BETWEEN and made + kept < total:
            self.told = now
            done = f"{(made + kept) / 1e9:,.1f} of {total / 1e9:,.1f} GB"
            print(f"{done}, {speed / 1e9:.2f} GB/s, {left or 'checking what is there'}", file=sys.stderr)

    def _begin(self, total: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

        columns = BarColumn(), DownloadColumn(), TextColumn("{task.fields[speed]}"), TextColumn("{task.fields[left]}")
        self.bar = Progress(*columns, console=Console(stderr=True))
        self.task = self.bar.add_task("", total=total, speed="", left="")
        self.bar.start()


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SRC", help="a Hugging Face directory")
    parser.add_argument("target", metavar="DST", nargs="?", help="the directory to make; must not exist")
    add = parser.add_argument
    add("--factor", type=int, default=4, metavar="N", help="copies of every expert (4)")
    add("--groups", type=int, default=8, metavar="G", help="router groups (8)")
    add("--experts-per-token", type=int, metavar="K", help="of the result, a multiple of G (the source's)")
    add("--strategy", choices=STRATEGIES, default="halves", help="how experts are put into groups (halves)")
    add("--counts", metavar="FILE", help="of --strategy coactivation, made by --calibrate")
    add("--cuts", choices=("same", "distinct"), default="same", help="distinct: each set of groups has its own (same)")
    add("--noise", type=float, default=1e-2, metavar="X", help="std on copies and gate rows, over their RMS (0.01)")
    add("--seed", type=int, default=0, metavar="N", help="of the noise and the cuts (0)")
    add("--force", action="store_true", help="allow a factor equal to the groups: every group holds every expert")
    add("--positions", choices=("keep", "fope"), default="keep", help="keep RoPE as it is, or make it FoPE (keep)")
    add("--rope-theta", type=float, metavar="X", help=f"with --positions fope, not the source's ({FOPE_THETA:g})")
    add("--max-position", type=int, metavar="N", help=f"with --positions fope ({FOPE_MAX_POSITION})")
    add("--fope-gain", type=float, metavar="X", help=f"with --positions fope; 0: matrices of exactly I ({FOPE_GAIN})")
    add("--vocabulary", metavar="DIR", help="tokenizer of the result: rows move by token string (the source's)")
    add("--vocab-size", type=int, metavar="N", help="rows of embedding and LM head (the source's, or --vocabulary's)")
    add("--router-temperature", type=float, default=1.0, metavar="X", help="gate rows are divided by it (1)")
    add("--dtype", choices=DTYPES, default="source", help="of the text model; source: as there (source)")
    add("--shard-gb", type=float, default=5.0, metavar="GB", help="size of one file (5)")
    add("--workers", type=int, default=1, metavar="N", help="processes (1)")
    add("--dry-run", action="store_true", help="print what would be made; SRC may hold config.json alone")
    add("--gb-per-s", type=float, metavar="X", help="speed that --dry-run counts with (1)")
    add(
        "--calibrate", nargs="+", metavar="TEXT", help="write --counts FILE alone, from UTF-8 text or .npy of token ids"
    )
    add("--tokens", type=int, metavar="N", help=f"that --calibrate reads at most ({TOKENS})")
    add("--device", choices=("auto", "cpu", "cuda"), help="of --calibrate (auto)")
