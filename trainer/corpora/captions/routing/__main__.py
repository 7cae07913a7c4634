"""`python -m trainer.corpora.captions.routing`: make the model of subjects, on the list of packages here or on another.

download WHEELS              the wheels of the list, by pip; nothing is installed
train WHEELS MODEL           read them, train, calibrate, measure on the held-out packages, write MODEL
measure MODEL [WHEELS]       print the figures of a model, on the held-out packages or as it was written
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

from trainer.config.command_line import Parser
from trainer.config.errors import CommandError, report
from trainer.config.say import counted
from trainer.corpora.captions.routing.corpus import BUILT_IN, download, read_packages, read_texts
from trainer.corpora.captions.routing.fit import Labelled, fit
from trainer.corpora.captions.routing.measure import measure, table
from trainer.corpora.captions.routing.model import TextModel
from trainer.data.errors import DataError
from trainer.storage.progress import Progress

DOCUMENTS = {"held_out_1": 1, "held_out_8": 8}  # texts that are taken for the crops of one document
ACTIONS = ("download", "train", "measure")


def main(words: Sequence[str] | None = None) -> int:
    parser = Parser("python -m trainer.corpora.captions.routing", "Make or measure the model of subjects.")
    parser.add_argument("action", choices=ACTIONS)
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH")
    parser.add_argument("--packages", type=Path, default=BUILT_IN, metavar="FILE", help="list of packages, as YAML")
    try:
        _act(parser.read(sys.argv[1:] if words is None else words))
    except (CommandError, DataError, OSError) as error:
        return report(error, started=True)
    return 0


def _act(options: argparse.Namespace) -> None:
    wanted = {"download": (1, 1), "train": (2, 2), "measure": (1, 2)}[options.action]
    paths: list[Path] = options.paths
    if not wanted[0] <= len(paths) <= wanted[1]:
        form = {"download": "WHEELS", "train": "WHEELS MODEL", "measure": "MODEL [WHEELS]"}[options.action]
        raise CommandError(f"{options.action}: give {form}", where=options.action, allowed=form)
    packages = read_packages(options.packages)
    if options.action == "download":
        download(packages, paths[0])
        return
    if options.action == "train":
        wheels, path = paths
        trained, held_out = (read_texts(packages, wheels, part, _print) for part in ("train", "held_out"))
        model = fit(trained)
        facts = {
            "packages": len({text.package for text in trained}),
            "texts": len(trained),
            "corpus": corpus_hash([*trained, *held_out]),
        }
        model = replace(model, facts={**facts, **_figures(model, held_out)})
        model.save(path)
    else:
        model = TextModel.load(paths[0])
        if len(paths) == 2:
            held_out = read_texts(packages, paths[1], "held_out", _print)
            model = replace(model, facts={**model.facts, **_figures(model, held_out)})
    for name, size in DOCUMENTS.items():
        print(f"\n{counted(size, 'text')} taken as the crops of a document\n\n{table(model.facts[name])}")


def _figures(model: TextModel, held_out: Sequence[Labelled]) -> dict[str, Any]:
    return {name: measure(model, held_out, size) for name, size in DOCUMENTS.items()}


def corpus_hash(texts: Sequence[Labelled]) -> str:
    """SHA-256 of texts with their labels, in order."""
    return hashlib.sha256("".join(json.dumps(astuple(text)) for text in texts).encode()).hexdigest()


def _print(state: Progress) -> None:
    print(state, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
