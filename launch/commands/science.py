"""`octavo science`: write records as texts, in a JSONL file for `octavo tokenize`."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.config.errors import ConfigError
from trainer.config.say import one_of
from trainer.corpora.science.records import Table
from trainer.corpora.science.tables.builtin import SEED, TABLES, TASKS_PER_RECORD
from trainer.corpora.science.tables.user_files import read_table
from trainer.corpora.science.texts import Text, texts
from trainer.data.errors import DataError
from trainer.storage.atomic import FILE_SUFFIX, TargetExistsError, atomic_file
from trainer.storage.lock import LockedError

if TYPE_CHECKING:
    from trainer.corpora.science.rollouts.rollouts import Rollouts

TASKS = [str(count) for count in range(5)]  # of --tasks
BETWEEN = 5.0  # seconds between two lines of progress


def run_science(parser: argparse.ArgumentParser, words: Sequence[str]) -> int:
    """Exit code 0, or 1 with one line on stderr; leaves by SystemExit for wrong words. Raises `ConfigError`."""
    _options(parser)
    parser.usage = "octavo science OUT.jsonl (--source NAME ... | --records FILE --columns YAML) [option ...]"
    options = parser.parse_args(words)
    if bool(options.records) == bool(options.source):
        parser.error("name either --source NAME ... or --records FILE with --columns YAML")
    if bool(options.records) != bool(options.columns):
        parser.error("--records FILE and --columns YAML go together")
    if (options.rollouts is None) != (options.model is None):
        parser.error("--rollouts URL and --model M go together")
    if wrong := list(_wrong_values(options)):
        raise ConfigError(wrong)
    began = time.perf_counter()
    out = Path(options.out)
    try:
        _make_room(out)
        with (
            _rollouts(options, out) as rollouts,
            # Closed before the ledger is, so that requests under way end first.
            closing(rollouts.expand(_texts(options)) if rollouts else _texts(options)) as made,
        ):
            counts = write(out, made)
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if rollouts:
        what = ", ".join(f"{count:,} {what}" for what, count in sorted(rollouts.counts.items()))
        print(f"rollouts: {what or 'none'}; all but the expanded keep their short answer")
    forms = ", ".join(f"{count:,} {form}" for form, count in sorted(counts.items()))
    size, seconds = out.stat().st_size, time.perf_counter() - began
    print(f"{out}: {sum(counts.values()):,} texts ({forms}), {size / 1e6:.1f} MB in {seconds:.0f} s")
    print(f"next: octavo tokenize DIR {out} --origin origin --domain science --tokenizer FILE")
    return 0


def _wrong_values(options: argparse.Namespace) -> Iterator[str]:
    for name in options.source or ():
        if name not in TABLES:
            yield f"--source {name}: there is none of this name; use {one_of(TABLES)}"
    if options.tasks not in TASKS:
        yield f"--tasks {options.tasks}: use {one_of(TASKS)}"
    if not options.seed.isdecimal():
        yield f"--seed {options.seed}: use a whole number, 0 or more"
    for name, least in (("concurrency", 1), ("timeout", 1), ("retries", 0), ("max_tokens", 1)):
        if not least <= getattr(options, name) < float("inf"):
            yield f"--{name.replace('_', '-')} {getattr(options, name)}: use {least} or more"


def _make_room(out: Path) -> None:
    """Refuse a file that exists, before anything is made beside it, and make its directory."""
    if out.exists():
        raise DataError(f"{out} exists and is not overwritten: remove it or name another file")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{error.filename or out.parent}: {error.strerror or error}") from error


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", metavar="OUT.jsonl", help="the file to write; must not exist")
    parser.add_argument(
        "--source",
        action="append",
        metavar="NAME",
        help=f"a built-in source, {one_of(TABLES)}; may be repeated",
    )
    parser.add_argument("--records", metavar="FILE", help="your own records: .csv, .tsv or .jsonl")
    parser.add_argument("--columns", metavar="YAML", help="what the columns mean (see docs/science.md)")
    parser.add_argument("--seed", default=str(SEED), metavar="N", help=f"the seed of the choice of templates ({SEED})")
    parser.add_argument(
        "--tasks",
        default=str(TASKS_PER_RECORD),
        metavar="N",
        help=f"tasks for each record besides its narration, 0 to 4 ({TASKS_PER_RECORD})",
    )

    chains = parser.add_argument_group(
        "rollouts", "an OpenAI-compatible server writes reasoning before the answers of tasks; off by default"
    )
    chains.add_argument("--rollouts", metavar="URL", help="the server's API, such as http://localhost:8000/v1")
    chains.add_argument("--model", metavar="M", help="the name of the model on the server")
    chains.add_argument(
        "--api-key-env", metavar="VAR", help="the environment variable with the key, if the server needs one"
    )
    chains.add_argument("--ledger", metavar="FILE", help="answers so far, to resume from (OUT.jsonl.rollouts)")
    chains.add_argument("--concurrency", type=int, default=8, metavar="N", help="concurrent requests (8)")
    chains.add_argument("--timeout", type=float, default=120, metavar="S", help="seconds for one request (120)")
    chains.add_argument("--retries", type=int, default=5, metavar="N", help="tries after a failed request (5)")
    chains.add_argument("--max-tokens", type=int, default=1024, metavar="N", help="longest chain (1024)")


@contextmanager
def _rollouts(options: argparse.Namespace, out: Path) -> Iterator[Rollouts | None]:
    if options.rollouts is None:
        yield None
        return
    # Only here, as these import httpx.
    from trainer.corpora.science.rollouts.chat import ChatServer
    from trainer.corpora.science.rollouts.ledger import Ledger
    from trainer.corpora.science.rollouts.rollouts import Rollouts

    key = ""
    if options.api_key_env is not None:
        key = os.environ.get(options.api_key_env, "").strip()
        if not key:
            raise DataError(f"--api-key-env {options.api_key_env}: that variable is not set or empty")
    server = ChatServer(options.rollouts, options.model, api_key=key, timeout=options.timeout, retries=options.retries)
    path = Path(options.ledger) if options.ledger else out.with_name(out.name + ".rollouts")
    with Ledger(path) as ledger:
        print(f"rollouts: {len(ledger):,} answers in {path}", file=sys.stderr, flush=True)
        yield Rollouts(server, ledger, concurrency=options.concurrency, max_tokens=options.max_tokens)


def _texts(options: argparse.Namespace) -> Generator[Text, None, None]:
    """The texts of all sources that are asked for, with a line of progress now and then."""
    sources: list[tuple[str, Sequence[Table]]] = []
    if options.records:
        table = read_table(Path(options.records), Path(options.columns))
        sources.append((table.name, [table]))
    else:
        for name, times in Counter(options.source).items():
            sources.append((name, TABLES[name]()))
            if times > 1:
                print(f"--source {name} is named {times} times and read once", file=sys.stderr, flush=True)
    for name, tables in sources:
        records = sum(len(table.records) for table in tables)
        print(f"{name}: {records:,} records", file=sys.stderr, flush=True)
        told, done, last = time.perf_counter(), 0, None
        for text in texts(name, tables, seed=int(options.seed), tasks_per_record=int(options.tasks)):
            if (text.table, text.name) != last:
                last = (text.table, text.name)
                done += 1
            yield text
            if time.perf_counter() - told > BETWEEN:
                told = time.perf_counter()
                print(f"{name}: {done:,} of {records:,} records", file=sys.stderr, flush=True)
        if done < records:
            print(f"{name}: {records - done:,} records left out: others have their names", file=sys.stderr)


def write(out: Path, made: Iterable[Text]) -> Counter[str]:
    """Write texts as lines of JSON; how many of each form. Under another name until whole, which does not stay where
    they end in an error; a file that exists is not overwritten. Raises DataError."""
    partial, counts = out.with_name(out.name + FILE_SUFFIX), Counter[str]()
    try:
        with atomic_file(out, overwrite=False) as path, path.open("w", encoding="utf-8") as file:
            for text in made:
                counts[text.form] += 1
                file.write(json.dumps(_line(text), ensure_ascii=False) + "\n")
    except LockedError:
        raise DataError(f"{partial} is being written by another process") from None
    except TargetExistsError:
        raise DataError(f"{out} exists by now and is not overwritten; the texts are in {partial}") from None
    except OSError as error:
        raise DataError(f"{error.filename or out}: {error.strerror or error}") from error
    return counts


def _line(text: Text) -> dict[str, str]:
    line = {"text": text.text, "origin": text.origin, "form": text.form, "name": text.name}
    return line | ({"model": text.model} if text.model else {})
