r"""The final answer of a text: what a reward compares with the reference."""

from __future__ import annotations

import re

_MARKED = re.compile(
    r"(?:\banswer(?:\s+is|\s*[:=])|\*\*answer:?\*\*:?)\s*:?\s*(.+?)\s*(?:$|\.(?=\s|$))", re.IGNORECASE | re.MULTILINE
)
_WRAPPED = re.compile(r"^(?:\$+|\\\(|\\\[|\*\*|__|`+|\"|“)(.*?)(?:\$+|\\\)|\\\]|\*\*|__|`+|\"|”)$", re.DOTALL)


def said(answer: str) -> str:
    """The text behind the thinking; empty where the thinking was not closed."""
    before, closed, behind = answer.rpartition("</think>")
    text = behind if closed else before or answer
    return "" if "<think>" in text else text.strip()


def boxed(text: str) -> str | None:
    r"""The content of the last `\boxed{}`, whose braces may be nested to any depth; None without one that is closed."""
    for start in reversed([found.end() for found in re.finditer(r"\\(?:boxed|fbox)\s*\{", text)]):
        depth = 1
        for place in range(start, len(text)):
            depth += {"{": 1, "}": -1}.get(text[place], 0) if text[place - 1] != "\\" else 0
            if depth == 0:
                return text[start:place].strip()
    return None


def final_answer(answer: str) -> str | None:
    r"""The last `\boxed{}`; else what follows the last "answer is" or "Answer:" on its line; else the last line.

    Marks of mathematics and emphasis around it are dropped. None where the text, or its part behind the thinking, is
    empty."""
    text = said(answer)
    found = boxed(text)
    if found is None:
        marked = _MARKED.findall(text)
        found = marked[-1] if marked else (text.splitlines() or [""])[-1]
    return unwrapped(found) or None


def referred(reference: str) -> str:
    r"""The part of a reference that counts: the content of its last `\boxed{}`, as in MATH's solutions, or else all.

    Marks of mathematics and emphasis around it are dropped."""
    found = boxed(reference)
    return unwrapped(reference if found is None else found)


def unwrapped(text: str) -> str:
    """The text without dollar signs, brackets of LaTeX, emphasis and quotes around it, and without a full stop."""
    while True:
        text = text.strip()
        found = _WRAPPED.match(text)
        shorter = found[1] if found else text.removesuffix(".")
        if shorter == text:
            return text
        text = shorter
