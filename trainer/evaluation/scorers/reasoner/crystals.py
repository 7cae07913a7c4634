"""SciReasoner's group LLM4Mat: properties of crystals, in answers such as `{band_gap : 1.2}`."""

from __future__ import annotations

import json
import math
import re
import statistics
from collections.abc import Sequence
from typing import Any

from trainer.evaluation.scorers.metric import Figures, Metric, Row
from trainer.evaluation.scorers.reasoner.sequences import without_thinking

_GAPS, _TRUTHS = ("Indirect", "Direct"), ("True", "False")
LABELS: dict[str, tuple[str, str]] = {
    "Direct_or_indirect": _GAPS,
    "Direct_or_indirect_HSE": _GAPS,
    "SOC": _TRUTHS,
    "is_gap_direct": _TRUTHS,
    "is_stable": _TRUTHS,
}
"""Properties that are labels and not numbers, with their two values."""
_POSITIVE = ("Direct", "True")
_YES, _NO = ("true", "yes"), ("false", "no")


def value_in(text: str, name: str) -> float | str | None:
    """The value of a property in an answer: a number or a label; None where it cannot be read.

    The text as JSON, a code block's fences aside; else the last name before a colon in the first `{...}`.
    """
    text = without_thinking(text.strip())
    text = re.sub(r"^```(?:json)?\s*|\s*```$", "", text.strip(), flags=re.IGNORECASE | re.MULTILINE)
    try:
        stored = json.loads(text)
    except ValueError:
        stored = None
    if isinstance(stored, dict) and name in stored:
        found = stored[name]
        if isinstance(found, int | float):
            return float(found)
        return _label(str(found), name) if name in LABELS else _number(str(found))
    return _searched(text, name)


def _searched(text: str, name: str) -> float | str | None:
    pattern = rf"""\{{[^{{}}]*["']?{re.escape(name)}["']?\s*:\s*["']?(.*?)["']?\s*\}}"""
    found = re.search(pattern, text, re.DOTALL | re.IGNORECASE)
    if not found:
        return None
    value = found[1].strip().strip('"')
    return _label(value, name) if name in LABELS else _number(value)


def _label(text: str, name: str) -> str | None:
    low = text.lower()
    if LABELS[name] == _TRUTHS:
        return "True" if low in _YES else "False" if low in _NO else None
    return next((label for label in _GAPS if label.lower() == low), None)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _one(name: str) -> Any:
    def one(answer: str, reference: str) -> dict[str, Any]:
        found, wanted = value_in(answer, name), value_in(reference, name)
        if isinstance(found, float) and not math.isfinite(found):
            found = None
        return {"found": found, "wanted": wanted, "parsed": found is not None}

    return one


def _ratio(rows: Sequence[Row]) -> Figures:
    pairs = [(row["wanted"], row["found"]) for row in rows if _finite(row["wanted"]) and _finite(row["found"])]
    if not pairs:
        return Figures(math.nan)
    middle = statistics.fmean(wanted for wanted, _ in pairs)
    spread = statistics.fmean(abs(wanted - middle) for wanted, _ in pairs)
    error = statistics.fmean(abs(wanted - found) for wanted, found in pairs)
    return Figures(spread / error if error else math.nan, {"mae": error, "mad": spread})


def _finite(value: Any) -> bool:
    return isinstance(value, float) and math.isfinite(value)


def _area(rows: Sequence[Row]) -> Figures:
    from sklearn.metrics import roc_auc_score

    # a number in place of a label is not a label, except 1 and 0, which Python takes for True and False
    pairs = [(_truth(row["wanted"]), _truth(row["found"])) for row in rows]
    pairs = [pair for pair in pairs if None not in pair]
    if len({wanted for wanted, _ in pairs}) < 2:
        return Figures(math.nan)
    return Figures(float(roc_auc_score([wanted for wanted, _ in pairs], [found for _, found in pairs])))


def _truth(value: Any) -> bool | None:
    if isinstance(value, float):
        return bool(value) if value in (0.0, 1.0) else None
    return None if value is None else value in _POSITIVE


def property_of(name: str) -> Metric:
    """The ratio MAD / MAE of a number: the mean absolute deviation from the mean over the mean absolute error (higher
    is better, 1 for always guessing the mean). For a label the area under the ROC curve, 0 to 1. Rows that cannot be
    read are left out, as in the published scorer; NaN where nothing is left."""
    return Metric(_one(name), _area if name in LABELS else _ratio)
