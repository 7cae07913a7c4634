"""MatBench's tasks in text form, as OpenCompass 0.5.4 scores them without a judge.

Source: opencompass/datasets/matbench/matbench.py and post_process.py.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from trainer.evaluation.scorers.metric import Figures, Metric, Row, mean

_ELEMENTS = """
H Li Be B C N O F Na Mg Al Si P S Cl K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As Se Br Rb Sr Y Zr Nb Mo Tc Ru Rh Pd Ag
Cd In Sn Sb Te I Cs Ba La Ce Pr Nd Pm Sm Eu Gd Tb Dy Ho Er Tm Yb Lu Hf Ta W Re Os Ir Pt Au Hg Tl Pb Bi Po At Fr Ra Ac
Th Pa U Np Pu Am Cm Bk Cf Es Fm Md No Lr Rf Db Sg Bh Hs Mt Ds Rg Cn Nh Fl Mc Lv Ts
"""
_UNIT = r"[A-Z][a-z]?\d*"
_FORMULA = re.compile(rf"\b(?:{_UNIT})+(?:\((?:{_UNIT})+\)\d*)*\b")
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")


def without_formulas(text: str) -> str:
    """The text without chemical formulas, and without every word that holds the symbol of an element."""
    text = _FORMULA.sub("", text)
    for symbol in [symbol for symbol in _ELEMENTS.split() if symbol in text]:
        text = re.sub(rf"\b\w*{symbol}\w*\b", "", text)
    return text


def number(text: str) -> float:
    """The number that a text answers: the last `answer: x`, else its last number, else 0.

    A negative number loses its sign and one from 20 on becomes 0, as in the published scorer.
    """
    text = without_formulas(text)
    labelled = re.findall(r"answer:(-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?)", text.lower().replace(" ", ""))
    found = labelled or _NUMBER.findall(text)
    value = float(found[-1]) if found else 0.0
    if value < 0:
        return abs(value)
    return value if value < 20 else 0.0


def affirms(text: str) -> bool:
    """True unless the text denies.

    Spaces and case do not count. `answer: true` and `answer: false` decide first; then `no` anywhere, inside words too
    ("known" denies), is a denial, and everything else affirms, an empty text included. The published scorer has further
    rules ("does not", "yes", "it is", "has"), but they never change the outcome.
    """
    text = text.lower().replace(" ", "")
    for label, value in (("answer:true", True), ("answer:false", False)):
        if label in text:
            return value
    return "no" not in text


def _error(answer: str, reference: Any) -> dict[str, Any]:
    try:
        return {"score": abs(number(answer) - float(reference))}
    except (TypeError, ValueError):
        return {"score": None}


def _mean_error(rows: Sequence[Row]) -> Figures:
    found = [row for row in rows if row["score"] is not None]
    return Figures(mean(found) if found else 0.0)


absolute_error = Metric(_error, _mean_error, higher=False)
"""Mean absolute error of `number`; rows whose reference is not a number are left out, and of none the figure is 0."""


def _agreement(rows: Sequence[Row]) -> Figures:
    from sklearn.metrics import precision_recall_fscore_support

    wanted, found = ([row[name] for row in rows] for name in ("wanted", "found"))
    precision, recall, f1, _ = precision_recall_fscore_support(wanted, found, average="binary", zero_division=0)
    return Figures(mean(rows), {"precision": float(precision), "recall": float(recall), "f1": float(f1)})


def _affirmed(answer: str, reference: Any) -> dict[str, Any]:
    found, wanted = affirms(answer), bool(reference)
    return {"score": found == wanted, "found": found, "wanted": wanted}


agreement = Metric(_affirmed, _agreement)
"""Accuracy, 0 to 1, of yes or no. extra: `precision`, `recall`, `f1`, of scikit-learn with True as the positive."""
