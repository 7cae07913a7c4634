"""The toy corpora as sources of a mixture: built once from installed packages, as `octavo tokenize` builds any source.

They are in one directory under `data.cache_dir`, named by a hash of their ingredients and renamed into place when
complete. They are verified in full whenever they are opened. Only one process builds at a time; the others wait for it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tokenizers

from parallel.errors import one_of
from trainer.corpora.build import (
    BPE_SAMPLE,
    CHARS_PER_TOKEN,
    MIN_ORIGINS,
    VOCAB_SIZE,
    ingredients,
    only_one,
    take,
)
from trainer.corpora.media.builtin import MEDIA
from trainer.corpora.media.shapes import SHAPES_ZH
from trainer.corpora.packages import SOURCES, Document, Source
from trainer.corpora.science.tables.builtin import SCIENCE
from trainer.corpora.tokenize.media.documents import PartsDocument
from trainer.corpora.tokenize.media.options import media_rules
from trainer.corpora.tokenize.tokenize import tokenize_source
from trainer.data.errors import DataError
from trainer.data.hashing import text_key
from trainer.data.media.rules import MediaRules
from trainer.data.shards import files as shard_files
from trainer.data.shards.tokenizer import Tokenizer, train_bpe
from trainer.data.shards.windows import Shards
from trainer.storage.atomic import atomic_directory, remove_unfinished
from trainer.storage.progress import OnProgress, Progress, print_line

if TYPE_CHECKING:
    from trainer.config.keys import DataConfig
    from trainer.config.mixture import SourceConfig

FORMAT = 7  # increase it with any change of the output for the same inputs
RATIO_SAMPLE = 200_000  # characters of a source on which its characters per token are measured
ALL: tuple[Source[Any], ...] = (*SOURCES, *SCIENCE, *MEDIA, SHAPES_ZH)
KNOWN: Mapping[str, Source[Any]] = {source.name: source for source in ALL}
# The last tokens of a corpus with images or signals. The placeholders of model=toy_multimodal are the last two.
MARKS = ("<img>", "</img>", "<ts>", "</ts>", "<IMG_CONTEXT>", "<TS_CONTEXT>")
IMAGE = {"min_pixels": "1024"}  # options of the rule: pictures keep their small size
AnyDocument = Document | PartsDocument


def open_toy_mixture(data: DataConfig, progress: OnProgress = print_line) -> dict[str, Path]:
    """Directory of each source of a mixture with `data.build=toy`, built first if it is missing or damaged.

    A source's `path` names one of `KNOWN`. Safe to call from any number of processes at once. Raises DataError.
    """
    made_from = {name: _known(name, source) for name, source in data.sources.items()}
    recipe = {
        **ingredients(data.tokens_per_source, data.holdout_fraction, list(made_from.values())),
        "format": FORMAT,
        "mixture": {name: [s.path, s.domain, s.prefix] for name, s in data.sources.items()},
        "prefixes": data.prefixes,
    }
    cache_dir = Path(data.cache_dir)
    directory = cache_dir / f"toy-mixture-{hashlib.sha256(shard_files.canonical(recipe)).hexdigest()[:16]}"
    directories = {name: directory / name for name in data.sources}
    try:
        if not _damage(directories):  # the usual case needs no lock: what has the final name is complete
            return directories
        with only_one(cache_dir, directory.name, progress):
            if directory.exists() and (damage := _damage(directories)):
                progress(Progress("corpora", detail=f"{damage}; building {directory} again"))
                shutil.rmtree(directory)
            if not directory.exists():
                _build(directory, data, made_from, progress)
    except OSError as error:
        remedy = "give a writable directory with 200 MB free"
        raise DataError(
            f"data.cache_dir={cache_dir}: {error.strerror or error} ({error.filename or directory}); {remedy}",
            where="data.cache_dir",
            value=str(cache_dir),
            allowed=remedy,
        ) from error
    return directories


def _known(name: str, source: SourceConfig) -> Source[Any]:
    if source.path not in KNOWN:
        raise DataError(
            f"data.sources.{name}.path={source.path} is not a source of data.build=toy; use {one_of(KNOWN)}",
            where=f"data.sources.{name}.path",
            value=source.path,
            allowed=tuple(KNOWN),
        )
    return KNOWN[source.path]


def _damage(directories: Mapping[str, Path]) -> str:
    """The first missing or damaged file, as a sentence; "" if all are intact."""
    try:
        for directory in directories.values():
            for split in ("train", "heldout"):
                Shards(directory, split).verify("full")
    except DataError as error:
        return str(error)
    return ""


def _build(directory: Path, data: DataConfig, made_from: Mapping[str, Source[Any]], progress: OnProgress) -> None:
    progress(Progress("corpora", detail=f"building {directory} (once; under a minute)"))
    remove_unfinished(directory)
    with atomic_directory(directory) as partial:
        _write(partial, data, made_from, progress)


def _write(partial: Path, data: DataConfig, made_from: Mapping[str, Source[Any]], progress: OnProgress) -> None:
    documents = {name: _read(source, data.tokens_per_source * CHARS_PER_TOKEN) for name, source in made_from.items()}
    for name, some in documents.items():
        size = sum(len(_text(document)) for document in some)
        read = f"{name}: {size / 1e6:.1f} MB of text: {made_from[name].licence}"
        progress(Progress("corpora", detail=read))
    progress(Progress("corpora", detail=f"training a byte-level BPE of {VOCAB_SIZE} tokens"))
    texts = {name: [_text(document) for document in some] for name, some in documents.items()}
    marks = MARKS if any(source in MEDIA for source in made_from.values()) else ()
    sample = (text for some in texts.values() for text in take(some, BPE_SAMPLE))
    tokenizer = _with_marks(train_bpe(sample, VOCAB_SIZE - len(marks)), marks)
    path = partial / shard_files.TOKENIZER
    tokenizer.save(path)
    for name, some in documents.items():
        source = data.sources[name]
        manifest: dict[str, Any] = tokenize_source(
            _capped(some, tokenizer, data.tokens_per_source),
            path,
            partial / name,
            name=name,
            domain=source.domain,
            group=source.prefix or None,
            prefixes=data.prefixes,
            heldout_fraction=data.holdout_fraction,
            workers=0,
            media=_rules(source.modality, tokenizer),
        )
        heldout = sum(shard["tokens"] for shard in manifest["heldout"])
        made = f"{manifest['tokens']:,} tokens in {manifest['documents']:,} documents to train on"
        progress(Progress("corpora", detail=f"{name}: {made}, {heldout:,} held out"))


def _with_marks(tokenizer: Tokenizer, marks: Sequence[str]) -> Tokenizer:
    """The tokenizer with these special tokens at its end."""
    bpe = tokenizers.Tokenizer.from_str(json.dumps(tokenizer.state))
    bpe.add_special_tokens([*marks])
    return Tokenizer(bpe)


def _rules(modality: str, tokenizer: Tokenizer) -> MediaRules | None:
    """The rule of a source of the modality; None for text."""
    return media_rules(
        tokenizer,
        image=IMAGE if modality == "image" else None,
        signal={} if modality == "time_series" else None,
    )


def _text(document: AnyDocument) -> str:
    """The text of a document without its images and signals."""
    if isinstance(document, Document):
        return document.text
    return "".join(part for part in document.parts if isinstance(part, str))


def _read(source: Source[Any], max_characters: int) -> list[AnyDocument]:
    """The documents of a source, each text once, until they have `max_characters`. A text with images or signals may
    come several times."""
    documents: dict[str, AnyDocument] = {}
    origins: set[str] = set()
    characters = 0
    for document in source.read():
        text = _text(document)
        key = text if isinstance(document, Document) else f"{text}{len(documents)}"
        if key not in documents:
            documents[key] = document
            origins.add(document.origin)
            characters += len(text)
        if characters >= max_characters and len(origins) >= MIN_ORIGINS:
            break
    if not documents:
        packages = " ".join(source.packages)
        remedy = f"reinstall {packages}" if packages else "use an interpreter with its standard library"
        raise DataError(
            f"source '{source.name}' has no documents; {remedy}", where=source.name, value=0, allowed=remedy
        )
    # In the order of a hash, so that a cap takes documents from all origins.
    return [documents[key] for key in sorted(documents, key=lambda key: (text_key(key), key))]


def _capped(documents: Sequence[AnyDocument], tokenizer: Tokenizer, max_tokens: int) -> list[AnyDocument]:
    """The first documents, with about `max_tokens` tokens of text in all."""
    sample = list(take([_text(document) for document in documents], RATIO_SAMPLE))
    per_token = sum(map(len, sample)) / max(1, sum(map(len, tokenizer.encode_all(sample))))
    kept: list[AnyDocument] = []
    characters = 0.0
    for document in documents:
        if characters >= max_tokens * per_token:
            break
        kept.append(document)
        characters += len(_text(document))
    return kept
