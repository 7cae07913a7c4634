"""Enzyme classes of Protein-FunctionEC, and Fmax over them.

Source: opencompass 0.5.4, datasets/biodata.py, whose Fmax is that of TorchDrug (metrics/f1_max).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from trainer.evaluation.scorers import extract
from trainer.evaluation.scorers.metric import Figures, Metric, Row

# in the published order, which decides between equal scores
_LABELS = """
1.4.3.- 4.2.1.1 2.7.6.- 3.5.1.88 5.4.99.- 3.1.21.4 2.3.1.48 7.2.1.- 1.16.3.1 3.4.19.12 1.3.8.- 2.7.7.19 2.4.2.-
1.1.1.169 2.4.2.10 3.5.3.1 3.3.2.- 3.1.26.4 7.1.1.9 3.4.13.9 1.1.1.100 5.1.1.- 3.1.22.- 3.4.21.- 1.11.1.- 3.4.22.28
4.6.1.18 3.4.21.4 6.1.1.4 1.15.1.1 3.4.19.- 3.4.11.1 3.4.25.1 1.3.1.9 2.4.99.- 1.1.99.- 1.97.1.12 2.7.4.6 1.17.1.-
1.7.2.- 2.7.1.71 4.2.1.11 3.4.21.90 4.1.99.- 2.8.1.1 3.6.4.13 6.3.4.4 2.7.11.1 2.7.7.23 1.9.3.- 2.3.1.39 4.1.1.11
3.2.1.26 3.1.13.- 1.8.99.- 1.11.1.6 4.2.1.2 5.3.4.1 3.2.1.4 3.4.21.5 1.14.16.- 6.3.4.2 2.1.1.37 1.12.99.- 2.1.1.361
2.1.1.- 3.1.8.1 2.7.11.- 2.3.2.24 2.7.7.48 3.5.1.98 3.1.1.31 2.7.11.22 1.18.1.2 3.1.13.4 4.1.1.23 3.2.2.27 2.5.1.7
1.14.11.- 3.5.1.2 6.3.1.2 4.3.2.- 4.1.2.25 5.3.2.- 2.7.1.1 3.1.11.- 2.7.7.4 3.6.3.14 4.2.1.20 2.3.1.41 1.18.6.1
2.3.1.74 6.3.2.19 3.2.2.22 2.8.4.1 2.4.2.17 2.1.1.56 1.10.3.- 2.5.1.54 1.2.1.11 4.2.1.8 3.1.3.16 1.12.7.2 2.7.1.-
1.17.4.1 2.7.10.- 3.1.2.14 5.3.1.6 3.4.21.91 2.2.1.- 2.7.1.2 2.7.3.- 3.1.22.4 2.3.1.16 4.99.1.- 2.7.1.35 3.4.22.69
3.1.27.- 1.12.7.- 5.1.3.- 2.7.7.65 1.17.4.- 5.3.1.24 4.2.1.59 2.5.1.10 1.8.4.11 3.4.25.- 2.7.10.2 5.2.1.- 6.1.1.3
2.7.7.49 2.8.4.- 4.1.3.- 2.3.1.31 1.1.1.205 3.1.30.- 3.4.23.- 6.5.1.2 6.1.1.15 3.6.4.- 6.2.1.- 4.1.3.3 2.7.7.60
6.3.2.6 5.1.1.3 2.4.2.9 1.14.13.- 1.1.2.- 1.1.1.1 5.1.99.- 2.8.2.- 2.5.1.47 2.7.11.24 3.4.22.15 2.6.1.42 2.1.3.2
3.2.2.9 4.2.3.3 2.6.1.- 1.5.1.- 2.7.7.24 2.1.1.57 6.1.1.20 5.3.1.5 2.7.1.25 2.2.1.1 3.6.1.1 2.3.3.16 6.3.4.- 2.7.7.9
1.18.1.- 4.2.99.- 4.1.2.4 3.1.3.1 5.3.3.8 3.2.1.1 2.7.10.1 4.2.1.113 4.2.2.2 6.1.1.1 3.1.3.- 1.2.4.- 1.6.99.- 2.5.1.18
3.4.22.29 3.1.3.2 1.1.1.27 2.3.1.286 1.14.15.- 2.7.7.3 3.1.13.2 2.7.7.6 5.4.99.18 4.1.1.39 2.7.4.8 5.6.2.1 2.3.1.-
1.7.1.- 1.6.5.2 1.18.6.- 4.6.1.2 2.6.1.52 3.1.6.- 1.6.5.- 2.3.2.31 3.6.5.5 2.8.3.- 2.3.2.- 3.2.1.18 3.5.99.- 3.1.4.35
3.1.8.- 2.3.1.12 1.6.2.- 2.1.1.72 2.3.3.- 3.4.21.92 1.14.11.27 2.7.11.17 2.1.1.359 2.7.13.- 2.5.1.15 6.3.3.- 3.2.1.22
6.1.1.6 4.3.3.7 3.4.11.18 4.2.3.4 3.1.2.- 2.4.2.8 4.1.1.48 3.7.1.- 3.1.4.53 7.2.2.- 2.7.6.5 3.6.5.3 4.3.3.- 2.7.1.21
3.1.4.- 1.11.1.24 3.6.4.10 1.14.14.1 3.5.1.60 3.2.1.52 1.16.3.- 3.1.26.3 3.4.24.69 3.5.1.11 2.1.1.193 1.7.2.1
1.14.99.- 3.6.5.2 2.7.7.n1 4.1.1.- 2.3.2.26 2.4.1.15 2.5.1.- 3.1.3.11 1.14.11.67 2.3.1.180 2.4.2.7 3.6.4.12 2.5.1.19
1.1.1.- 1.8.1.9 1.9.3.1 2.7.1.15 2.7.1.11 3.4.11.- 2.1.2.- 7.6.2.- 3.5.1.28 3.8.1.5 6.3.4.13 1.11.1.9 1.13.11.-
4.1.2.13 3.4.16.4 6.1.1.7 1.1.3.- 2.4.1.129 3.1.1.29 3.4.21.53 3.6.5.- 3.1.1.4 1.1.1.86 3.2.2.- 2.6.1.1 4.2.99.18
5.5.1.- 2.7.11.30 3.1.26.- 1.8.1.4 1.14.14.- 3.2.1.14 3.5.4.- 2.1.2.1 3.2.1.3 1.97.1.- 6.3.4.14 2.7.12.1 2.7.11.25
2.5.1.17 6.3.5.2 6.3.2.1 3.2.1.78 3.1.11.2 1.6.99.3 2.1.2.2 1.1.1.42 7.1.1.8 7.1.1.2 3.1.2.2 3.4.22.46 3.1.3.36
2.4.1.- 3.1.3.33 4.3.2.2 1.14.12.- 1.13.12.- 3.4.22.- 5.3.1.1 4.2.1.- 3.2.1.169 3.2.1.17 6.5.1.1 1.1.1.35 1.3.5.-
1.2.1.3 2.5.1.1 7.2.2.8 6.3.1.- 2.5.1.78 2.7.7.50 2.1.3.- 2.7.7.- 5.4.3.8 2.7.2.4 1.10.3.2 3.1.1.3 3.6.1.15 5.6.2.2
3.1.3.3 3.2.1.20 3.6.1.9 2.3.2.27 3.6.1.23 6.1.1.- 4.2.1.10 3.4.13.- 6.3.2.4 1.1.1.2 3.4.21.107 1.6.99.1 2.7.4.9
1.15.1.- 3.6.1.34 1.3.1.- 3.6.1.55 3.4.24.- 3.6.1.- 4.1.1.50 4.2.2.- 3.3.1.1 3.4.22.1 3.1.4.11 3.5.1.1 3.3.1.-
1.1.1.267 3.2.1.55 1.1.1.25 3.6.1.7 2.7.13.3 2.7.1.40 2.3.1.9 1.7.3.- 5.4.2.- 1.7.1.17 3.2.2.6 4.1.1.33 1.8.5.-
5.3.3.- 3.2.1.31 6.3.5.- 1.14.19.- 6.1.1.11 1.12.99.6 1.4.1.- 4.6.1.1 3.1.3.86 3.2.1.91 4.3.2.10 3.4.16.- 3.1.3.5
3.5.4.4 6.4.1.- 1.17.1.8 2.5.1.16 4.3.1.- 3.4.23.16 6.3.3.1 3.2.1.73 5.1.3.13 1.2.1.12 1.6.2.4 6.1.1.17 2.3.1.1
3.5.3.- 3.2.1.8 2.1.1.45 3.2.1.21 5.1.3.2 2.3.1.129 2.7.2.- 5.3.1.- 2.7.2.8 2.4.2.1 1.14.14.18 3.5.1.5 3.5.4.38
5.4.3.- 6.5.1.- 2.7.12.2 2.5.1.55 1.8.1.7 3.1.21.- 1.8.4.12 1.11.1.15 1.1.1.85 3.6.1.3 2.7.1.33 2.7.8.7 3.1.3.25
3.2.1.96 7.1.1.- 3.2.1.39 2.4.2.3 3.5.4.9 2.2.1.2 3.6.3.- 3.5.1.- 1.11.1.7 1.5.1.5 2.4.2.19 1.8.3.2 1.3.99.- 1.5.3.-
5.6.1.- 1.8.1.- 2.7.3.9 2.5.1.6 3.4.21.62 1.8.4.- 5.3.1.16 2.3.2.2 3.4.17.- 2.7.4.- 3.2.1.- 6.3.1.5 4.3.3.6 2.1.3.3
1.5.1.3 3.5.2.3 5.4.2.11 2.7.7.8 2.8.1.7 2.7.7.7 3.2.1.37 2.7.12.- 5.3.1.9 1.2.7.- 6.1.1.2 7.1.2.- 2.3.1.5 3.4.14.-
6.1.1.10 1.16.1.- 2.1.1.228 3.5.2.6 2.1.1.354 2.7.4.3 4.1.2.- 4.4.1.5 5.3.4.- 4.6.1.- 5.1.1.1 3.4.24.3 4.4.1.- 1.3.7.-
2.3.1.117 5.4.99.5 1.2.1.- 2.4.2.30 1.14.18.- 3.1.1.1 3.1.3.48 3.4.21.98 5.6.2.- 3.1.26.5 7.2.1.1 2.7.11.12 1.3.3.-
2.7.7.18 3.1.1.- 5.2.1.8 2.7.1.69 1.1.1.37 3.6.4.6 3.1.4.17 2.7.11.13 3.5.2.- 4.2.1.17 2.7.2.3 4.2.3.- 5.3.99.-
3.1.1.72 2.3.1.179 3.2.1.23 1.14.13.25 3.1.26.13 3.8.1.- 4.1.1.20 2.7.11.26 6.1.1.21 2.7.11.21 2.7.4.22 1.8.3.-
2.3.1.57 1.3.5.1 3.1.1.53 7.1.2.2 6.4.1.2 2.7.8.- 6.3.2.- 2.8.1.- 3.5.4.5 4.6.1.12 2.3.2.23
"""
LABELS = tuple(_LABELS.split())
_PLACES = {label: place for place, label in enumerate(LABELS)}
_CODE = re.compile(r"\d+\.\d+\.\d+\.-?\d*")


def classes(text: str) -> list[int]:
    """Places in `LABELS` of the enzyme codes that a text names, sorted. Unknown codes, and codes with more than one
    dash, count for nothing."""
    return sorted({_PLACES[code] for code in _CODE.findall(text) if code in _PLACES})


def _one(answer: str, reference: str) -> dict[str, Any]:
    found = extract.boxed(extract.after_thinking(answer)) or ""
    return {"found": classes(found), "wanted": classes(reference), "parsed": bool(found)}


def _fmax(rows: Sequence[Row]) -> Figures:
    import torch

    scores, truth = torch.zeros(2, len(rows), len(LABELS))
    for row, (score, true) in zip(rows, zip(scores, truth, strict=True), strict=True):
        score[row["found"]] = 1
        true[row["wanted"]] = 1
    return Figures(fmax(scores, truth) * 100)


def fmax(scores: Any, truth: Any) -> float:
    """The best F1, 0 to 1, over thresholds on the scores, of precision and recall averaged over proteins.

    scores, truth: fp32 [B, N], B proteins and N classes. Precision is the mean over the proteins with a class above the
    threshold, recall over all. fp32 throughout, and classes of equal score one after another in their order, as in the
    published code. 0 without proteins.
    """
    import torch

    if not scores.numel():
        return 0.0
    count, width = scores.shape
    order = scores.argsort(descending=True, dim=1, stable=True)
    hits = truth.gather(1, order).cumsum(1)
    precision = hits / torch.arange(1, width + 1, dtype=scores.dtype)
    recall = hits / (truth.sum(1, keepdim=True) + 1e-10)
    # what each class adds to its protein's precision and recall when the threshold passes its score
    precision, recall = (
        torch.diff(part, dim=1, prepend=torch.zeros(count, 1)).flatten() for part in (precision, recall)
    )
    rank = torch.empty_like(order).scatter_(1, order, torch.arange(width).expand(count, width))
    place = (rank + width * torch.arange(count)[:, None]).flatten()
    passed = place[scores.flatten().argsort(descending=True, stable=True)]
    started = (passed % width == 0).cumsum(0)
    mean_precision = precision[passed].cumsum(0) / started
    mean_recall = recall[passed].cumsum(0) / count
    best = 2 * mean_precision * mean_recall / (mean_precision + mean_recall + 1e-10)
    return 0.0 if bool(best.isnan().any()) else float(best.max())


function_ec = Metric(_one, _fmax)
"""Fmax in per cent, over the 538 classes of `LABELS`."""
