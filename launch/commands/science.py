"""`octavo science`: write records as texts, in a JSONL file for `octavo tokenize`."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.paths import check_all, must_exist, must_not_exist, only_with
from launch.progress import ProgressDisplay
from launch.recordings import CARD, HELD_OUT, LEFT_OUT, beside, lines_of, report
from launch.science_questions import HELD_OUT_QUESTIONS, PACKAGES, graded, next_command
from parallel.errors import Fault, one_of
from trainer.config.command_line import Parser, above_zero, choice, whole_number
from trainer.config.errors import CommandError, print_warning
from trainer.corpora.science.questions import held_out
from trainer.corpora.science.recordings.sources import RECORDED
from trainer.corpora.science.records import Table
from trainer.corpora.science.tables.builtin import SEED, TABLES, TASKS_PER_RECORD
from trainer.corpora.science.tables.user_files import read_table
from trainer.corpora.science.texts import Text, texts
from trainer.data.errors import DataError
from trainer.storage.atomic import FILE_SUFFIX, TargetExistsError, atomic_file
from trainer.storage.lock import LockedError
from trainer.storage.progress import OnProgress, Progress

if TYPE_CHECKING:
    from trainer.corpora.science.rollouts.rollouts import Rollouts

MAX_TASKS = 4  # the forms of task that a record can take, and those that an excerpt of a recording has
FORMS_PER_EXCERPT = 1
OF_ROLLOUTS = {"concurrency": 8, "timeout": 120.0, "retries": 5, "max_tokens": 1024}  # options with their defaults


def prepare(parser: Parser, words: Sequence[str]) -> Callable[[], int]:
    """Raises `CommandError`, also for a file that exists."""
    _options(parser)
    parser.usage = (
        "octavo science OUT.jsonl (--source NAME ... | --source NAME --recordings DIR | --records FILE --columns YAML) "
        "[option ...]"
    )
    options = parser.read(words)
    if bool(options.records) == bool(options.source):
        remedy = "give either --source NAME ... or --records FILE with --columns YAML"
        raise CommandError(f"octavo science: {remedy}", where="--source", value=options.source, allowed=remedy)
    for one, other in (("records", "columns"), ("rollouts", "model")):
        if bool(getattr(options, one)) != bool(getattr(options, other)):
            missing, given = (other, one) if getattr(options, one) else (one, other)
            text = f"--{given} needs --{missing}; give both, or neither"
            raise CommandError(text, where=f"--{missing}", allowed="both, or neither")
    _check_rollouts(options)
    _check_recordings(options)
    _check_questions(options)
    files = [path for path in (options.records, options.columns) if path]
    others = (CARD, HELD_OUT, LEFT_OUT) if options.recordings else ()
    check_all(
        partial(must_not_exist, options.out),
        *(partial(must_exist, path, "give an existing file") for path in files),
        *(partial(must_not_exist, str(beside(Path(options.out), what))) for what in others),
        *([partial(must_not_exist, str(beside(Path(options.out), HELD_OUT_QUESTIONS)))] if options.questions else []),
        *([partial(must_exist, options.recordings, "give an existing directory")] if options.recordings else []),
    )
    if options.questions:
        return partial(_work_of_questions, options)
    return partial(_work_of_recordings if options.recordings else _work, options)


def _check_rollouts(options: argparse.Namespace) -> None:
    """Fill in defaults. Raises `CommandError` for options of rollouts without them."""
    if options.rollouts is None:
        given = {name: getattr(options, name) for name in ("api_key_env", "ledger", *OF_ROLLOUTS)}
        faults = [
            only_with(f"--{name.replace('_', '-')}", value, "--rollouts")
            for name, value in given.items()
            if value is not None
        ]
        if faults:
            raise CommandError(faults)
    for name, default in OF_ROLLOUTS.items():
        if getattr(options, name) is None:
            setattr(options, name, default)


def _check_recordings(options: argparse.Namespace) -> None:
    """Raises `CommandError` for options of recordings without them, and for others beside them."""
    recorded = [name for name in options.source or () if name in RECORDED]
    faults = []
    if options.recordings is None:
        of_recordings = {"--seconds": options.seconds, "--bad-media": options.bad_media}
        faults += [only_with(key, value, "--recordings") for key, value in of_recordings.items() if value is not None]
        if recorded:
            remedy = "give the directory of the data set with --recordings DIR"
            text = f"--source {recorded[0]} is made from recordings; {remedy}"
            faults.append(Fault(text, "--recordings", None, remedy))
    elif not options.recordings:  # of a variable that is not set; Path("") is the current directory
        remedy = "give the directory of a data set"
        faults.append(Fault(f"--recordings is empty; {remedy}", "--recordings", "", remedy))
    elif len(recorded) != 1 or len(options.source) != 1:
        text = f"--recordings is used with one --source of {one_of(RECORDED)}; OUT.jsonl has the documents of one"
        faults.append(Fault(text, "--source", options.source, tuple(RECORDED)))
    else:
        if options.rollouts is not None:
            text = "--rollouts explains answers from tables, and not from recordings; drop it"
            faults.append(Fault(text, "--rollouts", options.rollouts, "without it"))
        if options.tasks == 0:
            text = "--tasks=0 leaves no document of an excerpt; use 1 to 4"
            faults.append(Fault(text, "--tasks", 0, (1, 2, 3, 4)))
    if faults:
        raise CommandError(faults)


def _check_questions(options: argparse.Namespace) -> None:
    """Raise CommandError for options that --questions cannot be used with."""
    if options.questions is None:
        return
    for key, value in (("--recordings", options.recordings), ("--rollouts", options.rollouts)):
        if value is not None:
            text = f"--questions asks about tables, and {key} is for texts of a corpus; drop one of them"
            raise CommandError(text, where="--questions", value=options.questions, allowed=f"without {key}")
    if options.tasks == 0:
        text = "--tasks=0 leaves no question; use 1 to 4"
        raise CommandError(text, where="--tasks", value=0, allowed=(1, 2, 3, 4))
    remedy = "pip install -e '.[rewards]'"
    faults = [
        Fault(f"--questions needs {name}, which is not installed; {remedy}", "--questions", name, remedy)
        for name in PACKAGES
        if find_spec(name) is None
    ]
    if faults:
        raise CommandError(faults)


def _work_of_questions(options: argparse.Namespace) -> int:
    out = _made_parent(options.out)
    with ProgressDisplay() as progress, closing(_texts(options, progress)) as made:
        rows, left_out = graded(made, messages=options.questions == "messages")
    for kind, count in sorted(left_out.items()):
        print_warning(f"{count:,} question(s) of {kind} left out: their reward does not accept the record's own answer")
    held = held_out(row["origin"] for row in rows)
    for path, of_heldout in ((out, False), (beside(out, HELD_OUT_QUESTIONS), True)):
        counts = write(path, (row for row in rows if (row["origin"] in held) is of_heldout))
        forms = ", ".join(f"{count:,} {form}" for form, count in sorted(counts.items()))
        print(f"{path}: {sum(counts.values()):,} questions ({forms})")
    print(f"next: {next_command(out, beside(out, HELD_OUT_QUESTIONS))}")
    return 0


def _work(options: argparse.Namespace) -> int:
    started = time.perf_counter()
    out = _made_parent(options.out)
    with (
        _rollouts(options, out) as rollouts,
        ProgressDisplay() as progress,
        # Closed before the ledger is, so that requests under way end first.
        closing(_texts(options, progress)) as short,
        closing(rollouts.expand(short) if rollouts else short) as made,
    ):
        counts = write(out, map(_line, made))
    if rollouts:
        what = ", ".join(f"{count:,} {what}" for what, count in sorted(rollouts.counts.items()))
        print(f"rollouts: {what or 'none'}; all others keep their short answer")
    forms = ", ".join(f"{count:,} {form}" for form, count in sorted(counts.items()))
    size, seconds = out.stat().st_size, time.perf_counter() - started
    print(f"{out}: {sum(counts.values()):,} texts ({forms}), {size / 1e6:.1f} MB in {seconds:.0f} s")
    print(f"next: octavo tokenize DIR {out} --origin origin --domain science --tokenizer FILE")
    return 0


def _made_parent(name: str) -> Path:
    """The path of the output, in a directory that exists. Raises DataError."""
    out = Path(name)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"{error.filename or out.parent}: {error.strerror or error}",
            where=str(out.parent),
            value=error.strerror,
            allowed="a directory that can be made",
        ) from error
    return out


def _work_of_recordings(options: argparse.Namespace) -> int:
    out = _made_parent(options.out)
    forms = FORMS_PER_EXCERPT if options.tasks is None else options.tasks
    with ProgressDisplay() as progress:
        made, lines = lines_of(options, out, forms, options.seed, progress)
        write(out, lines)
    report(made, out)
    return 0


def _options(parser: Parser) -> None:
    add = parser.add_argument
    add("out", metavar="OUT.jsonl", help="output file; must not exist")
    add(
        "--source",
        action="append",
        **choice(*TABLES, *RECORDED, metavar="NAME"),
        help=f"a built-in source: {one_of(TABLES)}; may be repeated; or, with --recordings, {one_of(RECORDED)}",
    )
    add("--records", metavar="FILE", help="a file with your own records: .csv, .tsv or .jsonl")
    add("--columns", metavar="YAML", help="YAML file describing the columns (see docs/science.md)")
    add(
        "--seed",
        type=whole_number(0),
        default=SEED,
        metavar="N",
        help=f"seed for choosing templates (default: {SEED})",
    )
    add(
        "--tasks",
        type=whole_number(0, MAX_TASKS),
        metavar="N",
        help=f"tasks for each record in addition to its narration, 0 to {MAX_TASKS} (default: {TASKS_PER_RECORD}); of "
        f"recordings, documents for each excerpt, 1 to {MAX_TASKS} (default: {FORMS_PER_EXCERPT})",
    )

    add(
        "--questions",
        **choice("text", "messages"),
        help="write questions with answers to verify, for recipe=rl_science, in place of texts, and those of held-out "
        "records into OUT.heldout.jsonl; prompts are texts, or messages for a chat template",
    )

    add = parser.add_argument_group(
        "recordings", "documents with signals from a published data set (see docs/science.md)"
    ).add_argument
    add("--recordings", metavar="DIR", help="directory of the data set of --source, as it was published")
    add(
        "--seconds",
        type=above_zero("30"),
        metavar="S",
        help="cut longer recordings into excerpts of this length at most (default: the source's)",
    )
    add(
        "--bad-media",
        **choice("fail", "skip"),
        help="fail at the first recording that is missing or cannot be read, or leave such recordings out and list "
        "them in OUT.left_out.jsonl (default: fail)",
    )
    _rollout_options(parser)


def _rollout_options(parser: Parser) -> None:
    add = parser.add_argument_group(
        "rollouts", "generate reasoning for each task's answer with an OpenAI-compatible server; off by default"
    ).add_argument
    add("--rollouts", metavar="URL", help="base URL of the server's API, such as http://localhost:8000/v1")
    add("--model", metavar="M", help="name of the model on the server")
    add("--api-key-env", metavar="VAR", help="environment variable that holds the API key, if the server needs one")
    add(
        "--ledger",
        metavar="FILE",
        help="file that stores the answers so far, for resuming (default: OUT.jsonl.rollouts)",
    )
    add(
        "--concurrency",
        type=whole_number(1),
        metavar="N",
        help="number of concurrent requests (default: 8)",
    )
    add(
        "--timeout",
        type=above_zero("120"),
        metavar="S",
        help="time limit for each request, in seconds (default: 120)",
    )
    add(
        "--retries",
        type=whole_number(0),
        metavar="N",
        help="number of retries after a failed request (default: 5)",
    )
    add(
        "--max-tokens",
        type=whole_number(1),
        metavar="N",
        help="maximum tokens per reasoning chain (default: 1024)",
    )


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
            text = f"--api-key-env {options.api_key_env}: the variable is not set or empty"
            raise CommandError(text, where="--api-key-env", value=options.api_key_env, allowed="a variable with a key")
    server = ChatServer(options.rollouts, options.model, api_key=key, timeout=options.timeout, retries=options.retries)
    path = Path(options.ledger) if options.ledger else out.with_name(out.name + ".rollouts")
    with Ledger(path) as ledger:
        print(f"rollouts: {len(ledger):,} answers in {path}", file=sys.stderr, flush=True)
        yield Rollouts(server, ledger, concurrency=options.concurrency, max_tokens=options.max_tokens)


def _texts(options: argparse.Namespace, progress: OnProgress) -> Generator[Text, None, None]:
    """The texts of all chosen sources. `progress` receives a report for each record."""
    sources: list[tuple[str, Sequence[Table]]] = []
    if options.records:
        table = read_table(Path(options.records), Path(options.columns))
        sources.append((table.name, [table]))
    else:
        for name, times in Counter(options.source).items():
            sources.append((name, TABLES[name]()))
            if times > 1:
                print_warning(f"--source {name} is given {times} times and read once")
    for name, tables in sources:
        records = sum(len(table.records) for table in tables)
        for table in tables:
            for reason, count in sorted(table.left_out.items()):
                print_warning(f"{name}: {table.name}: {count:,} left out: {reason}")
        print(f"{name}: {records:,} records", file=sys.stderr, flush=True)
        done, last = 0, None
        tasks = TASKS_PER_RECORD if options.tasks is None else options.tasks
        for text in texts(name, tables, seed=options.seed, tasks_per_record=tasks):
            if (text.table, text.name) != last:
                last = (text.table, text.name)
                done += 1
                progress(Progress(name, done, records, "records"))
            yield text
        if done < records:
            print_warning(f"{name}: {records - done:,} records left out: their names are ambiguous or damaged")


def write(out: Path, lines: Iterable[dict[str, Any]]) -> Counter[str]:
    """Write lines of JSON, and count them by form.

    The file has another name until it is complete, and an error removes it; a file that exists is not overwritten.
    Raises DataError.
    """
    unfinished, counts = out.with_name(out.name + FILE_SUFFIX), Counter[str]()
    try:
        with atomic_file(out, overwrite=False) as path, path.open("w", encoding="utf-8") as file:
            for line in lines:
                counts[line["form"]] += 1
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
    except LockedError:
        raise DataError(
            f"{unfinished} is being written by another process", where=str(unfinished), allowed="another OUT.jsonl"
        ) from None
    except TargetExistsError:
        message = f"{out} was created in the meantime and will not be overwritten; the texts are in {unfinished}"
        raise DataError(message, where=str(out), allowed=f"rename {unfinished}") from None
    except OSError as error:
        raise DataError(
            f"{error.filename or out}: {error.strerror or error}",
            where=str(out),
            value=error.strerror,
            allowed="a file that can be written",
        ) from error
    return counts


def _line(text: Text) -> dict[str, str]:
    line = {"text": text.text, "origin": text.origin, "form": text.form, "name": text.name}
    return line | ({"model": text.model} if text.model else {})
