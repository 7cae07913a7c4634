"""SciTS: labels and events that an answer in words names, as the benchmark's evaluation reads them.

Source: OpenTSLab/TimeOmni, eval_benchmark.py.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from trainer.evaluation.scorers.metric import Figures

# words of an answer that deny and that affirm an event, by data set; with none that affirm, all else does
EVENTS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "GWOSC GW Event": (("no", "not"), ()),
    "MDD": (("healthy",), ("depressive",)),
    "MIMII Due": (("normal",), ("anomaly",)),
    "STEAD": (("no", "not"), ()),
    "TIMECAP": (("not",), ()),
    "TS_MQA": (("normal", "no anomalies"), ("anomaly", "anomalous")),
}


def labels_of(result: Mapping[str, Any]) -> dict[str, list[str]]:
    """The right labels in small letters by key, of `{"answer": "B"}` or `{"gt_class": {"default": ["MI", "CD"]}}`."""
    keyed = {"answer": result["answer"]} if "answer" in result else result["gt_class"]
    return {
        key: [label.lower() for label in (labels if isinstance(labels, list) else [labels])]
        for key, labels in keyed.items()
    }


def classes(answers: Sequence[str], results: Sequence[Mapping[str, Any]]) -> dict[str, Figures]:
    """Figures by key (`default` or `answer` where there is one), of the rows that have it. value: accuracy, 0 to 1, of
    several right labels the share that is named. extra: `uar`, the mean recall, and `f1`, the mean of the labels' F1.

    A label is named where its letters occur anywhere in the answer: "A" in "an arrhythmia" too. Labels are all those
    that some row has; those that are never named, or never right, do not enter F1, and neither does an F1 of 0.
    """
    rows: dict[str, list[tuple[str, list[str]]]] = {}
    for answer, result in zip(answers, results, strict=True):
        for key, right in labels_of(result).items():
            rows.setdefault(key, []).append((answer.lower(), right))
    return {key: _classes(of_key) for key, of_key in rows.items()}


def _classes(rows: Sequence[tuple[str, Sequence[str]]]) -> Figures:
    """rows: (answer in small letters, its right labels)."""
    answers, wanted = [answer for answer, _ in rows], [right for _, right in rows]
    shares, recalls, scores = [], [], []
    for answer, right in zip(answers, wanted, strict=True):
        shares.append(sum(label in answer for label in set(right)) / len(right) if right else 0.0)
    for label in sorted({label for right in wanted for label in right}):
        named = [label in answer for answer in answers]
        truth = [label in right for right in wanted]
        hits = sum(one and other for one, other in zip(named, truth, strict=True))
        if sum(truth):
            recalls.append(hits / sum(truth))
        if hits:
            scores.append(2 * hits / (sum(named) + sum(truth)))
    mean = statistics.fmean
    return Figures(mean(shares), {"uar": mean(recalls) if recalls else 0.0, "f1": mean(scores) if scores else 0.0})


def event(answer: str, data_set: str) -> bool | None:
    """True if an answer reports an event, False if it denies one, None where no word decides. KeyError: data_set."""
    denials, affirmations = EVENTS[data_set]
    low = answer.lower()
    if any(word in low for word in denials):
        return False
    return True if not affirmations or any(word in low for word in affirmations) else None


def events(answers: Sequence[str], results: Sequence[Mapping[str, Any]], data_set: str) -> Figures:
    """value: accuracy, 0 to 1. extra: `f1`; `decided`, the share of answers that decide; `mean_error` and
    `median_error`, relative, of the times of events that are there and reported.

    Times are the first whole numbers of an answer, matched with the reference's in their order.
    """
    found = [event(answer, data_set) for answer in answers]
    truth = [bool(result.get("contain", False)) for result in results]
    pairs = [(one, other) for one, other in zip(found, truth, strict=True) if one is not None]
    hits = sum(one and other for one, other in pairs)
    positives = sum(one for one, _ in pairs) + sum(other for _, other in pairs)
    errors = []
    for answer, result, one, other in zip(answers, results, found, truth, strict=True):
        if one and other:
            times = [value for key, value in result.items() if key != "contain" and _is_time(value)]
            guesses = (int(digits) for digits in re.findall(r"\d+", answer) if len(digits) < 300)
            errors += [abs(guess - time) / abs(time) for time, guess in zip(times, guesses, strict=False)]
    return Figures(
        sum(one == other for one, other in pairs) / len(answers),
        {
            "f1": 2 * hits / positives if hits else 0.0,
            "decided": len(pairs) / len(answers),
            "mean_error": statistics.fmean(errors) if errors else 0.0,
            "median_error": statistics.median(errors) if errors else 0.0,
        },
    )


def _is_time(value: Any) -> bool:
    return isinstance(value, int | float) and value is not False and value is not True
