"""Figures of a model of subjects: its accuracy, and how far its probabilities are from frequencies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.corpora.captions.routing.fit import Labelled, documents, labels_of, weights_of
from trainer.corpora.captions.routing.stage import Model
from trainer.corpora.captions.routing.subjects import SUBJECTS

BINS = 10
OTHER = SUBJECTS.index("other")
LENGTHS = ((1, 20), (20, 40), (40, 80), (80, 10_000))  # words of caption and context


@dataclass(frozen=True)
class Reliability:
    """Probabilities in BINS equal bins. rows: (share of the texts, mean probability, share that is so). error: the
    expected calibration error, sum of share * |mean probability - share that is so| (Naeini, Cooper and Hauskrecht,
    2015)."""

    rows: tuple[tuple[float, float, float], ...]
    error: float


def reliability(probabilities_N: NDArray[Any], true_N: NDArray[Any], weights_N: NDArray[Any]) -> Reliability:
    """Compare probabilities with what is so (0 or 1). Bins without a text have no row."""
    bins = np.minimum((probabilities_N * BINS).astype(int), BINS - 1)
    rows = []
    for number in range(BINS):
        inside = bins == number
        if weight := weights_N[inside].sum():
            mean = (probabilities_N[inside] * weights_N[inside]).sum() / weight
            so = (true_N[inside] * weights_N[inside]).sum() / weight
            rows.append((float(weight / weights_N.sum()), float(mean), float(so)))
    return Reliability(tuple(rows), sum(share * abs(mean - so) for share, mean, so in rows))


def measure(model: Model, texts: Sequence[Labelled], size: int) -> dict[str, Any]:
    """Figures on texts that the model was not trained on, with the weights that `fit` says.

    size: texts that are taken together as the crops of one document. accuracy: of the most probable subject; science:
    of P(not other) >= 0.5. By length, subject and package.
    """
    probabilities = np.concatenate([
        model.probabilities([texts[row].caption for row in rows], [texts[row].context for row in rows])
        for rows in documents(texts, size)
    ])  # fmt: skip
    labels, weights = labels_of(texts), weights_of(texts)
    chosen = probabilities.argmax(1)
    right = chosen == labels
    science = 1 - probabilities[:, OTHER]
    science_right = (science >= 0.5) == (labels != OTHER)
    words = np.array([len(text.caption.split()) + len(text.context.split()) for text in texts])
    packages = np.array([text.package for text in texts])

    def figures(inside: NDArray[np.bool_]) -> dict[str, Any]:
        if not inside.any():
            return {"texts": 0}
        shares = weights[inside]
        return {
            "texts": int(inside.sum()),
            "accuracy": round(float(np.average(right[inside], weights=shares)), 4),
            "science": round(float(np.average(science_right[inside], weights=shares)), 4),
        }

    every = figures(np.ones(len(texts), bool))
    subjects = {subject: figures(labels == place) for place, subject in enumerate(SUBJECTS)}
    found = [one["accuracy"] for one in subjects.values() if one["texts"]]
    confusion = np.zeros((len(SUBJECTS), len(SUBJECTS)), int)
    np.add.at(confusion, (labels, chosen), 1)
    return {
        "all": {**every, "mean_of_subjects": round(float(np.mean(found)), 4)},
        "words": {f"{low}-{high - 1}": figures((words >= low) & (words < high)) for low, high in LENGTHS},
        "subjects": subjects,
        "packages": {name: figures(packages == name) for name in dict.fromkeys(text.package for text in texts)},
        "confusion": confusion.tolist(),
        "reliability_of_subject": asdict(reliability(probabilities.max(1), right, weights)),
        "reliability_of_science": asdict(reliability(science, labels != OTHER, weights)),
    }


def table(figures: dict[str, Any]) -> str:
    """The figures as a person reads them, in Markdown."""
    lines = ["| held out | texts | right subject | right side of science |", "|---|---|---|---|"]
    groups = {"all": figures["all"], **{f"{words} words": found for words, found in figures["words"].items()}}
    for name, found in {**groups, **figures["subjects"], **figures["packages"]}.items():
        if found["texts"]:
            lines.append(f"| {name} | {found['texts']} | {found['accuracy']:.3f} | {found['science']:.3f} |")
    lines += ["", f"mean over the subjects: {figures['all']['mean_of_subjects']:.3f}"]
    for name, what in (("subject", "the subject"), ("science", "science")):
        found = figures[f"reliability_of_{name}"]
        lines += ["", f"probability of {what}: expected calibration error {found['error']:.3f}", ""]
        lines += ["| share of texts | mean probability | true |", "|---|---|---|"]
        lines += [f"| {share:.3f} | {mean:.3f} | {so:.3f} |" for share, mean, so in found["rows"]]
    return "\n".join(lines)
