"""`octavo data check|show|stats`: whether a mixture is whole, what a sample of it holds, how much there is of what."""

from __future__ import annotations

import argparse
import itertools
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from launch.commands.config import read
from trainer.config.checks.data import check_length
from trainer.config.errors import ConfigError
from trainer.config.keys import Config
from trainer.config.mixture import drawn, shares
from trainer.config.say import one_of
from trainer.data.errors import DataError

if TYPE_CHECKING:
    from rich.table import Table

    from trainer.data.mixture.reader import MixtureReader
    from trainer.data.windows import Windows

ACTIONS = ("check", "show", "stats")
COSTED_SAMPLES, COSTED_AT_ONCE = 4096, 64  # whose attention is measured
MAX_DIGITS = 18  # of a sample's number, which is an int64
RANKS = (2, 4, 8, 16, 32, 64, 128, 256, 512)


def run_data(parser: argparse.ArgumentParser, words: Sequence[str]) -> int:
    """`words`: check, show or stats, then a recipe's name (or a run directory or a file) and overrides. Raises
    `ConfigError`, also where the data are no mixture."""
    parser.usage = "octavo data check|stats RECIPE [override ...]\n       octavo data show RECIPE N [override ...]"
    parser.description = (
        f"{parser.description}\nRECIPE is a recipe, by its name (octavo data check toy) or as an override (octavo "
        "data check recipe=toy);\na run directory and a resolved config.yaml do, too. N is a sample's number, from 0."
    )
    options = parser.parse_intermixed_args(words)
    action, *given = options.overrides or [""]
    if action not in ACTIONS:
        parser.error(f"use {one_of(f'octavo data {name}' for name in ACTIONS)}")
    numbers = _sample_words(given) if action == "show" else []
    recipe = [word for word in given if word not in numbers]
    if not recipe or (action == "show") != (len(numbers) == 1):
        number = " 17, with the number of a sample" if action == "show" else ""
        parser.error(f"name a recipe, as in: octavo data {action} toy{number}")
    for word in numbers:
        if not word.isdecimal() or len(word) > MAX_DIGITS:
            parser.error(f"sample {word}: use a whole number, 0 or more, of {MAX_DIGITS} digits or fewer")
    cfg = read(shlex.join(recipe), options.config_dir)
    if cfg.data.name != "mixture":
        raise ConfigError([f"data.name={cfg.data.name} is no mixture; use a data option such as data=toy_mixture"])
    try:
        return show(cfg, int(numbers[0])) if action == "show" else check(cfg) if action == "check" else stats(cfg)
    except DataError as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        return 1


def _sample_words(words: Sequence[str]) -> list[str]:
    """What was given as the number of a sample, whether it is one or not: after a recipe's name, what sets no key."""
    numbers = [word for word in words if word.removeprefix("-").isdecimal()]
    return numbers or [word for word in words[1:] if "=" not in word]


def check(cfg: Config) -> int:
    """Sums and epochs (those of the recipe have held, or it would not have composed), then every file and its hash.

    Returns 1 where something is missing, damaged or does not fit, a line each.
    """
    from trainer.data.mixture.reader import MixtureReader

    print_table(_planned(cfg))
    directories = _directories(cfg)
    problems = list(_damage(directories))
    if not problems:
        try:
            MixtureReader(cfg.data, directories, seed=cfg.train.seed)
        except DataError as error:
            problems = str(error).splitlines()
    for line in problems:
        print(f"error: {line}", file=sys.stderr)
    if problems:
        return 1
    print(f"{len(directories)} sources are whole: every file is the one that was written, one tokenizer made them all,")
    print("and no prefix of one group can be taken for another's")
    return 0


def show(cfg: Config, sample: int) -> int:
    """One sample as text: its source, where its documents begin, and their prefixes in colour."""
    import numpy as np
    from rich.console import Console
    from rich.rule import Rule
    from rich.text import Text

    batch = cfg.train.global_batch
    last, step = cfg.train.steps * batch - 1, sample // batch + 1
    if beyond := check_length(cfg.data, step, batch):
        raise ConfigError([f"sample {sample} is of step {step}, which no run comes to: {line}" for line in beyond])
    reader = _reader(cfg)
    windows = reader.read(sample, 1)
    (source,), (epoch,), (position,) = (array.tolist() for array in reader.index.lookup(np.array([sample], np.int64)))
    name, console = reader.names[source], Console(highlight=False)
    if sample > last:
        console.print(
            f"the run ends at sample {last}: train.steps={cfg.train.steps} of {batch} samples", soft_wrap=True
        )
    config, trained = cfg.data.sources[name], int(windows.supervised_BS.sum())
    console.print(
        f"sample {sample} · phase {reader.index.phase_at(sample)} · source {name} ({config.domain}) · "
        f"epoch {epoch}, window {position} · {trained} of {cfg.data.seq_len} tokens are trained on",
        soft_wrap=True,
    )
    for line in windows.faults:
        console.print(Text(line, style="yellow"))
    for number, (begins, prefix, ids) in enumerate(_pieces(windows)):
        what = f"document {number + 1}, {len(ids)} tokens"
        console.print(Rule(what if begins else f"{what}, begun in an earlier window", style="dim", align="left"))
        text = Text(reader.tokenizer.decode(ids[:prefix]), style="bold cyan")
        text.append(reader.tokenizer.decode(ids[prefix:]), style="default not bold")
        console.print(text, soft_wrap=True)
    return 0


def stats(cfg: Config) -> int:
    """Tokens, documents, epochs and shares of each source, and how evenly attention's cost falls on ranks."""
    import numpy as np

    from trainer.data.attention_cost import attention_costs, imbalance

    reader = _reader(cfg)
    batch, samples = cfg.train.global_batch, cfg.train.steps * cfg.train.global_batch
    counts = reader.index.counts_before(samples)
    table = _table("source", "domain", "tokens", "documents", "tokens a document", "windows", "share", "epochs")
    for name, shards in reader.train.items():
        windows = shards.num_windows(cfg.data.seq_len)
        table.add_row(
            name,
            shards.domain,
            _short(shards.num_tokens),
            f"{shards.num_documents:,}",
            f"{shards.num_tokens / max(1, shards.num_documents):,.0f}",
            f"{windows:,}",
            f"{counts[name] / samples:.1%}",
            f"{counts[name] / windows:.3g}",
        )
    print_table(table)
    tokens = _short(samples * cfg.data.seq_len)
    print(f"share and epochs: of {cfg.train.steps:,} steps of {batch:,} samples, {tokens} tokens in all\n")

    measured = min(COSTED_SAMPLES, samples)
    parts = [(first, min(COSTED_AT_ONCE, measured - first)) for first in range(0, measured, COSTED_AT_ONCE)]
    costs = np.concatenate([attention_costs(reader.read(*part).starts_BL) for part in parts])
    print(f"attention inside documents, by the first {measured:,} samples: {costs.mean() / cfg.data.seq_len**2:.1%} of")
    print("what windows of one document each would cost; the busiest of R ranks has, over their mean,")
    for ranks in RANKS:
        micro = min(cfg.train.micro_batch, batch // ranks)
        if micro and batch % (ranks * micro) == 0 and measured >= ranks * micro:
            print(f"  R = {ranks:<4} {imbalance(costs, micro, ranks):.2f} times (micro-batches of {micro})")
    return 0


def _directories(cfg: Config) -> dict[str, Path]:
    from trainer.data.build import source_directories

    return source_directories(cfg.data)


def _reader(cfg: Config) -> MixtureReader:
    from trainer.data.mixture.reader import MixtureReader

    return MixtureReader(cfg.data, _directories(cfg), seed=cfg.train.seed)


def _damage(directories: dict[str, Path]) -> list[str]:
    from trainer.data.mixture.reader import damage
    from trainer.data.shards.windows import Shards

    found = []
    for name, directory in directories.items():
        try:
            train, heldout = Shards(directory, "train"), Shards(directory, "heldout")
            found += [damage(name, fault) for split in (train, heldout) for fault in split.faults("full")]
        except DataError as error:
            found.append(f"data.sources.{name}: {error}")
    return found


def _planned(cfg: Config) -> Table:
    """What the recipe asks for. Sums have been checked with it."""
    data, given = cfg.data, drawn(cfg.data.sources, cfg.data.phases)
    table = _table("source", "domain", "prefix", "tokens", "unique", "epochs", "at most", *data.phases)
    for name, source in data.sources.items():
        parts = [f"{float(shares(data.sources, phase)[name]):.1%}" for phase in data.phases]
        tokens, unique = _short(float(given[name])), _short(source.unique_tokens)
        epochs = f"{float(given[name] / source.unique_tokens):.3g}"
        most = f"{source.max_epochs:g}"
        table.add_row(name, source.domain, source.prefix or "-", tokens, unique, epochs, most, *parts)
    sums = [phase.tokens for phase in data.phases.values()]
    table.add_row("in all", "", "", _short(sum(sums)), "", "", "", *map(_short, sums))
    return table


def _short(tokens: float) -> str:
    """614.4 k, 5.37 T."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if tokens >= size:
            return f"{tokens / size:.4g} {unit}"
    return f"{tokens:.0f}"


def _pieces(windows: Windows) -> list[tuple[bool, int, list[int]]]:
    """(whether a document begins here, tokens of its prefix that are in the window, token ids) of each document."""
    tokens, starts, prefix = windows.tokens_BL[0, :-1], windows.starts_BL[0, :-1], windows.prefix_BL[0, :-1]
    edges = sorted({0, *starts.nonzero()[0].tolist(), len(tokens)})
    return [
        (bool(starts[first]), int(prefix[first:end].sum()), tokens[first:end].tolist())
        for first, end in itertools.pairwise(edges)
    ]


def _table(first: str, *others: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE, pad_edge=False)
    table.add_column(first)
    for column in others:
        table.add_column(column, justify="right")
    return table


def print_table(table: Table) -> None:
    from rich.console import Console

    console = Console()
    Console(width=max(console.width, 120)).print(table)
