"""SciReasoner's group Bio_Instruction: DNA, RNA and their partners, with labels and numbers in free text.

The published scorer asks a classifier (BART-large-MNLI) about answers in which its words find neither yes nor no; here
such an answer is wrong.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from trainer.evaluation.scorers.biology import tasks
from trainer.evaluation.scorers.metric import Figures, Metric, Row

# searched in lower case, so that the published words with capitals add nothing
_DENIALS = (
    "no|negative|insoluble|does not|unlikely|absence|not found|not detected|not associated|not inferred|not linked|"
    "does not indicate|no evidence|not predicted|absent|not present|no indicators|not exhibit|are absent|found none|"
    "did not reveal|lacks|exhibits no|insolubility|low solubility|not soluble|not be soluble|"
    "does not display regions|cannot confirm"
)
_AFFIRMATIONS = (
    "yes|positive|empirical|plausible|confirms|have detected|are discernible|are supported|is supported|display|"
    "detected the presence|shows evidence|has been identified|shows|has identified|contains |exhibits evidence|"
    "is plausible|contains identifiable|reveals the presence|include|are present|definitely has|soluble|"
    "displays regions|has a high solubility|dissolves easily|is expected|is predicted|is likely|will dissolve"
)
_DOUBTS = "don't know|unknown|unsure|uncertain|not applicable"
_WORDS = [
    (re.compile(rf"\b(?:{words})\b"), value)
    for words, value in ((_DENIALS, "no"), (_AFFIRMATIONS, "yes"), (_DOUBTS, "unknown"))
]
# a minus may be a hyphen that does not break
_NUMBER = re.compile("(?<![a-zA-Z])[-\u2011]?\\d+\\.?\\d*")
MODIFICATIONS = ("AtoI", "m6Am", "m1A", "m5C", "m5U", "m6A", "m7G", "Psi", "Am", "Cm", "Gm", "Um", "none")


def _after(text: str, *marks: str) -> str:
    for mark in marks:
        text = text.rpartition(mark)[2]
    return text


def word(text: str) -> str:
    """`no`, `yes`, `unknown` or an empty text: words that deny come before those that affirm and those that doubt."""
    low = text.lower()
    return next((value for pattern, value in _WORDS if pattern.search(low)), "")


def numbers(text: str) -> list[float]:
    """The decimal numbers that follow no letter, to six digits. 5' and 3', the ends of a strand, are none."""
    text = text.replace("5'", "five'").replace("3'", "three")
    return [float(f"{float(found.replace(chr(0x2011), '-')):.6g}") for found in _NUMBER.findall(text)]


def _sign(answer: str, reference: str) -> dict[str, Any]:
    if not isinstance(reference, str):
        raise ValueError(f"the label {reference!r} is not a text")
    wanted = reference == "positive"
    found = word(_after(answer, "<summary>", "</think>"))
    read = found in ("yes", "no")
    return {"found": found == "yes" if read else not wanted, "wanted": wanted, "parsed": read}


matthews = Metric(_sign, tasks.matthews.combine)
"""Matthews correlation in per cent of yes and no; references are `positive` or anything else."""


def _single(most: float) -> Callable[[str, Any], dict[str, Any]]:
    def one(answer: str, reference: Any) -> dict[str, Any]:
        """The number of an answer that has just one, and that not over `most`."""
        text = _after(answer, "<summary>")
        unfinished = "<think>" in text and "</think>" not in text
        found = [] if unfinished else numbers(_after(text, "</think>"))
        value = found[0] if len(found) == 1 and found[0] <= most and math.isfinite(found[0]) else None
        return {"pairs": {"": [_number(reference), value]}, "parsed": value is not None}

    return one


def _number(value: Any) -> float:
    try:
        found = float(value)
    except TypeError:
        raise ValueError(f"the label {value!r} is not a number") from None
    if not math.isfinite(found):
        raise ValueError(f"the label {value!r} is not a finite number")
    return found


squared_pearson = Metric(_single(math.inf), tasks.squared_pearson.combine)
"""Square of Pearson's correlation in per cent of the answers with one number, times their share of all."""
isoform = Metric(_single(80.0), tasks.squared_pearson.combine)
"""As `squared_pearson`; a number over 80 counts as none."""


def _ranked(rows: Sequence[Row]) -> Figures:
    """Answers over 300 are left out of the correlation and still count in the share that could be read."""
    pairs = [row["pairs"][""] for row in rows]
    read = [{"pairs": {"": pair}} for pair in pairs if pair[1] is not None]
    near = [row for row in read if row["pairs"][""][1] <= 300]
    if not near:
        return Figures(0.0)
    return Figures(tasks.spearman.combine(near).value * len(read) / len(rows))


spearman = Metric(_single(math.inf), _ranked)
"""Spearman correlation in per cent of the answers with one number, times their share of all."""


def _mixed(rows: Sequence[Row]) -> Figures:
    pairs = [row["pairs"][""] for row in rows]
    found = [math.inf if pair[1] is None else pair[1] for pair in pairs]
    return Figures(tasks.mixed([pair[0] for pair in pairs], found) * 100)


mixed = Metric(_single(math.inf), _mixed)
"""The mixed score of siRNA efficiency in per cent; an answer without a number counts as one over 1,000."""


def _several(*names: str) -> Callable[[str, Any], dict[str, Any]]:
    """The numbers of an answer that has as many as there are names, in their order."""

    def one(answer: str, reference: Any) -> dict[str, Any]:
        if not isinstance(reference, Mapping) or not reference.keys() >= set(names):
            raise ValueError(f"the label {reference!r} has not the names {', '.join(names)}")
        found: list[Any] = [*numbers(_after(answer, "</think>"))]
        read = len(found) == len(names)
        found = [value if math.isfinite(value) else None for value in found] if read else [None] * len(names)
        pairs = {name: [_number(reference[name]), value] for name, value in zip(names, found, strict=True)}
        return {"pairs": pairs, "parsed": read}

    return one


switches = Metric(_several("ON", "OFF", "ON_OFF"), tasks.squared_pearson.combine)
"""As `squared_pearson`, averaged over three numbers."""
enhancers = Metric(_several("hk", "dev"), tasks.pearson.combine)
"""Pearson's correlation in per cent, averaged over two numbers."""


def _labels(answer: str, reference: str) -> dict[str, Any]:
    if not isinstance(reference, str):
        raise ValueError(f"the label {reference!r} is not a text")
    text = _after(answer, "<summary>", "</think>")
    found = {label for label in MODIFICATIONS if re.search(rf"\b{label}\b", text)}
    said = "" if found or not text.strip() else word(text)
    if said == "no":
        found = {"none"}
    wanted = reference.split(",")
    return {
        "found": [label in found for label in MODIFICATIONS],
        "wanted": [label in wanted for label in MODIFICATIONS],
        "parsed": bool(found or said),
    }


def _area(rows: Sequence[Row]) -> Figures:
    from sklearn.metrics import roc_auc_score

    wanted, found = ([[int(value) for value in row[name]] for row in rows] for name in ("wanted", "found"))
    if any(len(set(column)) < 2 for column in zip(*wanted, strict=True)):
        return Figures(math.nan)  # not defined for a label that all rows have, or none
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Figures(float(roc_auc_score(wanted, found, average="macro")) * 100 if rows else math.nan)


modifications = Metric(_labels, _area)
"""Area under the ROC curve in per cent, averaged over the modifications that an answer names, or `none`."""
