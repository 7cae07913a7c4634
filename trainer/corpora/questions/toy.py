"""The toy's questions: reverse three digits, with a tokenizer of thirteen tokens.

<cache_dir>/toy-questions-<hash>/
    reverse.jsonl        {"prompt": "407=", "answer": "704"}, a thousand of them
    tokenizer.json
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from trainer.corpora.build import only_one
from trainer.data.errors import DataError
from trainer.data.shards.files import TOKENIZER
from trainer.data.shards.tokenizer import END_OF_DOCUMENT
from trainer.storage.atomic import atomic_directory, remove_unfinished
from trainer.storage.progress import OnProgress, Progress, print_line

if TYPE_CHECKING:
    from trainer.config.keys import DataConfig

FORMAT = 1  # raise it with any change of the output
REVERSE, DIGITS = "reverse.jsonl", 3
UNKNOWN, CHARACTERS = "<|unknown|>", "0123456789="


def open_toy_questions(data: DataConfig, progress: OnProgress = print_line) -> DataConfig:
    """`data` with the toy's files and tokenizer, which are made first where they are missing. Safe to call from several
    processes. Raises DataError, also for a source that the toy does not have."""
    for name, source in data.questions.items():
        if source.path != REVERSE or source.heldout:
            text = f"data.questions.{name}: {source.path} is not a source of data.build=toy; use {REVERSE}"
            raise DataError(text, where=f"data.questions.{name}.path", value=source.path, allowed=(REVERSE,))
    made_from = json.dumps([FORMAT, DIGITS, CHARACTERS, tokenizers.__version__])
    directory = Path(data.cache_dir) / f"toy-questions-{hashlib.sha256(made_from.encode()).hexdigest()[:16]}"
    try:
        if not directory.exists():
            with only_one(directory.parent, directory.name, progress):
                if not directory.exists():
                    progress(Progress("questions", detail=f"building {directory} (once)"))
                    remove_unfinished(directory)
                    with atomic_directory(directory) as partial:
                        _build(partial)
    except OSError as error:
        remedy = "give a writable directory"
        text = f"data.cache_dir={data.cache_dir}: {error.strerror or error}; {remedy}"
        raise DataError(text, where="data.cache_dir", value=data.cache_dir, allowed=remedy) from error
    return replace(data, root=str(directory), tokenizer=str(directory))


def _build(directory: Path) -> None:
    texts = [f"{number:0{DIGITS}}" for number in range(10**DIGITS)]
    lines = [json.dumps({"prompt": f"{text}=", "answer": text[::-1]}) for text in texts]
    (directory / REVERSE).write_text("\n".join(lines) + "\n", encoding="utf-8")
    vocabulary = {token: number for number, token in enumerate([END_OF_DOCUMENT, UNKNOWN, *CHARACTERS])}
    library = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    library.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    library.decoder = decoders.Fuse()
    library.add_special_tokens([END_OF_DOCUMENT, UNKNOWN])
    library.save(str(directory / TOKENIZER))
