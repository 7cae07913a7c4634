"""Text that a tokenizer does not know: how much of it became the unknown token, and how much vanished."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import tokenizers
from tokenizers import pre_tokenizers

from trainer.data.shards.tokenizer import Tokenizer


class Losses:
    """Counts what the ids of texts do not say of them."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer, model = tokenizer, tokenizer.state["model"]
        self._unknown = _unknown_id(model)
        self._counting: tokenizers.Tokenizer | None = None
        if model["type"] == "BPE" and self._unknown is None and not _has_all_bytes(tokenizer.state):
            self._counting, self._vanished = _with_unknown(tokenizer)

    def unknown(self, encoded: Sequence[Sequence[int]]) -> int:
        """Tokens of texts that are the unknown token."""
        return 0 if self._unknown is None else sum(ids.count(self._unknown) for ids in encoded)

    def vanished(self, texts: Sequence[str]) -> int:
        """Characters of texts (bytes, for a byte-level tokenizer) that have no token at all."""
        if self._counting is None:
            return 0
        encoded = self._counting.encode_batch_fast(texts, add_special_tokens=False)
        return sum(encoding.ids.count(self._vanished) for encoding in encoded)

    def characters(self, text: str, ids: Sequence[int]) -> str:
        """The characters of a text with these ids that have no token of their own; empty where none is lost."""
        if not self.unknown([ids]) and not self.vanished([text]):
            return ""
        lost = [one for one in sorted(set(text)) if self._loses(one)]
        return "".join(lost) or text

    def _loses(self, character: str) -> bool:
        return bool(self.unknown(self._tokenizer.encode_all([character])) or self.vanished([character]))


def _unknown_id(model: dict[str, Any]) -> int | None:
    found: int | None
    if model["type"] == "Unigram":
        found = model.get("unk_id")
    else:
        found = model["vocab"].get(model.get("unk_token"))
    return found


def _has_all_bytes(state: dict[str, Any]) -> bool:
    """Return True if every byte of a text has a token."""
    model = state["model"]
    vocabulary, affixes = model["vocab"], (model.get("continuing_subword_prefix"), model.get("end_of_word_suffix"))
    if model.get("byte_fallback"):
        return all(f"<0x{byte:02X}>" in vocabulary for byte in range(256))
    steps = [*_steps(state["normalizer"]), *_steps(state["pre_tokenizer"])]
    return (
        not any(affixes)
        and any(step["type"] == "ByteLevel" for step in steps)
        and all(letter in vocabulary for letter in pre_tokenizers.ByteLevel.alphabet())
    )


def _steps(state: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    if state is not None:
        yield state
        for inner in (*state.get("normalizers", ()), *state.get("pretokenizers", ())):
            yield from _steps(inner)


def _with_unknown(tokenizer: Tokenizer) -> tuple[tokenizers.Tokenizer, int]:
    """The tokenizer with a token for unknown characters, and its id. Without one, BPE leaves them out."""
    state = json.loads(json.dumps(tokenizer.state))
    name = max(state["model"]["vocab"], key=len, default="") + "?"  # not there yet
    state["model"]["vocab"][name] = tokenizer.vocab_size
    state["model"] |= {"unk_token": name, "fuse_unk": False}
    counting = tokenizers.Tokenizer.from_str(json.dumps(state))
    counting.no_truncation()
    counting.no_padding()
    counting.encode_special_tokens = tokenizer.special_text == "spell"
    return counting, tokenizer.vocab_size
