"""Words of a text, and how much of it repeats itself or another text.

The repetition measures and their limits are those of table A1 of "Scaling Language Models: Methods, Analysis & Insights
from Training Gopher", arXiv 2112.11446, by characters of the text.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

WORD = re.compile(r"[^\W_]+(?:[-'’.][^\W_]+)*")
TOP = ((2, 0.20), (3, 0.18), (4, 0.16))  # (n, largest share of the most frequent n-gram)
DUPLICATE = ((5, 0.15), (6, 0.14), (7, 0.13), (8, 0.12), (9, 0.11), (10, 0.10))  # of all n-grams seen before
LINES, LINE_CHARACTERS = 0.30, 0.20  # largest shares of repeated lines, and paragraphs


def words_of(text: str) -> list[str]:
    return WORD.findall(text)


def top_share(words: Sequence[str], n: int, characters: int) -> float:
    """The share of `characters` that the most frequent n-gram takes; 0 where none occurs twice."""
    grams = Counter(" ".join(words[place : place + n]) for place in range(len(words) - n + 1))
    ((gram, count),) = grams.most_common(1) or [("", 0)]
    return len(gram) * count / characters if count > 1 else 0.0


def duplicate_share(words: Sequence[str], n: int, characters: int) -> float:
    """The share of `characters` in n-grams that occurred before, none counted twice."""
    seen, repeated, place = set[str](), 0, 0
    while place <= len(words) - n:
        gram = "".join(words[place : place + n])
        if gram in seen:
            repeated += len(gram)
            place += n
        else:
            seen.add(gram)
            place += 1
    return repeated / characters


def repeated_parts(text: str, separator: str) -> tuple[float, float]:
    """The share of lines, or of paragraphs, that occurred before: by number, and by characters of the text."""
    parts = re.split(separator, text)
    seen, number, characters = set[str](), 0, 0
    for part in parts:
        if part in seen:
            number += 1
            characters += len(part)
        seen.add(part)
    return number / len(parts), characters / len(text)


def repeats(text: str) -> bool:
    """Return True for a text that exceeds one of Gopher's limits of repetition."""
    text = text.strip()
    if not text:
        return False
    for separator in (r"\n{2,}", r"\n+"):
        number, characters = repeated_parts(text, separator)
        if number > LINES or characters > LINE_CHARACTERS:
            return True
    words, size = words_of(text), len(text)
    return any(top_share(words, n, size) > most for n, most in TOP) or any(
        duplicate_share(words, n, size) > most for n, most in DUPLICATE
    )


def copied_share(words: Sequence[str], others: Sequence[str], n: int) -> float:
    """The share of `words` in n-grams that `others` has too; case does not count. 0 for fewer than n words."""
    known = {tuple(others[place : place + n]) for place in range(len(others) - n + 1)}
    copied = [False] * len(words)
    for place in range(len(words) - n + 1):
        if tuple(words[place : place + n]) in known:
            copied[place : place + n] = [True] * n
    return sum(copied) / len(words) if words else 0.0
