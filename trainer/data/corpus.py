"""The toy corpus on disk: built once, named by a hash of what it is made from, verified whenever it is opened.

A corpus is a directory of token files, `tokenizer.json` and `manifest.json`. It is written under another name, renamed
when complete and never changed afterwards. Only one process builds at a time; the others wait for it.
"""

import fcntl
import hashlib
import json
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import tokenizers

from trainer.data.errors import DataError
from trainer.data.hashing import text_key
from trainer.data.sources import SOURCES, Document, Source, installed_version
from trainer.data.store import write_tokens
from trainer.data.tokenizer import Tokenizer, train_bpe

FORMAT = 2  # raise it with any change of what the builder writes for the same inputs
VOCAB_SIZE = 4096
BPE_SAMPLE = 1_500_000  # characters per source that the tokenizer is trained on
CHARS_PER_TOKEN = 5  # more than any source has, so that a cap on tokens also caps the text to be read
MIN_ORIGINS = 8  # read at least so many, however small the cap: one file can be longer than a small corpus
TRAIN, HELDOUT = "train", "heldout"
MANIFEST, TOKENIZER = "manifest.json", "tokenizer.json"

Progress = Callable[[str], None]
Manifest = dict[str, Any]
T = TypeVar("T")


def print_progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


class DamagedCorpus(Exception):
    """A file of a corpus is missing or not the one that was written."""


@dataclass(frozen=True)
class Corpus:
    """An opened, verified corpus."""

    directory: Path
    manifest: Manifest

    @property
    def fingerprint(self) -> str:
        """Hash of the manifest and, through it, of every file."""
        return str(self.manifest["checksum"])

    def stem(self, source: str, split: str) -> Path:
        return self.directory / f"{source}.{split}"


def open_corpus(
    cache_dir: Path,
    *,
    tokens_per_source: int,
    holdout_fraction: float,
    sources: Sequence[Source] = SOURCES,
    progress: Progress = print_progress,
) -> Corpus:
    """The toy corpus of these sizes from `cache_dir`, built there first where it is missing or damaged.

    Safe to call from any number of processes at once. Raises DataError where a package is missing or the directory
    cannot be written.
    """
    recipe = ingredients(tokens_per_source, holdout_fraction, sources)
    directory = cache_dir / f"toy-{hashlib.sha256(_canonical(recipe)).hexdigest()[:16]}"
    try:
        with suppress(DamagedCorpus):  # the usual case needs no lock: what has the final name is complete
            return Corpus(directory, _verify(directory))
        with only_one(cache_dir, directory.name, progress):
            if directory.exists():
                try:
                    return Corpus(directory, _verify(directory))
                except DamagedCorpus as damage:
                    progress(f"corpus: {damage}; building {directory} again")
                    shutil.rmtree(directory)
            return Corpus(directory, _build(directory, recipe, sources, progress))
    except OSError as error:
        raise DataError(
            f"data.cache_dir={cache_dir}: {error.strerror or error} ({error.filename or directory}); "
            "name a directory that can be written, with 100 MB free"
        ) from error


def ingredients(tokens_per_source: int, holdout_fraction: float, sources: Sequence[Source]) -> Manifest:
    """Everything that decides what the builder writes."""
    packages = sorted({package for source in sources for package in source.packages})
    return {
        "format": FORMAT,
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "packages": {package: installed_version(package) for package in packages},
        "tokenizers": tokenizers.__version__,
        "sources": {source.name: _content(source) for source in sources},
        "vocab_size": VOCAB_SIZE,
        "tokens_per_source": tokens_per_source,
        "holdout_fraction": holdout_fraction,
    }


def _content(source: Source) -> str:
    """Hash of the names and bytes of all files that a source reads."""
    content = hashlib.sha256()
    for name, path in source.files():
        with suppress(FileNotFoundError):  # listed by a package, but cut by a packager: not read either
            content.update(f"{name}\0{_sha256(path)}\n".encode())
    return content.hexdigest()


@contextmanager
def only_one(cache_dir: Path, name: str, progress: Progress) -> Iterator[None]:
    """Hold the lock of the corpus `name`; it goes when the process goes, however it ends."""
    cache_dir.mkdir(parents=True, exist_ok=True)
    with (cache_dir / f"{name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress(f"corpus: another process is at {cache_dir / name}, waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def build_whole(directory: Path, write: Callable[[Path], T]) -> T:
    """Have `write` fill a directory beside `directory`, which takes that name once it is whole; what killed builds left
    goes first. Returns what `write` returns. For one process at a time."""
    for leftover in directory.parent.glob(f"{directory.name}.tmp*"):  # of a build that was killed
        shutil.rmtree(leftover)
    partial = directory.with_name(f"{directory.name}.tmp-{os.getpid()}")
    partial.mkdir()
    try:
        written = write(partial)
        partial.rename(directory)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return written


def _build(directory: Path, recipe: Manifest, sources: Sequence[Source], progress: Progress) -> Manifest:
    progress(f"corpus: building {directory} (once; under a minute)")
    manifest = build_whole(directory, lambda partial: _write_corpus(partial, recipe, sources, progress))
    progress(f"corpus: done, {sum(file['bytes'] for file in manifest['files'].values()) / 1e6:.1f} MB")
    return manifest


def _write_corpus(partial: Path, recipe: Manifest, sources: Sequence[Source], progress: Progress) -> Manifest:
    cap, fraction = recipe["tokens_per_source"], recipe["holdout_fraction"]
    texts: dict[str, dict[str, list[str]]] = {}
    for source in sources:
        texts[source.name] = _split(source, cap * CHARS_PER_TOKEN, fraction)
        characters = sum(len(text) for part in texts[source.name].values() for text in part)
        progress(f"corpus: {source.name}: {characters / 1e6:.1f} MB of text: {source.licence}")

    progress(f"corpus: training a byte-level BPE of {VOCAB_SIZE} tokens")
    sample = [text for parts in texts.values() for text in take(parts[TRAIN], BPE_SAMPLE)]
    tokenizer = train_bpe(sample, VOCAB_SIZE)
    tokenizer.save(partial / TOKENIZER)

    described: dict[str, Manifest] = {}
    for source in sources:
        counts = {
            split: _write_split(partial / f"{source.name}.{split}", texts[source.name][split], tokenizer, cap * share)
            for split, share in ((TRAIN, 1 - fraction), (HELDOUT, fraction))
        }
        packages = {package: recipe["packages"][package] for package in source.packages}
        origin = packages or {"python": recipe["python"]}
        described[source.name] = {"packages": origin, "licence": source.licence, **counts}
        progress(
            f"corpus: {source.name}: {counts[TRAIN]['tokens']:,} tokens in {counts[TRAIN]['documents']:,} documents to "
            f"train on, {counts[HELDOUT]['tokens']:,} in {counts[HELDOUT]['documents']:,} held out"
        )

    files = {path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)} for path in sorted(partial.iterdir())}
    manifest: Manifest = {"ingredients": recipe, "sources": described, "files": files}
    manifest["checksum"] = hashlib.sha256(_canonical(manifest)).hexdigest()
    (partial / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
    return manifest


def _split(source: Source, max_characters: int, fraction: float) -> dict[str, list[str]]:
    """Texts of a source, each once, in hash order, cut into training and held-out ones.

    The first origins in hash order are held out until they make up `fraction` of the text; what remains of the last of
    them is dropped, so that no file or molecule is in both splits and a long file cannot swallow a small corpus.
    """
    documents: list[Document] = []
    seen: set[str] = set()
    origins: set[str] = set()
    characters = 0
    for document in source.read():
        if document.text not in seen:
            seen.add(document.text)
            documents.append(document)
            origins.add(document.origin)
            characters += len(document.text)
        if characters >= max_characters and len(origins) >= MIN_ORIGINS:
            break
    heldout: list[str] = []
    train: list[str] = []
    last_heldout = None
    wanted = fraction * characters
    for document in documents:
        if wanted > 0:
            heldout.append(document.text)
            last_heldout = document.origin
            wanted -= len(document.text)
        elif document.origin != last_heldout:
            train.append(document.text)
    if not train or not heldout:
        raise DataError(
            f"source '{source.name}' has {len(documents)} documents, too few for a training and a held-out split: "
            "raise data.tokens_per_source, and data.holdout_fraction above 0"
        )
    by_hash = {TRAIN: train, HELDOUT: heldout}
    return {split: sorted(part, key=lambda text: (text_key(text), text)) for split, part in by_hash.items()}


def take(texts: list[str], characters: int) -> Iterator[str]:
    """The first texts, until they have so many characters."""
    for text in texts:
        if characters <= 0:
            return
        yield text
        characters -= len(text)


def _write_split(stem: Path, texts: list[str], tokenizer: Tokenizer, max_tokens: float) -> dict[str, int]:
    """Tokenise texts until there are `max_tokens`, write them, count what was written."""
    documents, tokens, remaining = [], 0, iter(texts)
    while tokens < max_tokens and (some := list(islice(remaining, 256))):
        for document in tokenizer.encode_documents(some):
            if tokens < max_tokens:
                documents.append(document)
                tokens += len(document)
    write_tokens(stem, documents)
    size = sum(len(text.encode()) for text in texts[: len(documents)])
    return {"documents": len(documents), "tokens": tokens, "bytes": size}


def _verify(directory: Path) -> Manifest:
    """The manifest of a corpus whose files are all as written; DamagedCorpus names the first that is not."""
    path = directory / MANIFEST
    try:
        manifest = json.loads(path.read_text())
        checksum = manifest.pop("checksum")
        intact = checksum == hashlib.sha256(_canonical(manifest)).hexdigest()
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise DamagedCorpus(f"{path} is missing or unreadable ({error})") from error
    if not intact:
        raise DamagedCorpus(f"{path} does not match its own checksum")
    manifest["checksum"] = checksum
    for name, written in manifest["files"].items():
        path = directory / name
        if not path.is_file():
            raise DamagedCorpus(f"{path} is missing")
        if path.stat().st_size != written["bytes"]:
            raise DamagedCorpus(f"{path} has {path.stat().st_size} bytes, its manifest says {written['bytes']}")
        if _sha256(path) != written["sha256"]:
            raise DamagedCorpus(f"{path} is damaged: its sha256 is not the one in the manifest")
    return manifest


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _canonical(value: Manifest) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
