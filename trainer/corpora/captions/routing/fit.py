"""Trains the model of subjects, and measures it on packages that it was not trained on."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.corpora.captions.routing.features import Counted, counted_features
from trainer.corpora.captions.routing.model import Calibration, Scored, TextModel, known_features
from trainer.corpora.captions.routing.subjects import PLACES, SUBJECTS
from trainer.data.errors import DataError
from trainer.data.hashing import text_key

MOST_FEATURES = 40_000
PACKAGES = 3  # that a feature must occur in: one that one package alone uses says which package it is
STRENGTH = 1.0  # of the fit against the pull of weights to zero (C of scikit-learn)
FOLDS = 3
NEVER = -1000.0  # the bias of a subject without texts
DOCUMENTS = (1, 2, 4, 8, 16)
HALF = 0.5  # of the training texts lose their context, since many crops have only a caption


@dataclass(frozen=True)
class Labelled:
    """A text with the package that it is from and that package's subject."""

    package: str
    subject: str
    caption: str
    context: str


def fit(texts: Sequence[Labelled], *, features: int = MOST_FEATURES, folds: int = FOLDS) -> TextModel:
    """A calibrated model. Science and `other` have the same weight, each science subject has the same, and within it
    each package by the square root of its size.

    The calibration is fitted on the answers of models that did not see the package of the text (`folds` groups of
    packages), for documents of DOCUMENTS texts. The same texts give the same model, on machines whose floating-point
    sums are alike. A subject without texts gets the probability 0. Raises DataError for texts of a single subject.
    """
    texts = [_shortened(text) for text in texts]
    counted = [counted_features(text.caption, text.context) for text in texts]
    model = _fit_weights(texts, counted, features)
    fold_of = _folds(texts, folds)
    order: list[int] = []
    scores: list[Scored] = []
    for fold in range(folds):
        seen = [row for row, text in enumerate(texts) if fold_of[text.package] != fold]
        inside = _fit_weights([texts[row] for row in seen], [counted[row] for row in seen], features)
        for rows in documents(texts):
            if fold_of[texts[rows[0]].package] == fold:
                order += rows
                scores.append(inside.score([counted[row] for row in rows]))
    scored = Scored(*(np.concatenate([vars(one)[name] for one in scores]) for name in vars(scores[0])))
    ordered = [texts[row] for row in order]
    return replace(model, calibration=calibrate(scored, labels_of(ordered), weights_of(ordered)))


def documents(texts: Sequence[Labelled], size: int | None = None) -> list[list[int]]:
    """Places of texts that are taken for those of one document: neighbours of one package, `size` of them, or as many
    as DOCUMENTS says in turn."""
    found: list[list[int]] = []
    room = 0
    for place, text in enumerate(texts):
        if not room or texts[found[-1][-1]].package != text.package:
            found.append([])
            room = size or DOCUMENTS[len(found) % len(DOCUMENTS)]
        found[-1].append(place)
        room -= 1
    return found


def _shortened(text: Labelled) -> Labelled:
    alone = text_key("alone", text.caption, text.context) % 1000 < 1000 * HALF
    return replace(text, context="") if alone and len(text.caption.split()) >= 8 else text


def labels_of(texts: Iterable[Labelled]) -> NDArray[np.intp]:
    return np.array([PLACES[text.subject] for text in texts])


def weights_of(texts: Sequence[Labelled]) -> NDArray[np.float64]:
    """Weights of the texts, as `fit` says; their mean is 1."""
    sizes = Counter((text.subject, text.package) for text in texts)
    totals: dict[str, float] = defaultdict(float)
    for (subject, _), size in sizes.items():
        totals[subject] += size**0.5
    sciences = len({*totals} - {"other"})
    shares = {subject: sciences if subject == "other" and sciences else 1 for subject in totals}
    raw = np.array([
        shares[text.subject] * sizes[text.subject, text.package] ** -0.5 / totals[text.subject] for text in texts
    ])  # fmt: skip
    return raw * len(texts) / raw.sum()


def _folds(texts: Sequence[Labelled], folds: int) -> dict[str, int]:
    """Packages dealt out to the folds, subject by subject."""
    found: dict[str, int] = {}
    for subject in SUBJECTS:
        packages = sorted({text.package for text in texts if text.subject == subject}, key=lambda name: text_key(name))
        found.update({package: place % folds for place, package in enumerate(packages)})
    return found


def _fit_weights(texts: Sequence[Labelled], counted: Sequence[Counted], most: int) -> TextModel:
    """A model that is not calibrated."""
    from scipy.sparse import csr_matrix
    from sklearn.linear_model import LogisticRegression

    numbers = np.concatenate([found for found, _ in counted])
    names = {name: place for place, name in enumerate(dict.fromkeys(text.package for text in texts))}
    package_N = np.repeat([names[text.package] for text in texts], [len(found) for found, _ in counted])
    pairs = np.unique(numbers.astype(np.uint64) * len(names) + package_N.astype(np.uint64))  # of feature and package
    _, packages = np.unique(pairs // len(names), return_counts=True)
    every, texts_with = np.unique(numbers, return_counts=True)  # in the order of `packages`
    shared = np.flatnonzero(packages >= PACKAGES)
    shared = np.sort(shared[np.argsort(-texts_with[shared], kind="stable")[:most]])
    features_F = every[shared]
    rarity_F = (1 + np.log(len(texts) / texts_with[shared])).astype(np.float16)
    subjects = sorted({*labels_of(texts)})
    if len(subjects) < 2 or not len(features_F):
        remedy = f"give packages of two subjects or more, in which words occur in {PACKAGES} packages"
        raise DataError(f"too few texts to train on; {remedy}", where="packages", allowed=remedy)
    rows = [known_features(features_F, rarity_F, text) for text in counted]
    starts = np.cumsum([0, *(len(places) for places, _ in rows)])
    x = csr_matrix((np.concatenate([v for _, v in rows]), np.concatenate([p for p, _ in rows]), starts),
                   shape=(len(texts), len(features_F)), dtype=np.float32)  # fmt: skip
    fitted = LogisticRegression(C=STRENGTH, max_iter=200, tol=1e-3).fit(x, labels_of(texts), weights_of(texts))
    weights_SF, bias_S = np.zeros((len(SUBJECTS), len(features_F))), np.full(len(SUBJECTS), NEVER, np.float32)
    two = len(subjects) == 2  # scikit-learn then has the weights of the second alone
    weights_SF[subjects] = np.concatenate([-fitted.coef_, fitted.coef_]) / 2 if two else fitted.coef_
    bias_S[subjects] = np.concatenate([-fitted.intercept_, fitted.intercept_]) / 2 if two else fitted.intercept_
    scale_S = (np.maximum(np.abs(weights_SF).max(1), 1e-12) / 127).astype(np.float32)
    weights_FS = np.ascontiguousarray(np.rint(weights_SF / scale_S[:, None]).astype(np.int8).T)
    return TextModel(features_F, rarity_F, weights_FS, scale_S, bias_S, Calibration(), {})


def calibrate(scored: Scored, labels_N: NDArray[np.intp], weights_N: NDArray[Any]) -> Calibration:
    """The calibration with the least weighted negative log-likelihood."""
    from scipy.optimize import minimize

    def made(values: NDArray[Any]) -> Calibration:
        a, b, c, d, *shift = (float(value) for value in values)
        return Calibration(a, b, c, d, tuple(shift))

    def loss(values: NDArray[Any]) -> float:
        right = made(values).probabilities(scored)[np.arange(len(labels_N)), labels_N]
        return float(-(weights_N * np.log(np.maximum(right, 1e-12))).sum() / weights_N.sum())

    return made(np.round(minimize(loss, np.zeros(4 + scored.logits_NS.shape[1]), method="L-BFGS-B").x, 4))
