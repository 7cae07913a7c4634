"""Map the rows of the source's embedding and LM head to the tokens of another tokenizer. No torch here.

Rows move by the token's string, never by index: from 151669 on, the same id is a different token in Intern-S1 and in
Intern-S1-Pro.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import tokenizers

from trainer.weights.hf_files import HuggingFaceError, read_json
from trainer.weights.hf_survey import SourceModel
from trainer.weights.upcycle.errors import UpcycleError
from trainer.weights.upcycle.placement import Expansion

NEW = -1


@dataclass(frozen=True)
class Vocabulary:
    """rows[i]: the row of the source that row i copies, or NEW."""

    rows: tuple[int, ...]
    source: Mapping[str, int]  # token -> id; empty if rows are only added
    target: Mapping[str, int]

    @property
    def known(self) -> frozenset[int] | None:
        """Rows of the source that have a token; None if its tokenizer was not read."""
        return frozenset(self.source.values()) or None

    def facts(self) -> dict[str, int]:
        """For the manifest: numbers of rows and tokens by what happened to them."""
        moved = [(i, self.rows[i]) for i in self.target.values()]
        return {
            "rows": len(self.rows),
            "rows_new": self.rows.count(NEW),
            "tokens": len(self.target),
            "tokens_at_their_id": sum(row == i for i, row in moved),
            "tokens_moved": sum(row not in (i, NEW) for i, row in moved),
            "tokens_new": sum(row == NEW for _, row in moved),
            "tokens_left_out": len(self.source.keys() - self.target.keys()),
        }

    def moved_id(self, old: int) -> int | None:
        """The new id of the source's token `old`; None if the new tokenizer lacks it."""
        if not self.source:
            return old
        token = next((token for token, i in self.source.items() if i == old), None)
        return None if token is None else self.target.get(token)


def vocabulary_of(source: SourceModel, expansion: Expansion) -> Vocabulary | None:
    """The origin of the rows of the expanded model's tables; None if the tables stay as they are.

    Raises: UpcycleError, HuggingFaceError.
    """
    rows, wanted = source.model.vocab_size, expansion.vocab_size
    if expansion.vocabulary is None:
        if wanted is None or wanted == rows:
            return None
        if wanted < rows:
            raise UpcycleError(
                f"--vocab-size={wanted} is smaller than the source's {rows}; use {rows} or more, or give --vocabulary",
                where="--vocab-size",
                value=wanted,
                allowed=f"{rows} or more, or --vocabulary",
            )
        return Vocabulary((*range(rows), *[NEW] * (wanted - rows)), {}, {})
    path, target = source.directory.path, Path(expansion.vocabulary)
    old, new = tokens_of(path), tokens_of(target)
    need = max(new.values()) + 1
    if wanted is not None and wanted < need:
        raise UpcycleError(
            f"--vocab-size={wanted} is too small for the ids in {target}; use {need} or more",
            where="--vocab-size",
            value=wanted,
            allowed=f"{need} or more",
        )
    if max(old.values()) >= rows:
        raise UpcycleError(
            f"{path}: the tokenizer has the id {max(old.values())}, but the embedding has only {rows} rows",
            where=str(path),
            value=max(old.values()),
            allowed=f"ids below {rows}",
        )
    moved = [NEW] * (wanted or need)
    for token, i in new.items():
        moved[i] = old.get(token, NEW)
    return Vocabulary(tuple(moved), old, new)


def tokenizer_file(directory: Path) -> Path:
    """The tokenizer.json or vocab.json of a directory. Raises UpcycleError if both are missing."""
    for name in ("tokenizer.json", "vocab.json"):
        if (directory / name).is_file():
            return directory / name
    found = "no tokenizer.json and no vocab.json" if directory.is_dir() else "no such directory"
    raise UpcycleError(
        f"{directory}: {found}; give the directory of a tokenizer",
        where=str(directory),
        allowed=("tokenizer.json", "vocab.json"),
    )


def tokens_of(directory: Path) -> dict[str, int]:
    """Read a tokenizer's token -> id from tokenizer.json or vocab.json, with added_tokens.json and the added tokens of
    tokenizer_config.json.

    A token of tokenizer.json has the id that the tokenizers library gives it: that numbers added tokens by itself, and
    ignores the ids in the file if they leave a gap. Raises UpcycleError if both are missing, UpcycleError or
    HuggingFaceError if a file cannot be read.
    """
    file = tokenizer_file(directory)
    try:
        given = _ids_of_the_library(file) if file.name == "tokenizer.json" else {}
        found = {} if given else dict(read_json(file))
        if (directory / "added_tokens.json").is_file():
            found |= read_json(directory / "added_tokens.json")
        if (directory / "tokenizer_config.json").is_file():
            listed = read_json(directory / "tokenizer_config.json").get("added_tokens_decoder") or {}
            found |= {facts["content"]: int(i) for i, facts in listed.items()}
        found |= given
        if not found or not all(type(i) is int and i >= 0 for i in found.values()):
            raise UpcycleError(
                f"{directory}: the tokenizer has no tokens, or ids that are not whole numbers",
                where=str(directory),
                allowed="a tokenizer with tokens and whole numbers as ids",
            )
    except (HuggingFaceError, UpcycleError):
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UpcycleError(
            f"{directory}: the tokenizer cannot be read ({error!r})",
            where=str(directory),
            value=repr(error),
            allowed="the directory of a tokenizer",
        ) from error
    return found


def _ids_of_the_library(file: Path) -> dict[str, int]:
    read_json(file)  # raises with the file's own fault
    try:
        return dict(tokenizers.Tokenizer.from_file(str(file)).get_vocab(with_added_tokens=True))
    except Exception as error:  # the library raises plain Exception
        raise UpcycleError(
            f"{file} is not a tokenizer file: {error}",
            where=str(file),
            allowed="a tokenizer.json in the format of Hugging Face's tokenizers library",
        ) from error
