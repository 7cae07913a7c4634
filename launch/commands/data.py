"""`octavo data check|index|show|stats`: checks the files of a mixture, makes indexes of pairs, shows one sample, or
counts what is in it."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from launch import chats
from launch.commands import pairs
from launch.configurations import read_configuration
from launch.tables import print_table, table
from parallel.errors import Fault, one_of
from trainer.config.checks.data import longest
from trainer.config.command_line import Parser
from trainer.config.errors import CommandError, ConfigError, print_warning
from trainer.config.keys import Config
from trainer.config.mixture import drawn, shares
from trainer.config.say import counted, did_you_mean
from trainer.corpora.needed import refuse_missing_packages
from trainer.data.errors import DataError

if TYPE_CHECKING:
    from rich.table import Table

    from trainer.data.mixture.reader import MixtureReader
    from trainer.data.windows import Windows

ACTIONS = ("check", "index", "show", "stats")
OF_PAIRS = {"check": pairs.check, "index": pairs.index}
OF_CHATS = {"check": chats.check, "stats": chats.stats}
WITH_PAIRS = "vision_contrastive_toy"  # a recipe with an index
COSTED_SAMPLES, COSTED_AT_ONCE = 4096, 64  # samples whose attention is measured
MAX_DIGITS = 18  # of a sample's number, which is an int64
RANKS = (2, 4, 8, 16, 32, 64, 128, 256, 512)


def prepare(parser: Parser, words: Sequence[str]) -> Callable[[], int]:
    """`words`: check, index, show or stats, then a recipe's name (or a run directory or a file) and overrides.

    Raises `CommandError`, and `ConfigError` also for data that an action does not know, or a cache that cannot be made.
    """
    parser.add_argument("action", nargs="?", metavar=f"{{{','.join(ACTIONS)}}}", help="what to do with the data")
    parser.add_overrides(words)
    parser.usage = (
        "octavo data check|stats RECIPE [override ...]\n       octavo data show RECIPE N [override ...]\n"
        "       octavo data index RECIPE [override ...]"
    )
    parser.description = (
        f"{parser.description}\nRECIPE is the name of a recipe (octavo data check toy) or an override (octavo data "
        "check recipe=toy);\na run directory or a resolved config.yaml also works. N is the index of a sample, "
        "starting at 0.\n"
        "A mixture of text (toy), or of text, images and signals (toy_multimodal), and chats (sft_toy): check, show,\n"
        f"stats. Images with captions (vision_contrastive, {WITH_PAIRS}): index, then check."
    )
    options = parser.read(words)
    action, given = options.action or "", options.overrides
    if action not in ACTIONS:
        problem = f"{action} is not an action" if action else "missing an action"
        text = f"octavo data: {problem}; use {one_of(ACTIONS)}{did_you_mean(action, ACTIONS)}"
        raise CommandError(text, where="octavo data", value=action or None, allowed=ACTIONS)
    numbers = _sample_words(given) if action == "show" else []
    recipe = [word for word in given if word not in numbers]
    if not recipe or (action == "show") != (len(numbers) == 1):
        example = f"octavo data {action} {WITH_PAIRS if action == 'index' else 'toy'}" + " 17" * (action == "show")
        needed = "a recipe and a sample index" if action == "show" else "a recipe"
        text = f"octavo data {action}: give {needed}, for example: {example}"
        raise CommandError(text, where="RECIPE", allowed=example)
    for word in numbers:
        if not word.isdecimal() or len(word) > MAX_DIGITS:
            allowed = f"a whole number of at least 0, with at most {MAX_DIGITS} digits"
            raise CommandError(
                f"sample '{word}' is not an index; use {allowed}", where="N", value=word, allowed=allowed
            )
    cfg = read_configuration(shlex.join(recipe), options.config_dir)
    refuse_missing_packages(cfg.data, decodes=action == "show")
    if cfg.data.name == "pairs" and action in OF_PAIRS:
        return partial(OF_PAIRS[action], cfg)
    if cfg.data.name == "chat" and action != "index":
        tokenizer = chats.tokenizer_of(cfg)
        if action == "show":
            return partial(chats.show, cfg, tokenizer, int(numbers[0]))
        return partial(OF_CHATS[action], cfg, tokenizer)
    if action == "index":
        text = f"data.name={cfg.data.name} has no index to make; use a recipe of pairs, such as {WITH_PAIRS}"
        raise ConfigError(text, where="data.name", value=cfg.data.name, allowed=("pairs",))
    if cfg.data.name != "mixture":
        text = f"data.name={cfg.data.name} is not a mixture and has no chats; use a recipe with one, such as toy"
        raise ConfigError(text, where="data.name", value=cfg.data.name, allowed=("mixture", "chat"))
    if cfg.data.build == "toy":
        _must_be_made(cfg.data.cache_dir)
    if action == "show":
        sample = int(numbers[0])
        _must_be_reached(cfg, sample)
        return partial(show, cfg, sample)
    return partial(check if action == "check" else stats, cfg)


def _sample_words(words: Sequence[str]) -> list[str]:
    """The words that were given as a sample's number, valid or not: after the recipe's name, those that set no key."""
    numbers = [word for word in words if word.removeprefix("-").isdecimal()]
    return numbers or [word for word in words[1:] if "=" not in word]


def _must_be_reached(cfg: Config, sample: int) -> None:
    """Raises `CommandError` if no run can reach the sample, because a source would be drawn too often before."""
    batch = cfg.train.global_batch
    if (found := longest(cfg.data, sample // batch + 1, batch)) is not None:
        steps, source, _ = found
        allowed = f"{steps * batch - 1} or less"
        text = f"sample {sample}: data.sources.{source} ends before it, as its max_epochs is"
        text = f"{text} {cfg.data.sources[source].max_epochs:g}; use {allowed}"
        raise CommandError(text, where="N", value=sample, allowed=allowed)


def _must_be_made(cache_dir: str) -> None:
    """Make the directory of the toy corpora. Raises `ConfigError` where that fails."""
    try:
        Path(cache_dir).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        remedy = "give a writable directory"
        text = f"data.cache_dir={cache_dir}: {error.strerror or error}; {remedy}"
        raise ConfigError(text, where="data.cache_dir", value=cache_dir, allowed=remedy) from error


def check(cfg: Config) -> int:
    """Check every file and its hash. (The sums and epochs of the recipe are checked when it is composed.)

    Returns 0, or raises `DataError` with everything that is missing or corrupt or does not fit.
    """
    from trainer.data.mixture.checks import other_towers, other_vocabulary
    from trainer.data.mixture.reader import MixtureReader

    try:
        directories = _directories(cfg)
        if faults := _damage(directories) or [*other_towers(cfg.data, directories, cfg.model)]:
            raise DataError(faults)
        reader = MixtureReader(cfg.data, directories, seed=cfg.train.seed, samples=_samples(cfg))
        if cfg.checkpoint.init_from is not None:
            faults, line = other_vocabulary(next(iter(directories.values())), Path(cfg.checkpoint.init_from))
            if faults:
                raise DataError(faults)
            if line:
                print_warning(line)
    except DataError:
        print_table(_table_of_sources(cfg, {}))  # epochs are unknown until all shards are read
        raise
    print_table(_table_of_sources(cfg, reader.epochs(reader.index.samples)))
    print(f"epochs: of all phases; an epoch is every window of {cfg.data.seq_len} tokens once")
    number = counted(len(directories), "source")
    intact = f"{number} {'is' if len(directories) == 1 else 'are'} intact"
    print(f"{intact}: every file is as it was written, one tokenizer made them all,")
    print("and no prefix of one group can be mistaken for another group's")
    for line in _left_out(reader, cfg.data.seq_len):
        print_warning(line)
    return 0


def _left_out(reader: MixtureReader, seq_len: int) -> Iterator[str]:
    """A line for each source that lacks documents: left out when it was made, or too long for a window here."""
    from trainer.data.media.shards import MediaShards

    for name, shards in reader.train.items():
        if bad := shards.manifest.get("documents_left_out"):
            made = "with bad media were left out when it was made; its left_out.jsonl lists them"
            yield f"data.sources.{name}: {counted(bad, 'document')} {made}"
        both = (shards, reader.heldout[name])
        large = sum(one.packs(seq_len).dropped for one in both if isinstance(one, MediaShards))
        if large:  # data.on_fault=skip: it would be an error otherwise
            why = f"an image or signal is longer than a window of data.seq_len={seq_len}"
            yield f"data.sources.{name}: {counted(large, 'document')} left out by data.on_fault=skip, as {why}"


def show(cfg: Config, sample: int) -> int:
    """Print one sample as text: its source, where its documents start, and their prefixes in colour."""
    import numpy as np
    from rich.console import Console
    from rich.rule import Rule
    from rich.text import Text

    last = cfg.train.steps * cfg.train.global_batch - 1
    reader = _reader(cfg)
    windows = reader.read(sample, 1)
    (source,), (epoch,), (position,) = (array.tolist() for array in reader.index.lookup(np.array([sample], np.int64)))
    name, console = reader.names[source], Console(highlight=False)
    if sample > last:
        console.print(
            f"the run ends at sample {last}: train.steps={cfg.train.steps} of {cfg.train.global_batch} samples",
            soft_wrap=True,
        )
    config, trained = cfg.data.sources[name], int(windows.supervised_BS.sum())
    console.print(
        f"sample {sample} · phase {reader.index.phase_at(sample)} · source {name} ({config.domain}) · "
        f"epoch {epoch}, window {position} · {trained} of {cfg.data.seq_len} tokens are trained on",
        soft_wrap=True,
    )
    for line in windows.faults:
        console.print(Text(line, style="yellow"))
    for number, (first, end, starts) in enumerate(_documents(windows)):
        what = f"document {number + 1}, {end - first} tokens"
        if windows.context_BL[0, first:end].all() and not any(first <= one.first < end for one in windows.media):
            console.print(Rule(f"{end - first} tokens of padding", style="dim", align="left"))
            continue
        console.print(Rule(what if starts else f"{what}, started in an earlier window", style="dim", align="left"))
        text = Text()
        for ids, trained in _runs(windows, first, end):
            style = "default not bold" if trained else "bold cyan"
            text.append(ids if isinstance(ids, str) else reader.tokenizer.decode(ids), style=style)
        console.print(text, soft_wrap=True)
    return 0


def stats(cfg: Config) -> int:
    """Print tokens, documents, epochs and shares of each source, and how evenly attention's cost falls on ranks."""
    import numpy as np

    from trainer.data.attention_cost import attention_costs, imbalance

    reader = _reader(cfg)
    batch, samples = cfg.train.global_batch, cfg.train.steps * cfg.train.global_batch
    counts, epochs = reader.index.counts_before(samples), reader.epochs(samples)
    columns = table("source", "domain", "tokens", "documents", "tokens per document", "windows", "share", "epochs")
    for name, shards in reader.train.items():
        windows = shards.num_windows(cfg.data.seq_len)
        columns.add_row(
            name,
            shards.domain,
            _short(shards.num_tokens),
            f"{shards.num_documents:,}",
            f"{shards.num_tokens / max(1, shards.num_documents):,.0f}",
            f"{windows:,}",
            f"{counts[name] / samples:.1%}",
            f"{epochs[name]:.3g}",
        )
    print_table(columns)
    _print_media(reader, cfg.data.seq_len)
    tokens = _short(samples * cfg.data.seq_len)
    print(f"share and epochs: of {cfg.train.steps:,} steps of {batch:,} samples, {tokens} tokens in total\n")

    measured = min(COSTED_SAMPLES, samples)
    parts = [(first, min(COSTED_AT_ONCE, measured - first)) for first in range(0, measured, COSTED_AT_ONCE)]
    costs = np.concatenate([attention_costs(reader.read(*part, media=False).starts_BL) for part in parts])
    print(f"attention inside documents, in the first {measured:,} samples: {costs.mean() / cfg.data.seq_len**2:.1%} of")
    print("the cost of windows of one document each; the busiest of R ranks has, relative to the mean,")
    for ranks in RANKS:
        micro = min(cfg.train.micro_batch, batch // ranks)
        if micro and batch % (ranks * micro) == 0 and measured >= ranks * micro:
            print(f"  R = {ranks:<4} {imbalance(costs, micro, ranks):.2f} times (micro-batches of {micro})")
    return 0


def _print_media(reader: MixtureReader, seq_len: int) -> None:
    """Print a table of the sources with images or signals, if there are any."""
    from trainer.data.media.shards import MediaShards

    columns = table("source", "images", "signals", "their tokens", "padding of packs", "documents that do not fit")
    for name, shards in reader.train.items():
        if isinstance(shards, MediaShards):
            packs = shards.packs(seq_len)
            padding = packs.total("padding") / max(1, shards.num_windows(seq_len) * seq_len)
            counts = [f"{shards.total(key):,}" for key in ("images", "signals", "media_tokens")]
            columns.add_row(name, *counts, f"{padding:.1%}", f"{packs.dropped:,}")
    if columns.row_count:
        print_table(columns)


def _directories(cfg: Config) -> dict[str, Path]:
    from trainer.data.build import source_directories

    return source_directories(cfg.data)


def _reader(cfg: Config) -> MixtureReader:
    from trainer.data.mixture.reader import MixtureReader

    return MixtureReader(cfg.data, _directories(cfg), seed=cfg.train.seed, samples=_samples(cfg))


def _samples(cfg: Config) -> int:
    return cfg.train.steps * cfg.train.global_batch


def _damage(directories: dict[str, Path]) -> list[Fault]:
    from trainer.data.mixture.reader import with_source
    from trainer.data.shards.windows import Shards

    found: list[Fault] = []
    for name, directory in directories.items():
        try:
            train, heldout = Shards(directory, "train"), Shards(directory, "heldout")
            found += [with_source(name, fault) for split in (train, heldout) for fault in split.faults("full")]
        except DataError as error:
            found += [replace(fault, text=f"data.sources.{name}: {fault.text}") for fault in error.faults]
    return found


def _table_of_sources(cfg: Config, epochs: dict[str, float]) -> Table:
    """The tokens that the recipe asks of each source, whose sums are checked already; and its epochs, if known."""
    data = cfg.data
    given = drawn(data.sources, data.phases)
    columns = table("source", "domain", "prefix", "tokens", "unique", "epochs", "at most", *data.phases)
    for name, source in data.sources.items():
        parts = [f"{float(shares(data.sources, phase)[name]):.1%}" for phase in data.phases]
        tokens, unique = _short(float(given[name])), _short(source.unique_tokens)
        times = f"{epochs[name]:.3g}" if epochs else "-"
        most = f"{source.max_epochs:g}"
        columns.add_row(name, source.domain, source.prefix or "-", tokens, unique, times, most, *parts)
    sums = [phase.tokens for phase in data.phases.values()]
    columns.add_row("total", "", "", _short(sum(sums)), "", "", "", *map(_short, sums))
    return columns


def _short(tokens: float) -> str:
    """614.4 k, 5.37 T."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if tokens >= size:
            return f"{tokens / size:.4g} {unit}"
    return f"{tokens:.0f}"


def _documents(windows: Windows) -> list[tuple[int, int, bool]]:
    """(first token, the one behind the last, it starts here) of each document in a window."""
    starts = windows.starts_BL[0, :-1]
    edges = sorted({0, *starts.nonzero()[0].tolist(), len(starts)})
    return [(first, end, bool(starts[first])) for first, end in itertools.pairwise(edges)]


def _runs(windows: Windows, first: int, end: int) -> Iterator[tuple[list[int] | str, bool]]:
    """(token ids, trained on) of the runs of a document, with a word for each image or signal."""
    tokens, context = windows.tokens_BL[0], windows.context_BL[0]
    media = {one.first: one for one in windows.media if first <= one.first < end}
    inside = {place for one in media.values() for place in range(one.first + 1, one.first + one.tokens)}
    for trained, run in itertools.groupby(range(first, end), lambda place: not context[place]):
        ids: list[int] = []
        for place in run:
            if place in media:
                yield ids, trained
                ids = []
                yield f"[{media[place].kind}, {counted(media[place].tokens, 'token')}]", trained
            elif place not in inside:
                ids.append(int(tokens[place]))
        yield ids, trained
