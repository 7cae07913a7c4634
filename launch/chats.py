"""`octavo data check|show|stats` for chats."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING

from launch.tables import print_table, table
from trainer.config.errors import print_warning
from trainer.config.keys import Config
from trainer.config.say import counted
from trainer.storage.progress import print_line

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from rich.text import Text

    from trainer.data.chats.prepare import Prepared
    from trainer.data.chats.reader import ChatReader
    from trainer.data.chats.tokens import ChatTokenizer

TRAINED, CONTEXT = "bold green", "dim"
OPEN, CLOSE = "\u27e6", "\u27e7"  # around what is trained, where there are no colours
QUANTILES = (0.5, 0.9, 0.99, 1.0)


def tokenizer_of(cfg: Config) -> ChatTokenizer | None:
    """The tokenizer and the template of the chats; None for the toy's, which may have to be made first.

    Raises DataError, and ChatError for a template that cannot be read or compiled."""
    from trainer.data.chats.tokens import open_tokenizer

    init_from = cfg.checkpoint.init_from
    if cfg.data.build == "toy":
        return None
    return open_tokenizer(cfg.data, None if init_from is None else Path(init_from))


def check(cfg: Config, tokenizer: ChatTokenizer | None) -> int:
    """Read every record, tokenized first where that was not done yet, and count those that are left out.

    Returns 0; raises the `UserError`s of `prepare` and of `ChatReader`."""
    _, prepared, _ = _opened(cfg, tokenizer)
    facts = prepared.facts
    columns = table("source", "records", "trained on", "held out", "examples", "tokens", "trained tokens")
    for number, name in enumerate(prepared.sources):
        mine = prepared.records[:, 0] == number
        examples = prepared.examples[mine[prepared.examples[:, 2]]]
        left_out = sum(facts["left_out"].get(name, {}).values())
        heldout = int(prepared.records[mine, 1].sum())
        columns.add_row(
            name,
            f"{int(mine.sum()) + left_out:,}",
            f"{int(mine.sum()) - heldout:,}",
            f"{heldout:,}",
            f"{len(examples):,}",
            f"{int(examples[:, 1].sum()):,}",
            f"{int(examples[:, 3].sum()):,}",
        )
    print_table(columns)
    print("examples: a chat is several where its template writes earlier turns in another way than the last one")
    if facts["straddling"]:
        tokens = counted(facts["straddling"], "token")
        print(f"{tokens} on the edge of what the assistant writes, not trained on")
    return 0


def show(cfg: Config, tokenizer: ChatTokenizer | None, sample: int) -> int:
    """Print the chats of one window as text, and which of their tokens are trained on: in colour, or in brackets."""
    import numpy as np
    from rich.console import Console
    from rich.text import Text

    tokenizer, prepared, reader = _opened(cfg, tokenizer)
    console = Console(highlight=False)
    windows, size = reader.read(sample, 1), reader.train.count
    pack = int(reader.positions(np.array([sample]))[0])
    trained = int(windows.supervised_BS.sum())
    console.print(
        f"sample {sample} · epoch {sample // size}, window {pack} · {trained} of {cfg.data.seq_len} tokens are trained "
        f"on: {'in green' if console.color_system else f'inside {OPEN} {CLOSE}'}",
        soft_wrap=True,
    )
    for example in reader.members(pack):
        first, length = int(prepared.examples[example, 0]), int(reader.lengths[example])
        part = slice(first, first + length)
        cut = int(prepared.examples[example, 1]) - length
        title = f"{prepared.where(example)}, {length} tokens" + (f", {cut} more cut off" if cut else "")
        console.print(Text(f"\u2500\u2500 {title}", style=CONTEXT), soft_wrap=True)
        mask = prepared.trained[part] == 1
        console.print(_marked(tokenizer, prepared.tokens[part], mask, console.color_system is not None), soft_wrap=True)
    return 0


def _marked(tokenizer: ChatTokenizer, ids: npt.NDArray[np.int32], mask: npt.NDArray[np.bool_], colours: bool) -> Text:
    from rich.text import Text

    text = Text()
    for trained, run in itertools.groupby(range(len(ids)), lambda place: bool(mask[place])):
        shown = tokenizer.decode([int(ids[place]) for place in run])
        if trained and not colours:
            shown = f"{OPEN}{shown}{CLOSE}"
        text.append(shown, style=TRAINED if trained else CONTEXT)
    return text


def stats(cfg: Config, tokenizer: ChatTokenizer | None) -> int:
    """Print how chats fill their windows, and how often the run reads them."""
    import numpy as np

    _, prepared, reader = _opened(cfg, tokenizer)
    size, samples = reader.train.count, cfg.train.steps * cfg.train.global_batch
    lengths = reader.lengths[reader.train.examples]
    trained = int(prepared.examples[reader.train.examples, 3].sum())
    print(f"windows      {size:,} of {cfg.data.seq_len:,} tokens, {len(lengths) / size:.1f} examples in each")
    print(f"padding      {1 - lengths.sum() / (size * cfg.data.seq_len):.1%} of the windows")
    print(f"trained on   {trained:,} of {int(lengths.sum()):,} tokens ({trained / lengths.sum():.1%})")
    quantiles = ", ".join(f"{int(np.quantile(lengths, part))} ({part:.0%})" for part in QUANTILES)
    print(f"lengths      {quantiles}")
    print(f"epochs       {samples / size:.3g}, in {cfg.train.steps:,} steps of {cfg.train.global_batch:,} windows")
    for name, packs in reader.heldout.items():
        print(f"held out     {len(packs.examples):,} examples of {name}, in {counted(packs.count, 'window')}")
    return 0


def _opened(cfg: Config, tokenizer: ChatTokenizer | None) -> tuple[ChatTokenizer, Prepared, ChatReader]:
    from trainer.data.build import with_toy_chats
    from trainer.data.chats.prepare import prepare
    from trainer.data.chats.reader import ChatReader
    from trainer.data.chats.tokens import open_tokenizer

    data = with_toy_chats(cfg.data, print_line)
    tokenizer = tokenizer or open_tokenizer(data)
    prepared = prepare(data, tokenizer, print_line)
    for line in prepared.left_out():
        print_warning(line)
    return tokenizer, prepared, ChatReader(data, prepared, seed=cfg.train.seed, padding=0, warn=print_warning)
