"""Log-probabilities in the shapes of OpenAI's two kinds of answers.

A token alone may be a part of a character: then its text is `bytes:\\xe4` and the like, as OpenAI writes it.
"""

from __future__ import annotations

from codecs import getincrementaldecoder
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from tokenizers.pre_tokenizers import ByteLevel

from trainer.data.shards.tokenizer import Tokenizer
from trainer.engine.request import Completion, Scores, Token

Place = tuple[int, float | None, Sequence[tuple[int, float]]]  # token, its log-probability, likely ones with theirs


@lru_cache(maxsize=1)
def _bytes_of_characters() -> dict[str, int]:
    """The byte for which each character of a byte-level token is written: printable bytes are themselves, and the
    others follow in order from U+0100 on."""
    alphabet = {*ByteLevel.alphabet()}
    themselves = [byte for byte in range(256) if chr(byte) in alphabet]
    rest = [byte for byte in range(256) if chr(byte) not in alphabet]
    return {chr(byte): byte for byte in themselves} | {chr(256 + place): byte for place, byte in enumerate(rest)}


def bytes_of(tokenizer: Tokenizer, token: int) -> bytes:
    """The bytes of one token; of an added one, those of its name."""
    name = tokenizer.token(token) or ""
    if name in tokenizer.added:
        return name.encode()
    table = _bytes_of_characters()
    if "\ufffd" in (text := tokenizer.decode([token])) and all(character in table for character in name):
        return bytes(table[character] for character in name)
    return text.encode()


def text_of(tokenizer: Tokenizer, token: int) -> str:
    raw = bytes_of(tokenizer, token)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def place_of(token: Token) -> Place:
    return token.id, token.log_prob, token.alternatives


def places_of(ids: Sequence[int], scores: Scores) -> list[Place]:
    """ids: the tokens that were scored."""
    rows = zip(ids, scores.log_probs.tolist(), scores.ids.tolist(), scores.of_ids.tolist(), strict=True)
    return [(token, log_prob, [*zip(likely, of_likely, strict=True)]) for token, log_prob, likely, of_likely in rows]


def places_of_prompt(done: Completion) -> list[Place]:
    """The first token has nothing before it, and so no probability."""
    assert done.prompt_scores is not None
    return [(done.prompt[0], None, []), *places_of(done.prompt[1:], done.prompt_scores)]


class OfCompletion:
    """OpenAI's `logprobs` of the tokens of one completion, some after others."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._characters = 0
        self._decoder = getincrementaldecoder("utf-8")("replace")

    def take(self, places: Sequence[Place]) -> dict[str, Any]:
        return {
            "tokens": [text_of(self._tokenizer, token) for token, _, _ in places],
            "token_logprobs": [log_prob for _, log_prob, _ in places],
            "top_logprobs": [_top(self._tokenizer, place) for place in places],
            "text_offset": [self._pass(token) for token, _, _ in places],
        }

    def _pass(self, token: int) -> int:
        """Characters before the token."""
        before = self._characters
        if self._tokenizer.decode([token]):  # tokens that are not shown take no room
            self._characters += len(self._decoder.decode(bytes_of(self._tokenizer, token)))
        return before


def _top(tokenizer: Tokenizer, place: Place) -> dict[str, float] | None:
    """The most likely tokens, and the one that is there. Of two with the same text the likelier one counts."""
    token, log_prob, likely = place
    if log_prob is None:
        return None
    found: dict[str, float] = {}
    for other, of_other in [*likely, (token, log_prob)]:
        found.setdefault(text_of(tokenizer, other), of_other)
    return found


def of_chat(tokenizer: Tokenizer, places: Sequence[Place]) -> dict[str, Any]:
    """OpenAI's `logprobs` of a chat answer."""

    def one(token: int, log_prob: float | None) -> dict[str, Any]:
        raw = bytes_of(tokenizer, token)
        return {"token": text_of(tokenizer, token), "bytes": [*raw], "logprob": log_prob}

    content = [
        {**one(token, log_prob), "top_logprobs": [one(*other) for other in likely]}
        for token, log_prob, likely in places
    ]
    return {"content": content, "refusal": None}
