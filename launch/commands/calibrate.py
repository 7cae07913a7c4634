"""`octavo upcycle --calibrate`: count which experts of a model are used together, and rate cuts made from that."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from launch.paths import check_all, must_not_exist, only_with
from launch.progress import ProgressDisplay
from parallel.errors import Fault
from trainer.config.errors import CommandError, print_warning
from trainer.weights.hf_files import open_directory
from trainer.weights.hf_survey import SourceModel, survey_directory

if TYPE_CHECKING:
    from trainer.weights.upcycle.coactivation import Counts

TOKENS = 1 << 17  # the most that are read, without --tokens


def prepare(options: argparse.Namespace) -> Callable[[], int]:
    """Check the options of `octavo upcycle SRC --calibrate TEXT ... --counts FILE`, and open SRC and the texts.

    Raises `CommandError` for all mistakes that show without torch together; then `CommandError` or `UpcycleError`.
    """
    found: list[SourceModel] = []

    def open_source() -> None:
        opened = survey_directory(open_directory(Path(options.source)))
        opened.require(towers=False)
        for warning in opened.warnings:
            print_warning(warning)
        found.append(opened)

    check_all(
        partial(_check_words, options),
        partial(_check_counts, options.counts),
        open_source,
        lambda: _check_cut(options.factor, options.groups, found[0].model.num_experts if found else None),
        partial(_check_texts, options.calibrate),
    )
    (opened,) = found
    counts, factor, groups = Path(options.counts), options.factor, options.groups
    import torch

    from trainer.weights.upcycle.calibrate import read_windows

    device = options.device or "auto"
    if device == "cuda" and not torch.cuda.is_available():
        text = "--device=cuda: torch finds no CUDA device; use cpu or auto"
        raise CommandError(text, where="--device", value="cuda", allowed=("cpu", "auto"))
    windows = read_windows([Path(file) for file in options.calibrate], opened, options.tokens or TOKENS)
    on = torch.device("cuda" if device == "auto" and torch.cuda.is_available() else device.replace("auto", "cpu"))

    def work() -> int:
        from trainer.weights.upcycle.calibrate import count_experts

        with ProgressDisplay() as progress:
            gathered = count_experts(opened, windows, on, progress)
        gathered.save(counts)
        print(*_report(gathered, groups // factor, factor, options.seed), sep="\n")
        print(f"{counts}: counts of {gathered.tokens:,} tokens; for --strategy coactivation --counts {counts}")
        return 0

    return work


def _check_words(options: argparse.Namespace) -> None:
    faults: list[Fault] = []
    if options.target is not None or options.counts is None:
        remedy = "give SRC without DST, and --counts FILE for the result"
        faults.append(Fault(f"--calibrate: {remedy}", "--calibrate", None, remedy))
    if options.gb_per_s is not None:
        faults.append(only_with("--gb-per-s", options.gb_per_s, "--dry-run"))
    if faults:
        raise CommandError(faults)


def _check_counts(counts: str | None) -> None:
    if counts is None:
        return
    must_not_exist(counts)
    if not Path(counts).parent.is_dir():
        text = f"--counts={counts}: there is no directory {Path(counts).parent}"
        raise CommandError(text, where="--counts", value=counts, allowed="a directory that exists")


def _check_cut(factor: int, groups: int, experts: int | None) -> None:
    """experts: of SRC; None where it could not be opened."""
    cut = factor >= 1 and groups >= 1 and groups % factor == 0
    if not cut or (experts is not None and experts % (groups // factor)):
        remedy = "use a factor that divides the groups, where groups / factor divides the experts"
        count = "the" if experts is None else experts
        text = f"--factor={factor} --groups={groups}: {count} experts cannot be cut into groups / factor equal parts"
        raise CommandError(f"{text}; {remedy}", where="--factor", value=factor, allowed=remedy)


def _check_texts(files: Sequence[str]) -> None:
    """Raises `CommandError` naming every file that is missing."""
    allowed = "UTF-8 text, or token ids in a .npy file"
    faults = [
        Fault(
            f"{file}: {'a directory' if Path(file).is_dir() else 'no such file'}; give {allowed}", file, None, allowed
        )
        for file in files
        if not Path(file).is_file()
    ]
    if faults:
        raise CommandError(faults)


def _report(counts: Counts, parts: int, factor: int, seed: int) -> list[str]:
    """A line for each layer and one for all layers: the share of tokens whose two best experts are in different parts
    of the cut that was found, and in at least one of `factor` different cuts; each beside what random cuts expect.
    """
    from trainer.weights.upcycle.coactivation import best_cuts, expected_survival, survival

    experts = counts.pairs.shape[1]
    lines = [
        f"tokens whose two best experts stay apart when {experts} experts are cut into {parts} parts",
        f"{'':8}{'one cut':>9}{'random':>9}{f'{factor} cuts':>9}{'random':>9}",
    ]
    random = [expected_survival(experts, parts, cuts) for cuts in (1, factor)]
    kept = []
    for layer, pairs in enumerate(counts.pairs):
        try:
            cuts = best_cuts(pairs, parts, factor, seed)
        except ValueError:  # too few experts for that many different cuts
            cuts = best_cuts(pairs, parts, 1, seed)
        kept.append((survival(pairs, cuts[0]), survival(pairs, *cuts)))
        lines.append(_line(f"layer {layer}", *kept[-1], *random))
    one, several = (sum(column) / len(kept) for column in zip(*kept, strict=True))
    return [*lines, _line("all", one, several, *random)]


def _line(name: str, one: float, several: float, random_one: float, random_several: float) -> str:
    return f"{name:8}{one:9.1%}{random_one:9.1%}{several:9.1%}{random_several:9.1%}"
