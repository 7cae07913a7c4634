"""From one tokenizer to another: which row of the source's embedding and LM head belongs to which token. No torch here.

Rows move by the token's string, never by index: ids of Intern-S1 and of Intern-S1-Pro are other tokens from 151669 on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.weights.hf_files import HuggingFaceError, read_json
from trainer.weights.hf_survey import Source
from trainer.weights.upcycle.errors import UpcycleError
from trainer.weights.upcycle.placement import Expansion

NEW = -1


@dataclass(frozen=True)
class Vocabulary:
    """rows[i]: the row of the source that row i is a copy of, or NEW."""

    rows: tuple[int, ...]
    source: Mapping[str, int]  # token -> id; none where only rows are added
    target: Mapping[str, int]

    @property
    def known(self) -> frozenset[int] | None:
        """Rows of the source that have a token; None where its tokens are not looked at."""
        return frozenset(self.source.values()) or None

    def facts(self) -> dict[str, int]:
        """What the manifest says of it."""
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
        """The id that the source's token `old` has now; None where it is gone."""
        if not self.source:
            return old
        token = next((token for token, i in self.source.items() if i == old), None)
        return None if token is None else self.target.get(token)


def vocabulary_of(source: Source, expansion: Expansion) -> Vocabulary | None:
    """Where the rows of the expanded model's tables come from; None where they are the source's as they are.

    Raises: UpcycleError.
    """
    rows, wanted = source.model.vocab_size, expansion.vocab_size
    if expansion.vocabulary is None:
        if wanted is None or wanted == rows:
            return None
        if wanted < rows:
            raise UpcycleError(
                f"vocab_size={wanted} is smaller than the source's {rows}; use {rows} or more, or give a vocabulary"
            )
        return Vocabulary((*range(rows), *[NEW] * (wanted - rows)), {}, {})
    path, target = source.directory.path, Path(expansion.vocabulary)
    old, new = tokens_of(path), tokens_of(target)
    need = max(new.values()) + 1
    if wanted is not None and wanted < need:
        raise UpcycleError(f"vocab_size={wanted} is too small for the ids in {target}; use {need} or more")
    if max(old.values()) >= rows:
        raise UpcycleError(f"{path}: its tokenizer has the id {max(old.values())}, its embedding only {rows} rows")
    moved = [NEW] * (wanted or need)
    for token, i in new.items():
        moved[i] = old.get(token, NEW)
    return Vocabulary(tuple(moved), old, new)


def tokens_of(directory: Path) -> dict[str, int]:
    """Token -> id of a tokenizer: of tokenizer.json or vocab.json, with added_tokens.json and the added tokens of
    tokenizer_config.json. Raises UpcycleError where there is neither, or it cannot be read."""
    try:
        if (directory / "tokenizer.json").is_file():
            found = _fast(read_json(directory / "tokenizer.json"))
        elif (directory / "vocab.json").is_file():
            found = dict(read_json(directory / "vocab.json"))
        else:
            raise UpcycleError(f"{directory}: no tokenizer.json and no vocab.json; give the directory of a tokenizer")
        if (directory / "added_tokens.json").is_file():
            found |= read_json(directory / "added_tokens.json")
        if (directory / "tokenizer_config.json").is_file():
            listed = read_json(directory / "tokenizer_config.json").get("added_tokens_decoder") or {}
            found |= {facts["content"]: int(i) for i, facts in listed.items()}
        if not found or not all(type(i) is int and i >= 0 for i in found.values()):
            raise UpcycleError(f"{directory}: its tokenizer has no tokens, or ids that are no whole numbers")
    except HuggingFaceError as error:
        raise UpcycleError(str(error)) from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, UpcycleError):
            raise
        raise UpcycleError(f"{directory}: its tokenizer cannot be read ({error!r})") from error
    return found


def _fast(file: dict[str, Any]) -> dict[str, int]:
    vocabulary = file["model"]["vocab"]
    if isinstance(vocabulary, list):  # of a unigram model: pairs of token and score, in the order of ids
        vocabulary = {token: i for i, (token, _) in enumerate(vocabulary)}
    return dict(vocabulary) | {token["content"]: token["id"] for token in file.get("added_tokens") or []}
