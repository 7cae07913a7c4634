"""Side files: what goes with a model and holds no tensors of it, by its path in the directory. No torch here.

Everything that is not weights goes along, so that a kind of file that is new goes along too. Python code is copied,
because `auto_map` in config.json may name it; nothing here runs it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from trainer.storage.manifest import CHECKPOINT, MANIFEST, CorruptError
from trainer.weights.hf_files import CONFIG, HuggingFaceError

CARD = "README.md"
OUR_CARD = "This card was written by octavo export"  # in the card of every export
WEIGHTS = (
    ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".distcp", ".gguf", ".ggml", ".h5", ".msgpack", ".onnx", ".npz",
    ".index.json", ".onnx_data", ".tflite", ".mlmodel", ".pdparams",
)  # fmt: skip
OURS = (CONFIG, MANIFEST, CARD)  # written anew for every directory

# Any of these files is a tokenizer: transformers builds one from it.
TOKENIZERS = ("tokenizer.json", "vocab.json", "vocab.txt", "tokenizer.model", "spiece.model", "tekken.json")

SideFiles = dict[str, Path]  # path in the directory, with "/" -> the file


def side_files(directory: Path) -> SideFiles:
    """Files that go with the model in a directory, in its sub-directories too. Links are followed. Left out are hidden
    files, weights of any program, sub-directories with weights, which are other models, and `OURS`.

    Raises HuggingFaceError for a link to nothing, and for a directory that cannot be listed.
    """
    return dict(sorted(_walk(directory, "", {os.path.realpath(directory)})))


def _walk(directory: Path, prefix: str, above: set[str]) -> Iterator[tuple[str, Path]]:
    try:
        entries = sorted(directory.iterdir())
    except OSError as error:
        raise HuggingFaceError(
            f"{directory}: {error.strerror or error}",
            where=str(directory),
            value=error.strerror,
            allowed="a readable directory",
        ) from error
    for entry in entries:
        name = prefix + entry.name
        if entry.name.startswith(".") or entry.name == "__pycache__" or name in OURS or name.endswith(WEIGHTS):
            continue
        if entry.is_dir():
            if any(inside.name.endswith(WEIGHTS) for inside in entry.iterdir()):
                continue
            if (real := os.path.realpath(entry)) not in above:  # a link to a directory around it has no end
                yield from _walk(entry, f"{name}/", {*above, real})
        elif entry.is_file():
            yield name, entry
        elif entry.is_symlink():
            raise HuggingFaceError(
                f"{entry} is a link to a file that does not exist; restore the file, or remove the link",
                where=str(entry),
                value=os.readlink(entry),
                allowed="the file, or no link",
            )


def clashes(directory: Path) -> list[str]:
    """Files of a directory whose names are those of files that every export writes, other than Octavo's own."""
    card = directory / CARD
    found = [CARD] if card.is_file() and OUR_CARD not in card.read_text(encoding="utf-8", errors="replace") else []
    if (directory / MANIFEST).is_file():
        try:
            CHECKPOINT.read(directory)
        except CorruptError:
            found.append(MANIFEST)
    return found


def total_size(files: Mapping[str, Path | bytes]) -> int:
    """Bytes of side files, those that are made included. Raises OSError."""
    return sum(len(file) if isinstance(file, bytes) else file.stat().st_size for file in files.values())
