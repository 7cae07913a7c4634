"""The ingredients of the toy corpora, and the lock under which one process at a time builds them."""

import hashlib
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import tokenizers

from parallel.errors import one_of
from trainer.corpora.packages import Source, installed_version
from trainer.data.errors import DataError
from trainer.data.vocabulary import TOY_VOCAB_SIZE
from trainer.storage.atomic import atomic_directory, remove_unfinished
from trainer.storage.lock import FileLock
from trainer.storage.progress import OnProgress, Progress

VOCAB_SIZE = TOY_VOCAB_SIZE
BPE_SAMPLE = 1_500_000  # characters per source that the tokenizer is trained on
CHARS_PER_TOKEN = 5  # more than any source has, so that a cap on tokens also caps the text to read
MIN_ORIGINS = 8  # read at least this many, however small the cap: one file can be longer than a small corpus

Manifest = dict[str, Any]


def ingredients(tokens_per_source: int, holdout_fraction: float, sources: Sequence[Source[Any]]) -> Manifest:
    """Everything that determines the output of the builder."""
    packages = sorted({package for source in sources for package in source.packages})
    return {
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "packages": {package: installed_version(package) for package in packages},
        "tokenizers": tokenizers.__version__,
        "sources": {source.name: _content(source) for source in sources},
        "vocab_size": VOCAB_SIZE,
        "tokens_per_source": tokens_per_source,
        "holdout_fraction": holdout_fraction,
    }


def _content(source: Source[Any]) -> str:
    """Hash of the names and bytes of all files that a source reads."""
    content = hashlib.sha256()
    for name, path in source.files():
        with suppress(FileNotFoundError):  # listed by a package but removed by a packager: not read either
            content.update(f"{name}\0{_sha256(path)}\n".encode())
    return content.hexdigest()


@contextmanager
def only_one(cache_dir: Path, name: str, progress: OnProgress) -> Iterator[None]:
    """Hold the lock of the corpus `name`; it is released when the process ends, in whatever way."""

    def report() -> None:
        progress(Progress("corpora", detail=f"another process is building {cache_dir / name}; waiting for it"))

    with FileLock(cache_dir / f"{name}.lock", wait=None, on_wait=report):
        yield


def built_once(
    cache_dir: str, kind: str, made_from: str, build: Callable[[Path], None], progress: OnProgress, *, room: str = ""
) -> Path:
    """<cache_dir>/toy-<kind>-<hash of made_from>, which `build` fills where it is missing. Safe to call from several
    processes. room: the disk space that an error should ask for. Raises DataError."""
    directory = Path(cache_dir) / f"toy-{kind}-{hashlib.sha256(made_from.encode()).hexdigest()[:16]}"
    try:
        if not directory.exists():  # the usual case needs no lock: what has the final name is complete
            with only_one(directory.parent, directory.name, progress):
                if not directory.exists():
                    progress(Progress(kind, detail=f"building {directory} (once; a few seconds)"))
                    remove_unfinished(directory)
                    with atomic_directory(directory) as partial:
                        build(partial)
    except OSError as error:
        remedy = f"give a writable directory{room}"
        text = f"data.cache_dir={cache_dir}: {error.strerror or error}; {remedy}"
        raise DataError(text, where="data.cache_dir", value=cache_dir, allowed=remedy) from error
    return directory


def check_sources(where: str, paths: Mapping[str, str], known: Sequence[str]) -> None:
    """Raise DataError for the first of a toy's sources, by name, whose path is not known."""
    for name, path in paths.items():
        if path not in known:
            text = f"{where}.{name}: {path} is not a source of data.build=toy; use {one_of(known)}"
            raise DataError(text, where=f"{where}.{name}", value=path, allowed=tuple(known))


def take(texts: list[str], characters: int) -> Iterator[str]:
    """The first texts, until they have this many characters."""
    for text in texts:
        if characters <= 0:
            return
        yield text
        characters -= len(text)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
