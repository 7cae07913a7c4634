"""SciReasoner's proteins in the group Mol_Instructions: what they do, in words, and designed sequences."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from trainer.evaluation.scorers.metric import Figures, Metric, Row

_MARKS = re.compile(r"<\|endoftext\|>|<\|im_end\|>")
_RESAMPLES, _SEED = 1000, 0


def _words(text: str) -> str:
    text = re.sub("<think>.*?</think>", "", _MARKS.sub("", text.strip()), flags=re.DOTALL)
    return text.rpartition("</think>")[2].strip()


def _overlap(answer: str, reference: str) -> dict[str, Any]:
    from rouge_score.rouge_scorer import RougeScorer

    found = RougeScorer(["rougeL"]).score(_words(reference), _words(answer))
    return {"score": float(found["rougeL"].fmeasure)}


def _middle(rows: Sequence[Row]) -> Figures:
    """The median of the means of 1,000 resamples. Published figures draw ROUGE-1's and ROUGE-2's resamples first, from
    numpy's generator with seed 0."""
    import numpy as np

    if not rows:
        return Figures(math.nan)
    scores = np.array([row["score"] for row in rows])
    draws = np.random.RandomState(_SEED)
    for _ in range(2 * _RESAMPLES):
        draws.randint(0, len(scores), len(scores))
    means = [scores[draws.randint(0, len(scores), len(scores))].mean() for _ in range(_RESAMPLES)]
    return Figures(float(np.percentile(means, 50)) * 100)


described = Metric(_overlap, _middle)
"""ROUGE-L F without stems in per cent, as the package `evaluate` summarises it."""


AMINO_ACIDS = "ARNDCQEGHILKMFPSTWYV"
_OPEN, _EXTEND = -10.0, -0.5
# BLOSUM45 below its diagonal and on it, a row for each of AMINO_ACIDS
_HALF = """
5
-2 7
-1 0 6
-2 -1 2 7
-1 -3 -2 -3 12
-1 1 0 0 -3 6
-1 0 0 2 -3 2 6
0 -2 0 -1 -3 -2 -2 7
-2 0 1 0 -3 1 0 -2 10
-1 -3 -2 -4 -3 -2 -3 -4 -3 5
-1 -2 -3 -3 -2 -2 -2 -3 -2 2 5
-1 3 0 0 -3 1 1 -2 -1 -3 -3 5
-1 -1 -2 -3 -2 0 -2 -2 0 2 2 -1 6
-2 -2 -2 -4 -2 -4 -3 -3 -2 0 1 -3 0 8
-1 -2 -2 -1 -4 -1 0 -2 -2 -2 -3 -1 -2 -3 9
1 -1 1 0 -1 0 0 0 -1 -2 -3 -1 -2 -2 -1 4
0 -1 0 -1 -1 -1 -1 -2 -2 -1 -1 -1 -1 -1 -1 2 5
-2 -2 -4 -4 -5 -2 -3 -2 -3 -2 -2 -2 -2 1 -3 -4 -3 15
-2 -1 -2 -2 -3 -1 -2 -3 2 0 0 -1 0 3 -3 -2 -1 3 8
0 -2 -3 -3 -1 -3 -3 -3 -3 3 1 -2 1 0 -3 -1 0 -3 -1 5
"""


def _similarities() -> Any:
    """BLOSUM45 [20, 20], in fp64."""
    import numpy as np

    rows = [line.split() for line in _HALF.split("\n") if line]
    half = np.array([[float(value) for value in row] + [0.0] * (len(rows) - len(row)) for row in rows])
    return half + np.tril(half, -1).T


def aligned(first: str, second: str) -> float:
    """Score of the best local alignment of two sequences of amino acids, divided by the geometric mean of their own, at
    most 1. A gap costs 10, and 0.5 more for each place after its first. Sequences that are not empty."""
    import numpy as np

    table = _similarities()
    one, two = (np.array([AMINO_ACIDS.index(letter) for letter in sequence]) for sequence in (first, second))
    own = [float(table[ids, ids].sum()) for ids in (one, two)]
    steps = _EXTEND * np.arange(len(two) + 1)
    before, down = np.zeros(len(two) + 1), np.full(len(two) + 1, -np.inf)
    best = 0.0
    for letter in one:
        down = np.maximum(before + _OPEN, down + _EXTEND)
        here = np.maximum(down, 0.0)
        here[0] = 0.0
        here[1:] = np.maximum(here[1:], before[:-1] + table[letter, two])
        # a gap that starts after place k and ends at place j: here[k] + open + (j - k - 1) extend
        across = np.maximum.accumulate(here - steps)[:-1] + steps[1:] + _OPEN - _EXTEND
        here[1:] = np.maximum(here[1:], across)
        before, best = here, max(best, float(here.max()))
    return min(best / math.sqrt(own[0] * own[1]), 1.0)


def sequence(text: str) -> str:
    """The amino acids in a text's first protein tags, other characters left out."""
    text = re.sub("<think>.*?</think>", "", text.strip(), flags=re.DOTALL).rpartition("</think>")[2].lstrip()
    found = re.search("<protein>(.*?)</protein>", text)
    return "".join(letter for letter in found[1] if letter in AMINO_ACIDS) if found else ""


def _likeness(answer: str, reference: str) -> dict[str, Any]:
    found, wanted = sequence(answer), sequence(reference)
    if not wanted:
        raise ValueError(f"the reference {reference!r} has no sequence in protein tags")
    return {"score": aligned(found, wanted) * 100 if found else 0.0, "parsed": found != ""}


def _most(rows: Sequence[Row]) -> Figures:
    scores = [float(row["score"]) for row in rows]
    return Figures(max(scores) if scores else math.nan, {"mean": math.fsum(scores) / len(scores)} if scores else {})


designed = Metric(_likeness, _most)
"""The likeness (local alignment, in per cent) of the one answer that is most like its reference, which is the published
figure. extra: `mean`, that of all answers."""
