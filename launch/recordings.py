"""The output of `octavo science --recordings`: documents, their card, the origins to hold out, what is left out."""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.config.errors import print_warning
from trainer.config.say import counted
from trainer.storage.atomic import atomic_file
from trainer.storage.progress import OnProgress, Progress

if TYPE_CHECKING:
    from trainer.corpora.science.recordings.documents import Made

CARD, HELD_OUT, LEFT_OUT = ".card.md", ".heldout.txt", ".left_out.jsonl"  # after the name of OUT.jsonl without suffix


def beside(out: Path, what: str) -> Path:
    """The path of a file that belongs to `out`."""
    return out.with_name(f"{out.name.removesuffix('.jsonl')}{what}")


def lines_of(
    options: argparse.Namespace, out: Path, forms: int, seed: int, progress: OnProgress
) -> tuple[Made, Iterator[dict[str, Any]]]:
    """The counts, and the lines that fill them; after the last line the files beside `out` are written.

    forms: documents for each excerpt. Raises DataError.
    """
    from trainer.corpora.science.recordings.card import card
    from trainer.corpora.science.recordings.documents import Made, documents
    from trainer.corpora.science.recordings.sources import RECORDED

    directory = Path(options.recordings)
    source = RECORDED[options.source[0]]
    seconds = options.seconds or source.seconds
    survey = source.survey(directory)
    made, total = Made(), len(survey.items)

    def lines() -> Iterator[dict[str, Any]]:
        yield from documents(
            source, survey, made, seed=seed, tasks=forms, seconds=seconds, skip=options.bad_media == "skip",
            root=None if directory.is_absolute() else out.parent,
            done=lambda count: progress(Progress(source.name, count, total, "records")),
        )  # fmt: skip
        words = [
            "--source",
            source.name,
            "--recordings",
            options.recordings,
            "--tasks",
            str(forms),
            "--seed",
            str(seed),
        ]
        words += ["--seconds", f"{seconds:g}"] if seconds else []
        texts = {
            CARD: card(source, survey, made, seconds, shlex.join(words)),
            HELD_OUT: "".join(f"{origin}\n" for origin in made.held_out),
            LEFT_OUT: "".join(f"{json.dumps({'where': at, 'problem': what})}\n" for at, what in made.bad),
        }
        for what, text in texts.items():
            if text:
                with atomic_file(beside(out, what)) as path:
                    path.write_text(text, encoding="utf-8")

    return made, lines()


def report(made: Made, out: Path) -> None:
    """Print what was made and left out, and the command that comes next."""
    for reason, count in made.left_out.most_common():
        print_warning(f"{count:,} left out: {reason}")
    if made.bad:
        print_warning(f"{counted(len(made.bad), 'recording')} left out; {beside(out, LEFT_OUT)} lists them")
    forms = ", ".join(f"{count:,} {form}" for form, count in sorted(made.forms.items()))
    print(f"{out}: {counted(made.documents, 'document')} ({forms}) of {counted(made.recordings, 'recording')}")
    counts = {split: len(subjects) for split, subjects in made.subjects.items()}
    total = sum(counts.values())
    print(f"{counts['heldout']:,} of {total:,} subjects are held out; {beside(out, CARD)} describes the documents")
    held_out = f"--heldout-origins {beside(out, HELD_OUT)}" if made.held_out else "--heldout 0"
    print(
        f"next: octavo tokenize DIR {out} --field content --origin origin {held_out} --domain science "
        "--tokenizer FILE --signal long=adapt"
    )
