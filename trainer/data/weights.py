"""Weights of labels: what `train.loss_reduction` makes of documents of different lengths.

A document with n labels of its own weighs n under `token`, 1 under `sample`, and the square root of n under `square`;
each of its labels has an n-th of that. These are `loss_reduction` of InternVL 2.5 (Chen et al. 2024, arXiv 2412.05271:
token, sample and square averaging, with weights 1 / n^0, 1 / n^1 and 1 / n^0.5), and of XTuner.

B windows · S positions
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

Reduction = Literal["token", "sample", "square"]
POWERS = {"token": 0.0, "sample": 1.0, "square": 0.5}


def label_weights(
    starts_BS: npt.NDArray[np.bool_], labels_BS: npt.NDArray[np.bool_], reduction: Reduction
) -> npt.NDArray[np.float64]:
    """[B, S] weights of positions, 0 where there is no label.

    starts_BS: True where a position is the first of its document. labels_BS: True where it has a label. Every window
    start counts as the start of a document.
    """
    first = starts_BS.copy()
    first[:, 0] = True
    document = np.cumsum(first.ravel()) - 1
    counts = np.bincount(document, weights=labels_BS.ravel(), minlength=int(document[-1]) + 1)
    weights = np.maximum(counts, 1.0) ** -POWERS[reduction]
    return np.where(labels_BS, weights[document].reshape(labels_BS.shape), 0.0)
