"""Rules that drop a caption, each with its reason, before any model reads it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from trainer.corpora.captions.quality.words import copied_share, repeats, words_of

REASONS = ("short", "long", "garbled", "repetition", "language", "echo", "unrelated")
# Characters that captions do not have: replacement, control, private use, surrogates that were never joined.
DAMAGED = re.compile("[\ufffd\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ue000-\uf8ff]")
MARKS = re.compile(r"<\|[^|<>]{1,40}\|>|<(?:IMG_CONTEXT|image|img|s|pad|unk|bos|eos)>|\[(?:INST|/INST|IMG|PAD|UNK)\]")
RUN = re.compile(r"(?<![\w/\\-])[^\W\d_]{46,}")  # letters without a space; the longest word of English has 45
SAME = re.compile(r"([^\s.\-_=*#|])\1{7,}")  # one character eight times; rules of tables are made of others
LATIN = re.compile(r"[a-zA-Z\u00c0-\u024f\u0370-\u03ff]")  # and Greek, which formulas use
# The words that English text is held together by: 30 to 50 of a hundred in prose.
FUNCTION = frozenset(
    words_of(
        "the of and a an to in is that it as with for on by are from at this be which or each has have its where not "
        "between while both than into their these all but no one two first second over such also more other when only "
        "they was were if so can may about through along above below across after before"
    )
)
COMMON = FUNCTION | frozenset(
    words_of(
        "figure figures fig table tables equation image panel panels shows show shown showing plot plots axis axes "
        "value values different using used based data results result study paper same there here most some many being "
        "been will would could should does did make made given within against under per see text left right upper lower"
    )
)


@dataclass(frozen=True)
class Rules:
    """The limits of the rules.

    min_words, max_words: of a caption; min_formula_words: of a formula's. letters: least share of words that have a
    letter, tables by half of it, as their captions quote numbers. mean: shortest and longest mean length of such words.
    latin: least share of letters that are Latin or Greek. function: least share of words that are English function
    words. copied: largest share of the words that repeat `span` words of the instruction in their order. printed: the
    same for the document's own caption and context. related: words of the document's text that a caption has to share,
    where that text has at least `own` different ones.
    """

    min_words: int = 30
    min_formula_words: int = 15
    max_words: int = 1_000
    letters: float = 0.7
    mean: tuple[float, float] = (3.0, 10.0)
    latin: float = 0.8
    function: float = 0.15
    copied: float = 0.3
    printed: float = 0.8
    span: int = 6
    own: int = 6
    related: int = 1


def reason_against(
    caption: str, kind: str, *, instruction: str = "", printed: str = "", rules: Rules | None = None
) -> str | None:
    """The first of `REASONS` for which a caption is dropped; None for one that is kept.

    kind: of the crop. instruction: what the captioner was asked, without the document's text. printed: the caption and
    the context that the document has for the crop.
    """
    rules = rules or Rules()
    if any(pattern.search(caption) for pattern in (DAMAGED, MARKS, RUN, SAME)):
        return "garbled"
    if _other_script(caption, rules):  # first, as it may have no spaces, and so few words
        return "language"
    words = words_of(caption)
    if len(words) < (rules.min_formula_words if kind == "formula" else rules.min_words):
        return "short"
    if _misspelled(words, kind, rules):
        return "garbled"
    if repeats(caption):
        return "repetition"
    if len(words) > rules.max_words:
        return "long"
    folded = [word.casefold() for word in words]
    if sum(word in FUNCTION for word in folded) < rules.function * len(folded):
        return "language"
    own = [word.casefold() for word in words_of(printed)]
    asked = [word.casefold() for word in words_of(instruction)]
    if copied_share(folded, asked, rules.span) > rules.copied or copied_share(folded, own, rules.span) > rules.printed:
        return "echo"
    return "unrelated" if _unrelated(folded, own, rules) else None


def _other_script(caption: str, rules: Rules) -> bool:
    letters = [letter for letter in caption if letter.isalpha()]
    return sum(bool(LATIN.match(letter)) for letter in letters) < rules.latin * len(letters)


def _misspelled(words: Sequence[str], kind: str, rules: Rules) -> bool:
    spelled = [word for word in words if any(letter.isalpha() for letter in word)]
    least = rules.letters / 2 if kind == "table" else rules.letters
    if len(spelled) < least * len(words):
        return True
    mean = sum(map(len, spelled)) / len(spelled) if spelled else 0.0
    return not rules.mean[0] <= mean <= rules.mean[1]


def _unrelated(words: Sequence[str], printed: Sequence[str], rules: Rules) -> bool:
    own = _stems(printed)
    return len(own) >= rules.own and len(own & _stems(words)) < rules.related


def _stems(words: Sequence[str]) -> set[str]:
    """The subject of a text: its words of four letters or more without the common ones, cut to six letters, so that
    `resistivity` and `resistive` are one; and numbers of two digits or more."""
    return {
        word[:6]
        for word in words
        if word not in COMMON and ((len(word) >= 4 and word.isalpha()) or (len(word) >= 2 and word.isdecimal()))
    }
