"""Sentences and words as IFBench counts them."""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Callable, Mapping
from typing import Any

Check = Callable[[str, Mapping[str, Any]], bool]
"""(answer, the constraint's arguments) -> followed. An IndexError, ValueError or ZeroDivisionError means no."""

MARKS = string.punctuation
_DROP_MARKS = str.maketrans("", "", MARKS)
_DOT, _END = "\x00", "\x01"  # a dot that does not end a sentence, and the end of one
_STARTS = r"(Mr|Mrs|Ms|Dr|Prof|Capt|Cpt|Lt|(?:He|She|It|They|Their|Our|We|But|However|That|This)\s|Wherever)"
_RULES = [
    (re.compile(pattern), result)
    for pattern, result in (
        (r"(Mr|St|Mrs|Ms|Dr)[.]", rf"\1{_DOT}"),
        (r"[.](com|net|org|io|gov|edu|me)", rf"{_DOT}\1"),
        (r"([0-9])[.]([0-9])", rf"\1{_DOT}\2"),
    )
]
_LATER_RULES = [
    (re.compile(pattern), result)
    for pattern, result in (
        (r"\s([A-Za-z])[.] ", rf" \1{_DOT} "),
        (rf"([A-Z][.][A-Z][.](?:[A-Z][.])?) {_STARTS}", rf"\1{_END} \2"),
        (r"([A-Za-z])[.]([A-Za-z])[.]([A-Za-z])[.]", rf"\1{_DOT}\2{_DOT}\3{_DOT}"),
        (r"([A-Za-z])[.]([A-Za-z])[.]", rf"\1{_DOT}\2{_DOT}"),
        (rf" (Inc|Ltd|Jr|Sr|Co)[.] {_STARTS}", rf" \1{_END} \2"),
        (r" (Inc|Ltd|Jr|Sr|Co)[.]", rf" \1{_DOT}"),
        (r" ([A-Za-z])[.]", rf" \1{_DOT}"),
    )
]


def sentences(text: str) -> list[str]:
    """Sentences with their last mark, split after . ? and ! except in titles, web addresses, numbers and initials.

    A last piece without a mark counts as well; empty pieces between marks are kept.
    """
    text = f" {text}  ".replace("\n", " ")
    for rule, result in _RULES:
        text = rule.sub(result, text)
    text = re.sub(r"\.{2,}", lambda dots: _DOT * len(dots[0]) + _END, text)
    text = text.replace("Ph.D.", f"Ph{_DOT}D{_DOT}")
    for rule, result in _LATER_RULES:
        text = rule.sub(result, text)
    # the mark goes after the quote, so that the quote stays in its sentence
    for inside, outside in ((".”", "”."), ('."', '".'), ('!"', '"!'), ('?"', '"?')):
        text = text.replace(inside, outside)
    text = re.sub("([.?!])", rf"\1{_END}", text)
    pieces = [piece.strip() for piece in text.replace(_DOT, ".").split(_END)]
    return pieces if pieces[-1] else pieces[:-1]


def without_marks(text: str) -> str:
    """The text without ASCII punctuation."""
    return text.translate(_DROP_MARKS)


def trimmed(word: str) -> str:
    """The word without punctuation and spaces at its ends."""
    return word.strip(MARKS + " ")


def runs(text: str) -> list[str]:
    """Runs of letters, digits and underscores."""
    return re.findall(r"\w+", text)


def tokens(text: str) -> list[str]:
    """nltk's word tokens, marks included. Needs its data `punkt_tab`; LookupError without."""
    from nltk import word_tokenize

    found: list[str] = word_tokenize(text)
    return found


def ascii_of(text: str) -> str:
    """The text without accents and without characters that ASCII does not have."""
    return unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
