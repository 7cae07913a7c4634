"""Retrieval between images and texts, and zero-shot classification, from embeddings.

Legend: N embeddings of all ranks · D width · C classes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

RANKS = (1, 5)  # the k of recall at k
ROWS = 1024  # of the similarities that exist at one time


class Rows(NamedTuple):
    """Embeddings of images and texts [2, N, D], fp32 and normalised; hashes and classes [N, 2] of a batch's inputs."""

    embeddings: Tensor
    hashes: Tensor
    classes: Tensor


def recalls(rows: Rows) -> dict[str, float | None]:
    """Share of images, and of texts, with a counterpart of their own among the k nearest.

    The counterparts are those of the own pair and of its duplicates; others that are as near count as nearer, and so
    does every distance that is not a number.
    """
    images, texts = rows.embeddings
    found: dict[str, float | None] = {}
    for name, queries, others in (("image_to_text", images, texts), ("text_to_image", texts, images)):
        nearer = []
        for first in range(0, len(queries), ROWS):
            part = slice(first, first + ROWS)
            scores = queries[part] @ others.t()
            own = (rows.hashes[part, None] == rows.hashes[None]).any(-1)
            own[torch.arange(len(scores)), torch.arange(first, first + len(scores))] = True
            best = scores.masked_fill(~own, -torch.inf).amax(1, keepdim=True)
            nearer.append(
                (~(scores < best) & ~own).sum(1).masked_fill(~best.isfinite().squeeze(1), len(others) + max(RANKS))
            )
        for k in RANKS:
            found[f"{name}_r{k}"] = float((torch.cat(nearer) < k).double().mean())
    return found


def zero_shot(rows: Rows) -> float | None:
    """Share of images whose class has the nearest mean of its sentences; None without an image. One whose distances are
    not numbers is wrong."""
    images, texts = rows.embeddings
    of_image, of_text = rows.classes.unbind(1)
    counted = of_image >= 0
    if not counted.any():
        return None
    classes = int(of_text.max()) + 1
    known = of_text >= 0
    sums_CD = torch.zeros(classes, texts.shape[1]).index_add(0, of_text[known], texts[known])
    scores = images @ F.normalize(sums_CD, dim=-1).t()
    right = (scores.argmax(1) == of_image) & scores.isfinite().all(1)
    return float(right[counted].double().mean())
