"""The toys' questions, each with a tokenizer of its characters.

<cache_dir>/toy-questions-<hash>/
    reverse.jsonl        {"prompt": "407=", "answer": "704"}, a thousand of them
    tokenizer.json
<cache_dir>/toy-questions-<hash>/
    products.jsonl       {"prompt": "37*4=", "answer": "148", "call": "[37*4]"}, all 720 of two digits and one
    calls.jsonl          {"prompt": "37*4=", "answer": "[37*4]148|148"}, a quarter of them, for fine-tuning
    tokenizer.json
<cache_dir>/toy-questions-<hash>/
    science.jsonl        questions about substances, from the records of `octavo science --source materials`
    tokenizer.json       of pieces of words, trained on them
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from parallel.errors import one_of
from trainer.corpora.build import built_once
from trainer.corpora.packages import installed_version
from trainer.corpora.science.questions import question
from trainer.corpora.science.tables.builtin import SEED, TABLES
from trainer.corpora.science.texts import texts
from trainer.data.errors import DataError
from trainer.data.shards.files import TOKENIZER
from trainer.data.shards.tokenizer import END_OF_DOCUMENT, train_bpe
from trainer.storage.progress import OnProgress, print_line

if TYPE_CHECKING:
    from trainer.config.keys import DataConfig

FORMAT = 3  # raise it with any change of the output
REVERSE, PRODUCTS, CALLS, DIGITS = "reverse.jsonl", "products.jsonl", "calls.jsonl", 3
UNKNOWN = "?"  # one character, as all others: a reward that counts places sees one wrong place
# Of the files; the last three are for calls.
CHARACTERS = {REVERSE: "0123456789=", PRODUCTS: "0123456789*=[]|", CALLS: "0123456789*=[]|"}
MOST_TASKS = 4  # of a record
SCIENCE, ASKED, PIECES, LONGEST = "science.jsonl", 240, 512, 150  # questions, tokens, characters of a prompt


def open_toy_questions(data: DataConfig, progress: OnProgress = print_line) -> DataConfig:
    """`data` with the toy's files and tokenizer, which are made first where they are missing. Safe to call from several
    processes. Raises DataError, also for a source that the toy does not have."""
    for name, source in data.questions.items():
        if source.path not in (known := (*CHARACTERS, SCIENCE)) or source.heldout:
            text = f"data.questions.{name}: {source.path} is not a source of data.build=toy; use {one_of(known)}"
            raise DataError(text, where=f"data.questions.{name}.path", value=source.path, allowed=known)
    files = {source.path for source in data.questions.values()}
    if len(files) > 1:
        text, allowed = f"data.questions: {one_of(sorted(files))} have tokenizers of their own; use one of them", 1
        raise DataError(text, where="data.questions", value=tuple(sorted(files)), allowed=allowed)
    file = min(files, default=REVERSE)
    chosen = [ASKED, PIECES, LONGEST, installed_version("chemicals")] if file == SCIENCE else [DIGITS, CHARACTERS[file]]
    made_from = json.dumps([FORMAT, file, *chosen, tokenizers.__version__])
    build = _build_science if file == SCIENCE else partial(_build, file)
    directory = built_once(data.cache_dir, "questions", made_from, build, progress)
    return replace(data, root=str(directory), tokenizer=str(directory))


def _build(file: str, directory: Path) -> None:
    made = {REVERSE: _reversals} if file == REVERSE else {PRODUCTS: _products, CALLS: _calls}
    for name, rows in made.items():
        (directory / name).write_text("".join(json.dumps(row) + "\n" for row in rows()), encoding="utf-8")
    vocabulary = {token: number for number, token in enumerate([END_OF_DOCUMENT, UNKNOWN, *CHARACTERS[file]])}
    library = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    library.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    library.decoder = decoders.Fuse()
    library.add_special_tokens([END_OF_DOCUMENT, UNKNOWN])
    library.save(str(directory / TOKENIZER))


def _build_science(directory: Path) -> None:
    """Short questions of all kinds that these records have: quantities, choices, names and orders of names."""
    made = texts("materials", TABLES["materials"](), seed=SEED, tasks_per_record=MOST_TASKS)
    found = (question(text, messages=False) for text in made)
    short = (row for row in found if row is not None and len(row["prompt"]) <= LONGEST)
    rows = [*islice(short, ASKED)]
    (directory / SCIENCE).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    answers = (row["answer"] if isinstance(row["answer"], str) else row["answer"][0] for row in rows)
    train_bpe([row["prompt"] + answer for row, answer in zip(rows, answers, strict=True)], PIECES).save(
        directory / TOKENIZER
    )


def _reversals() -> Iterator[dict[str, str]]:
    for number in range(10**DIGITS):
        text = f"{number:0{DIGITS}}"
        yield {"prompt": f"{text}=", "answer": text[::-1]}


def _products() -> Iterator[dict[str, str]]:
    """call: of a calculator, as `trainer.rl.environments.dialogue` writes it."""
    for one in range(10, 100):
        for other in range(2, 10):
            yield {"prompt": f"{one}*{other}=", "answer": str(one * other), "call": f"[{one}*{other}]"}


def _calls() -> Iterator[dict[str, str]]:
    """A quarter of the products, as whole dialogues: the call, what the calculator writes and the answer."""
    for row in _products():
        one, other = row["prompt"].rstrip("=").split("*")
        if (int(one) + int(other)) % 4 == 0:  # all digits at all places
            yield {"prompt": row["prompt"], "answer": f"{row['call']}{row['answer']}|{row['answer']}"}
