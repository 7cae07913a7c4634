"""Find the answer in a text: tags, boxes, numbers, mappings, letters.

The rules are those of the published scorers (OpenCompass 0.5.4: datasets/smolinstruct.py, mol_instructions_chem.py,
biodata.py), so that the same texts give the same answers.
"""

from __future__ import annotations

import ast
import json
import re
from typing import Any

# a decimal number in <NUMBER> tags or in \boxed{}; the published scorers accept either end after either start
_NUMBER = re.compile(r"(?:<NUMBER>|\\boxed\{)\s*(-?\d*\.?\d+)\s*(?:\}|</NUMBER>)")
_BOXED = re.compile(r"\\boxed\{((?:\{[^{}]*\}|[^{}])*)\}")
_INNERMOST = re.compile(r"\{[^{}]*\}")


def after_thinking(text: str) -> str:
    """The part after the last `</think>`, or the whole text."""
    return text.rpartition("</think>")[2]


def tagged(text: str, *tags: str) -> list[str]:
    """The stripped contents of every `<tag>...</tag>`, in their order."""
    names = "|".join(map(re.escape, tags))
    return [found[2].strip() for found in re.finditer(rf"<({names})>(.*?)</\1>", text, re.DOTALL)]


def numbers(text: str) -> list[float]:
    r"""Every decimal number that is alone in `<NUMBER>` tags or in `\boxed{}`. Exponents are not read."""
    return [float(found) for found in _NUMBER.findall(text)]


def boxed(text: str) -> str | None:
    r"""The content of the last `\boxed{}`, which may hold one level of braces; None without one.

    `\text{...}` is replaced by what it holds, and a backslash before any other character is dropped.
    """
    found = _BOXED.findall(text)
    if not found:
        return None
    plain = re.sub(r"\\text\{([^}]*)\}", r"\1", found[-1].strip())
    return re.sub(r"\\(.)", r"\1", plain)


def mapping(text: str) -> dict[Any, Any] | None:
    """The last `{...}` without inner braces, read as JSON or as a Python literal; None if it is not a mapping.

    One that holds `...` is an unfinished example and counts as none.
    """
    found = _INNERMOST.findall(text)
    if not found or "..." in found[-1]:
        return None
    for read in (json.loads, ast.literal_eval):
        try:
            value = read(found[-1])
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            continue
        return value if isinstance(value, dict) else None
    return None


_YES_NO = [
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"\\boxed\{\s*(yes|no)\s*\}",
        # the first letter is a class of two in the published rule, which makes it optional to spell "The" in full
        r"[th]he\s+answer\s+is\s*[\.:'\"“‘’\-]*\s*(yes|no)",
        r"answer:\s*(yes|no)\b",
        r"\*\*answer:\*\*\s*(yes|no)\b",
        r"\*\*answer\*\*:\s*(yes|no)\b",
        r"<boolean>\s*(yes|no)\s*</boolean>",
        r"^\s*(yes|no)[\.\?!]?\s*$",
        r"<\|begin_of_box\|>\s*(yes|no)\s*<\|end_of_box\|>",
    )
]


def yes_or_no(text: str) -> str:
    """`yes`, `no`, or an empty text where neither is an answer.

    The whole text, then a box, a sentence such as "the answer is yes", a label, tags; then the text's first or last
    letters, yes before no (so that "nothing" reads as no, as in the published rule).
    """
    text = after_thinking(text).strip()
    if text.lower() in ("yes", "no"):
        return text.lower()
    for pattern in _YES_NO:
        if found := pattern.search(text):
            return found[1].lower()
    low = text.lower()
    for word in ("yes", "no"):
        if low.startswith(word) or low.endswith(word):
            return word
    return ""
