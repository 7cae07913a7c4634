"""`octavo upcycle`: a Hugging Face checkpoint with its experts copied into router groups, as a new directory."""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from launch.commands.calibrate import TOKENS
from launch.paths import check_all, must_not_exist, only_with
from launch.progress import ProgressDisplay, duration
from parallel.errors import Fault
from trainer.config.command_line import Parser, above_zero, choice, whole_number
from trainer.config.errors import CommandError, print_warning
from trainer.weights.hf_files import open_directory
from trainer.weights.hf_survey import SourceModel, survey_directory
from trainer.weights.upcycle.dryrun import directory_or_description
from trainer.weights.upcycle.errors import UpcycleError
from trainer.weights.upcycle.placement import (
    FOPE_GAIN,
    FOPE_MAX_POSITION,
    FOPE_THETA,
    Expansion,
    faults_of,
)
from trainer.weights.upcycle.vocabulary import tokenizer_file

if TYPE_CHECKING:
    from trainer.weights.hf_write import Shard
    from trainer.weights.upcycle.coactivation import Counts
    from trainer.weights.upcycle.engine import Done
    from trainer.weights.upcycle.stream import Upcycled

NAMED = 8  # finished files that --dry-run names
STRATEGIES = ("halves", "coactivation", "spread")
DTYPES = ("source", "bf16", "fp32", "fp8")


def prepare(parser: Parser, words: Sequence[str]) -> Callable[[], int]:
    """Raises `CommandError` for all mistakes together: in the options, of a destination that exists, and of a source
    that cannot be expanded as the options say."""
    _options(parser)
    options = parser.read(words)
    if options.calibrate:
        from launch.commands import calibrate

        return calibrate.prepare(options)
    expansion = Expansion(**{field.name: getattr(options, field.name) for field in fields(Expansion)})
    source = _Source(options, expansion)
    check_all(
        partial(_check_words, options),
        partial(_check_target, options),
        source.open,
        source.check_expansion,
        source.check_vocabulary,
        source.read_counts,
    )
    return (_prepare_dry_run if options.dry_run else _prepare_run)(options, expansion, source)


def _check_words(options: argparse.Namespace) -> None:
    """Raises `CommandError` for options that do not go together."""
    faults: list[Fault] = []
    if options.gb_per_s is not None and not options.dry_run:
        faults.append(only_with("--gb-per-s", options.gb_per_s, "--dry-run"))
    for name in ("tokens", "device"):
        if getattr(options, name) is not None:
            faults.append(only_with(f"--{name}", getattr(options, name), "--calibrate"))
    if (options.counts is None) != (options.strategy != "coactivation"):
        remedy = "give --strategy coactivation together with --counts FILE, which --calibrate writes"
        faults.append(Fault(f"octavo upcycle: {remedy}", "--counts", options.counts, remedy))
    if faults:
        raise CommandError(faults)


def _check_target(options: argparse.Namespace) -> None:
    if options.target is None:
        remedy = "give the directory to create"
        raise CommandError(f"octavo upcycle: missing DST; {remedy}", where="DST", allowed=remedy)
    if Path(options.source).resolve() in Path(options.target).resolve().parents:
        remedy = "give a directory outside of the source"
        text = f"{options.target} is inside {options.source}; {remedy}"
        raise CommandError(text, where=options.target, allowed=remedy)
    if not options.dry_run:
        must_not_exist(options.target)


class _Source:
    """SRC as far as it could be opened, and checks of the options against it. No torch here."""

    def __init__(self, options: argparse.Namespace, expansion: Expansion) -> None:
        self.options, self.expansion = options, expansion
        self.opened: SourceModel | None = None
        self.remarks: list[str] = []
        self.counts: Counts | None = None

    def open(self) -> None:
        """Raises HuggingFaceError."""
        path = Path(self.options.source)
        if self.options.dry_run:
            directory, self.remarks = directory_or_description(path)
        else:
            directory = open_directory(path)
        opened = survey_directory(directory)
        opened.require(towers=True)
        self.opened = opened

    def check_expansion(self) -> None:
        """Raises UpcycleError."""
        if faults := faults_of(self.opened.model if self.opened else None, self.expansion):
            raise UpcycleError(faults)

    def check_vocabulary(self) -> None:
        """Raises UpcycleError."""
        if self.expansion.vocabulary is not None:
            tokenizer_file(Path(self.expansion.vocabulary))

    def read_counts(self) -> None:
        """Raises UpcycleError."""
        if self.opened is None or self.options.counts is None or self.options.strategy != "coactivation":
            return
        from trainer.weights.upcycle.coactivation import Counts  # imports numpy

        self.counts = Counts.load(Path(self.options.counts), self.opened)

    def planned(self) -> tuple[SourceModel, Upcycled]:
        """The source once it is opened, and the plan of its expansion."""
        from trainer.weights.upcycle.stream import plan_upcycle  # imports torch

        assert self.opened is not None
        with ProgressDisplay() as progress:
            return self.opened, plan_upcycle(self.opened, self.expansion, self.options.dtype, self.counts, progress)


def _prepare_run(options: argparse.Namespace, expansion: Expansion, opened: _Source) -> Callable[[], int]:
    started = time.perf_counter()
    source, planned = opened.planned()
    for warning in planned.facts["warnings"]:
        print_warning(warning)

    def work() -> int:
        from trainer.weights.upcycle.engine import Interrupted, run
        from trainer.weights.upcycle.journal import identity

        try:
            with ProgressDisplay() as progress:
                done = run(
                    Path(options.target),
                    planned,
                    lambda: identity(source, expansion.vocabulary),
                    workers=options.workers,
                    shard_bytes=round(options.shard_gb * 1e9),
                    progress=progress,
                )
        except Interrupted as interrupted:
            print(f"\n{interrupted}", file=sys.stderr)
            return 130
        _report(options.target, planned, done, time.perf_counter() - started)
        return 0

    return work


def _report(target: str, planned: Upcycled, done: Done, seconds: float) -> None:
    for fault in done.faults:
        print_warning(f"{fault}; it was written again")
    kept = f", {done.kept} of them kept from an earlier start" if done.kept else ""
    model = planned.model
    print(
        f"{target}: {model.num_experts} experts in {model.router_groups} groups, {model.experts_per_token} per token; "
        f"{done.nbytes / 1e9:,.3f} GB in {done.shards} file(s){kept}, in {seconds:,.1f} s"
    )


def _prepare_dry_run(options: argparse.Namespace, expansion: Expansion, opened: _Source) -> Callable[[], int]:
    source, planned = opened.planned()
    return partial(_print_plan, options, expansion, source, planned, opened.remarks)


def _print_plan(
    options: argparse.Namespace,
    expansion: Expansion,
    source: SourceModel,
    planned: Upcycled,
    remarks: Sequence[str],
) -> int:
    """Print what an upcycle would write, and the disk space and time that it would need."""
    from trainer.storage.space import free_space
    from trainer.weights.hf_write import split_into_shards

    old, new = source.model, planned.model
    shards = split_into_shards(planned.bundles, round(options.shard_gb * 1e9))
    sizes = [shard.size for shard in shards]
    need = sum(sizes)
    unfinished, kept = _unfinished(options, expansion, source, planned, shards, whole=not remarks)
    place, free = free_space(Path(options.target).parent)
    speed = options.gb_per_s or 1.0
    seconds = need / (speed * 1e9)
    placement = planned.placement
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
        f"{' to '.join(map(str, copies))} copies of each; experts twice in a group: {found['experts_twice_in_a_group']}"
    )
    print(f"noise       {expansion.noise:g}, identical copies: {'yes' if placement.identical else 'no'}")
    print(f"files       {len(shards)} of {min(sizes) / 1e9:,.3f} to {max(sizes) / 1e9:,.3f} GB: {shards[0].name} ...")
    print(f"disk        {(need - kept) / 1e9:,.3f} GB needed, {free / 1e9:,.3f} GB free in {place}")
    print(f"time        {duration(seconds)} at {speed:g} GB/s, all workers together")
    for remark in remarks:
        print(f"source      {remark}")
    for warning in planned.facts["warnings"]:
        print(f"warning     {warning}")
    for line in unfinished:
        print(line)
    if need - kept > free:
        print(f"warning     the disk is too small by {(need - kept - free) / 1e9:,.3f} GB")
    return 0


def _unfinished(
    options: argparse.Namespace,
    expansion: Expansion,
    source: SourceModel,
    planned: Upcycled,
    shards: Sequence[Shard],
    *,
    whole: bool,
) -> tuple[list[str], int]:
    """Lines about an earlier start's work, and the bytes of its finished files that would be kept.

    whole: the source's weights are present. The plan of an earlier start records which weights it had.
    """
    from trainer.weights.upcycle.engine import plan_of
    from trainer.weights.upcycle.journal import identity, unfinished, work_path

    target = Path(options.target)
    if not whole and work_path(target).exists():
        return [f"unfinished  {work_path(target)}; without the weights, its options cannot be compared with these"], 0
    try:
        files = unfinished(target, lambda: plan_of(planned, shards, identity(source, expansion.vocabulary)))
    except UpcycleError as error:
        return [f"warning     {error}"], 0
    if files is None:
        return [], 0
    more = f" and {len(files) - NAMED} more" if len(files) > NAMED else ""
    names = f": {', '.join([*files][:NAMED])}{more}" if files else ""
    return [
        f"unfinished  {len(files)} of {len(shards)} files are finished in {work_path(target)}{names}",
        "            the same command without --dry-run verifies them and resumes from there",
    ], sum(files.values())


def _options(parser: Parser) -> None:
    parser.add_argument("source", metavar="SRC", help="a Hugging Face directory")
    parser.add_argument("target", metavar="DST", nargs="?", help="output directory; must not exist")
    add = parser.add_argument
    fope = "with --positions fope: "
    add("--factor", type=int, default=4, metavar="N", help="copies of each expert (default: 4)")
    add("--groups", type=int, default=8, metavar="G", help="router groups (default: 8)")
    add("--experts-per-token", type=int, metavar="K", help="experts per token, a multiple of G (default: as in SRC)")
    add("--strategy", **choice(*STRATEGIES), default="halves", help="assignment of experts to groups (default: halves)")
    add("--counts", metavar="FILE", help="co-selection counts: written by --calibrate, read by --strategy coactivation")
    add(
        "--cuts",
        **choice("same", "distinct"),
        default="same",
        help="how each full set of groups divides the experts: the same in every set, or differently (default: same)",
    )
    add(
        "--noise",
        type=float,
        default=1e-2,
        metavar="X",
        help="standard deviation of the noise on copies and router weights, relative to their RMS (default: 0.01)",
    )
    add("--seed", type=whole_number(0), default=0, metavar="N", help="seed for the noise and the cuts (default: 0)")
    add("--force", action="store_true", help="allow --factor equal to --groups, which puts every expert in every group")
    add(
        "--positions", **choice("keep", "fope"), default="keep", help="keep RoPE, or convert it to FoPE (default: keep)"
    )
    add("--rope-theta", type=float, metavar="X", help=f"{fope}RoPE frequency base (theta) (default: {FOPE_THETA:g})")
    add("--max-position", type=int, metavar="N", help=f"{fope}maximum position (default: {FOPE_MAX_POSITION})")
    add(
        "--fope-gain",
        type=float,
        metavar="X",
        help=f"{fope}gain of the FoPE coefficient matrices; 0 makes them identities (default: {FOPE_GAIN})",
    )
    add(
        "--vocabulary",
        metavar="DIR",
        help="tokenizer for the new model; embedding rows are matched by token string (default: the tokenizer of SRC)",
    )
    add(
        "--vocab-size",
        type=int,
        metavar="N",
        help="rows of the embedding and LM head (default: as in SRC, or as many as --vocabulary needs)",
    )
    add("--router-temperature", type=float, default=1.0, metavar="X", help="divide router weights by X (default: 1)")
    add(
        "--dtype",
        **choice(*DTYPES),
        default="source",
        help="dtype of the text model; source keeps each tensor's dtype (default)",
    )
    add("--shard-gb", type=above_zero("5"), default=5.0, metavar="GB", help="maximum file size in GB (default: 5)")
    add("--workers", type=whole_number(1), default=1, metavar="N", help="number of worker processes (default: 1)")
    add(
        "--dry-run",
        action="store_true",
        help="print the sizes of the result without writing anything; SRC needs only config.json",
    )
    add(
        "--gb-per-s",
        type=above_zero("1"),
        metavar="X",
        help="I/O throughput that --dry-run assumes, in GB/s (default: 1)",
    )
    add(
        "--calibrate",
        nargs="+",
        metavar="TEXT",
        help="count how often experts are selected together on UTF-8 text or .npy token ids, write --counts, and exit",
    )
    add(
        "--tokens",
        type=whole_number(1),
        metavar="N",
        help=f"maximum number of tokens --calibrate reads (default: {TOKENS})",
    )
    add("--device", **choice("auto", "cpu", "cuda"), help="device for --calibrate (default: auto)")
