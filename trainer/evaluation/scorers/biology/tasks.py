"""Metrics of Biology-Instructions but Fmax, as OpenCompass 0.5.4 computes them (datasets/biodata.py). In per cent.

An answer that cannot be read counts as infinitely far: correlations are those of the other rows times their share.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from trainer.evaluation.scorers import extract
from trainer.evaluation.scorers.metric import Figures, Metric, Row, of_means

_SIGNS = {"positive": 1, "negative": 0, "yes": 1, "no": 0}
_WORDS = {"positive": "yes", "negative": "no"}
MODIFICATIONS = ("atoi", "m6a", "none", "m1a", "m5c", "m5u", "m6am", "m7g", "cm", "am", "gm", "um", "psi")


def _boxed(answer: str) -> str:
    return extract.boxed(extract.after_thinking(answer)) or ""


def _sign(answer: str, reference: str) -> dict[str, Any]:
    wanted = _SIGNS[reference.lower()]
    found = _SIGNS.get(_boxed(answer).lower())
    # unreadable: the opposite of the reference
    return {"found": 1 - wanted if found is None else found, "wanted": wanted, "parsed": found is not None}


def _matthews(rows: Sequence[Row]) -> Figures:
    from sklearn.metrics import matthews_corrcoef

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one label alone: 0 by definition
        value = matthews_corrcoef([row["wanted"] for row in rows], [row["found"] for row in rows])
    return Figures(float(value) * 100)


matthews = Metric(_sign, _matthews)
"""Matthews correlation of yes/positive and no/negative in the last box."""


def _numbers(answer: str, reference: float | Mapping[str, float]) -> dict[str, Any]:
    """Pairs by name: of a mapping its keys, of a number the name "". None: nothing that can be read."""
    answer = extract.after_thinking(answer)
    if not isinstance(reference, Mapping):
        found = extract.numbers(answer)
        number = _float(found[-1]) if found else None
        return {"pairs": {"": [float(reference), number]}, "parsed": number is not None}
    named = extract.mapping(answer)
    parsed = bool(named) and named.keys() == reference.keys() if named is not None else False
    pairs = {
        key: [float(wanted), _float(named[key]) if named and parsed else None] for key, wanted in reference.items()
    }
    return {"pairs": pairs, "parsed": all(found is not None for _, found in pairs.values())}


def _float(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _correlation(measure: Callable[[Any, Any], float]) -> Metric:
    """Mean over the names of `measure` (wanted, found) of the rows that could be read, times their share of all."""

    def combine(rows: Sequence[Row]) -> Figures:
        columns: dict[str, list[list[float | None]]] = {}
        for row in rows:
            for name, pair in row["pairs"].items():
                columns.setdefault(name, []).append(pair)
        values = []
        for pairs in columns.values():
            read = [pair for pair in pairs if pair[1] is not None]
            values.append(_quietly(measure, read) * len(read) / len(pairs) if read else 0.0)
        return Figures(sum(values) / len(values) * 100 if values else math.nan)

    return Metric(_numbers, combine)


def _quietly(measure: Callable[[Any, Any], float], pairs: Sequence[Sequence[float | None]]) -> float:
    """NaN for constant columns and for fewer than two rows, where a correlation is not defined."""
    if len(pairs) < 2:
        return math.nan
    wanted, found = zip(*pairs, strict=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return float(measure(wanted, found))


def _pearson(wanted: Any, found: Any) -> float:
    from scipy.stats import pearsonr

    return float(pearsonr(wanted, found)[0])


def _spearman(wanted: Any, found: Any) -> float:
    from scipy.stats import spearmanr

    return float(spearmanr(wanted, found)[0])


pearson = _correlation(_pearson)
"""Pearson correlation, of each key of the answer's mapping, averaged over keys."""
spearman = _correlation(_spearman)
"""Spearman correlation of the number in the box."""
squared_pearson = _correlation(lambda wanted, found: _pearson(wanted, found) ** 2)
"""The square of Pearson's correlation, which the benchmark calls R2, of a number or averaged over a mapping's keys."""


def _labels(answer: str, reference: str) -> dict[str, Any]:
    found, wanted = (
        {part.strip() for part in text.lower().split(",") if part.strip()} for text in (_boxed(answer), reference)
    )
    return {
        "found": [label in found for label in MODIFICATIONS],
        "wanted": [label in wanted for label in MODIFICATIONS],
        "parsed": bool(_boxed(answer)),
    }


def _macro_auc(rows: Sequence[Row]) -> Figures:
    from sklearn.metrics import roc_auc_score

    areas = []
    for place in range(len(MODIFICATIONS)):
        # 0 is the label's presence, as in the published scorer: the area is the same, but an unreadable answer, which
        # is all zeros there, then names every label
        wanted = [int(not row["wanted"][place]) for row in rows]
        found = [int(row["parsed"] and not row["found"][place]) for row in rows]
        if len(set(wanted)) == 2:
            areas.append(float(roc_auc_score(wanted, found)))
    return Figures(sum(areas) / len(areas) * 100 if areas else math.nan)


modification_auc = Metric(_labels, _macro_auc)
"""Area under the ROC curve of each RNA modification, averaged over those that some rows have and others have not."""


def _same_word(answer: str, reference: str) -> dict[str, Any]:
    found = extract.boxed(answer)  # this task alone does not cut the thinking off first
    if not found:
        return {"score": False, "parsed": False}
    found = found.lower()
    wanted = _WORDS.get(reference, reference).lower()
    return {"score": _WORDS.get(found, found) == wanted, "parsed": True}


same_word = of_means(_same_word, unit=100)
"""Percentage of boxes that hold the reference's word; positive counts as yes and negative as no."""


def _efficiency(answer: str, reference: float) -> dict[str, Any]:
    found = extract.numbers(extract.after_thinking(answer))
    return {"found": found[-1] if found else 0.0, "wanted": float(reference), "parsed": bool(found)}


def _mixed(rows: Sequence[Row]) -> Figures:
    return Figures(mixed([float(row["wanted"]) for row in rows], [float(row["found"]) for row in rows]) * 100)


def mixed(wanted: Sequence[float], found: Sequence[float], low: float = 30.0, high: float = 1e3) -> float:
    """Half of 1 - MAE/100, and half of F1 times 1 - (MAE of the answers between 0 and `low`)/100.

    F1 is that of being under `low`. Errors are cut at 100, and are 100 where no answer is between 0 and `low`. Answers
    over `high` in magnitude count as 0 by their share.
    """
    import numpy as np
    from sklearn.metrics import precision_score, recall_score

    true, guess = np.asarray(wanted, float), np.asarray(found, float)
    near = np.abs(guess) <= high
    if not near.any():
        return 0.0 if len(guess) else math.nan
    true, guess = true[near], guess[near]
    labels = (true < low).astype(int), (guess < low).astype(int)
    precision, recall = precision_score(*labels, zero_division=0), recall_score(*labels, zero_division=0)
    f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    error = min(float(np.mean(np.abs(true - guess))), 100.0)
    inside = (guess >= 0) & (guess <= low)
    low_error = min(float(np.mean(np.abs(true - guess)[inside])), 100.0) if inside.any() else 100.0
    score = (1 - error / 100) * 0.5 + (1 - low_error / 100) * f1 * 0.5
    return float(score * near.sum() / len(near))


mixed_efficiency = Metric(_efficiency, _mixed)
"""The mixed score of siRNA efficiency."""
