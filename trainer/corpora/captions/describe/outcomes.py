"""The meaning of an entry of the ledger for its crop: a caption, or the reason why there is none."""

from __future__ import annotations

import re

from trainer.storage.ledger import Entry

REFUSED, CUT, EMPTY, REJECTED = "refused", "cut", "empty", "rejected"
OPENING = 300  # characters that a refusal is looked for in
_SORRY = r"(?:(?:i'?m|i am|we are) (?:\w+ )?sorry|sorry\b|my apolog|i apologi|as an ai\b|as a (?:\w+ )?language model)"
_UNABLE = r"(?:can ?not|can't|could not|couldn't|won't|will not|do not|don't|(?:am|'m) (?:unable|not able) to)"
_WORK = r"(?:help|assist|see|view|access|provide|describe|comply|process|identify|analy[sz]e|display|open|have)"
_MISSING = r"\bno (?:image|picture|figure|attachment)s? (?:(?:was|were|is|has been) )?(?:provided|attached|uploaded)\b"
_AGAIN = r"\bplease (?:upload|attach|provide|share) (?:the|an|your|a) (?:image|picture|figure)\b"
# An answer that opens with a refusal, or that reports that the image did not arrive.
REFUSAL = re.compile(
    rf"^\W*(?:unfortunately,? |but )?(?:{_SORRY}|i ?{_UNABLE} (?:\w+ )?{_WORK}\b)|{_MISSING}|{_AGAIN}", re.IGNORECASE
)
THOUGHT = re.compile(r"^\s*(?:<think>)?.*?</think>", re.DOTALL)


def caption_in(text: str) -> str:
    """The answer without a model's thinking: "" where that was not closed."""
    text = THOUGHT.sub("", text, count=1)
    return "" if "<think>" in text else text.strip()


def failure_of(entry: Entry) -> str | None:
    """The reason why an answer is not a caption; None for a caption.

    `refused` by the server's filter or in words, `cut` by max_tokens, `empty`, `rejected`: a request that the server
    will never answer, such as one beyond its context.
    """
    if entry["finish"] == REJECTED:
        return REJECTED
    if entry["refusal"]:
        return REFUSED
    if entry["finish"] == "length":
        return CUT
    text = caption_in(entry["text"])
    if not text:
        return EMPTY
    opening = text[:OPENING].replace("\u2019", "'")
    return REFUSED if REFUSAL.search(opening) else None
