"""SciReasoner's groups GUE, PEER and OPI: sequences of DNA and proteins."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from typing import Any

from trainer.evaluation.scorers.metric import Figures, Metric, Row, mean, of_means

_DENIALS = ("negative", "no", "absence", "not", "cannot", "fails", "absent", "lacks")
_AFFIRMATIONS = (
    "positive|positively|presence|detected|identified|identifiable|found|yes|located|detectable|observable|evident|"
    "absolutely|affirmative|can|affirm|confirm|confirms|reveals|existence|certainly|consistent|recognizable|shows core|"
    "shows promoter|shows characteristic|evidenced by|seeing characteristic patterns|includes|contains sequences|"
    "exhibits clear|contains transcription|exhibits sequences|clearly contains|recognized|exhibits features|"
    "contains regulatory|shows clear|displays|definitely has|exhibits patterns|clear evidence|contains a|yep|"
    "contains sites|shows sequences"
)
_SOLUBLE = (
    "will be soluble|will dissolve|is soluble|can be predicted|positive|Yes|correct|valid|accurate|certainly|indeed|"
    "affirmative|highly soluble|easily soluble|dissolves easily|is assured|be soluble"
)
_INSOLUBLE = (
    "will not be soluble|is not soluble|will not dissolve|low solubility|low|cannot be predicted|negative|No|incorrect|"
    "invalid|inaccurate|impossible|not possible|denied|be insoluble"
)


def without_thinking(text: str) -> str:
    """The text without its <think> parts; empty where one is not closed."""
    if "<think>" in text and "</think>" not in text:
        return ""
    return re.sub("<think>.*?</think>", "", text, flags=re.DOTALL)


def after_thinking(text: str) -> str:
    """The text without its <think> parts; of what is left, the part after the last </think>."""
    text = re.sub("<think>.*?</think>", "", text, flags=re.DOTALL)
    return text.rpartition("</think>")[2].lstrip() if "</think>" in text else text


def sign(text: str) -> str:
    """`positive`, `negative` or an empty text: "The prediction result is ...", else words that deny, then affirm."""
    text = without_thinking(text.strip())
    if found := re.search(r"\bThe prediction result is\s+(positive|negative)\b", text, re.IGNORECASE):
        return found[1].lower()
    for words, value in (("|".join(_DENIALS), "negative"), (_AFFIRMATIONS, "positive")):
        if re.search(rf"\b(?:{words})\b", text, re.IGNORECASE):
            return value
    return ""


def _signs(answer: str, reference: str) -> dict[str, Any]:
    found = sign(answer)
    # what is not positive counts as negative
    return {"found": found == "positive", "wanted": reference.strip().lower() == "positive", "parsed": found != ""}


def _matthews(rows: Sequence[Row]) -> Figures:
    from sklearn.metrics import matthews_corrcoef

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one label alone: 0 by definition
        return Figures(float(matthews_corrcoef([r["wanted"] for r in rows], [r["found"] for r in rows])) * 100)


gue = Metric(_signs, _matthews)
"""Matthews correlation in per cent; the reference is `positive` or `negative`."""


def yes_or_no(text: str) -> str:
    """`yes`, `no` or an empty text: "The answer is ...", else phrases that affirm and then such that deny.

    Phrases are found inside words as well, and "is not soluble" is found after "be soluble" and "correct", so that
    "incorrect" affirms.
    """
    text = after_thinking(text)
    if found := re.search(r"The answer is\s+(Yes|No)", text, re.IGNORECASE):
        return found[1].lower()
    for phrases, value in ((_SOLUBLE, "yes"), (_INSOLUBLE, "no")):
        if re.search(phrases, text, re.IGNORECASE):
            return value
    return ""


def over_one(text: str) -> str:
    """`yes` if the first number of a text is over 1, `no` if it is not, an empty text without a number."""
    text = after_thinking(text)
    found = re.search(r"[-+]?\d*\.\d+|\d+", text)
    return "" if not found else "yes" if float(found[0]) > 1 else "no"


def _agreement(answer: str, reference: str) -> dict[str, Any]:
    found = yes_or_no(answer)
    return {"score": found != "" and found == yes_or_no(reference), "parsed": found != ""}


def _stable(answer: str, reference: str) -> dict[str, Any]:
    found = over_one(answer)
    return {"score": found != "" and found == over_one(reference), "parsed": found != ""}


peer = of_means(_agreement, unit=100)
"""Accuracy in per cent of yes or no. The published suite asks a judge about the answers that this rule calls wrong."""
stability = of_means(_stable, unit=100)
"""Accuracy in per cent of a number being over 1."""


def _plain(text: str) -> str:
    """The text without two end marks and the spaces around it."""
    return re.sub(r"<\|endoftext\|>|<\|im_end\|>", "", text.strip()).strip()


def _parts(text: str) -> set[str]:
    return {part.strip() for part in re.split(r"[;,，；]\s*", _plain(text)) if part.strip()}


def _listed(answer: str, reference: str) -> dict[str, Any]:
    found, wanted = _parts(answer), _parts(reference)
    f1 = 2 * len(found & wanted) / (len(found) + len(wanted)) if found & wanted else 0.0
    return {"score": f1 if wanted else None, "parsed": bool(found)}


def _rounded(rows: Sequence[Row]) -> Figures:
    kept = [row for row in rows if row["score"] is not None]
    return Figures(round(mean(kept), 4) if kept else 0.0)


listed = Metric(_listed, _rounded)
"""Mean F1, 0 to 1, rounded to four digits, of lists with commas or semicolons; empty references are left out."""


def _same(answer: str, reference: str) -> dict[str, Any]:
    return {"score": float(_plain(answer) == _plain(reference))}


same = Metric(_same, _rounded)
"""Share, 0 to 1, rounded to four digits, of answers that are the reference, spaces at the ends aside."""


def _rouge(answer: str, reference: str) -> dict[str, Any]:
    from rouge_score.rouge_scorer import RougeScorer

    found = RougeScorer(["rougeL"], use_stemmer=True).score(_plain(reference), _plain(answer))
    return {"score": float(found["rougeL"].fmeasure)}


rouge = Metric(_rouge, _rounded)
"""Mean ROUGE-L F, 0 to 1, rounded to four digits, of rouge-score with stems."""
