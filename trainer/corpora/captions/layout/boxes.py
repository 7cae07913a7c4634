"""Boxes: unions, distances, and the clusters of boxes that touch."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import groupby

from trainer.corpora.captions.crops import Box

CELL = 2.0  # points: the side of a cell of the grid that boxes are clustered on
MOST_CELLS = 2_000_000  # of the grid; larger pages get larger cells


def union(boxes: Iterable[Box]) -> Box:
    """The smallest box around one box or more."""
    x0, y0, x1, y1 = zip(*boxes, strict=True)
    return min(x0), min(y0), max(x1), max(y1)


def area(box: Box) -> float:
    return max(box[2] - box[0], 0.0) * max(box[3] - box[1], 0.0)


def overlap(low: float, high: float, other_low: float, other_high: float) -> float:
    """The length that two intervals share; negative: the distance between them."""
    return min(high, other_high) - max(low, other_low)


def shared(one: Box, other: Box) -> float:
    """The area that two boxes share."""
    width, height = overlap(one[0], one[2], other[0], other[2]), overlap(one[1], one[3], other[1], other[3])
    return max(width, 0.0) * max(height, 0.0)


def iou(one: Box, other: Box) -> float:
    """Shared area over the area of both together; 0 for two boxes without area."""
    both = shared(one, other)
    return both / whole if (whole := area(one) + area(other) - both) else 0.0


def distance(one: Box, other: Box) -> float:
    """The larger of the horizontal and the vertical distance; 0 where the boxes touch."""
    return max(-overlap(one[0], one[2], other[0], other[2]), -overlap(one[1], one[3], other[1], other[3]), 0.0)


def inside(box: Box, outer: Box, slack: float = 0.0) -> bool:
    x0, y0, x1, y1 = outer
    return x0 - slack <= box[0] and y0 - slack <= box[1] and box[2] <= x1 + slack and box[3] <= y1 + slack


def grown(box: Box, by: float) -> Box:
    return box[0] - by, box[1] - by, box[2] + by, box[3] + by


def clusters(boxes: Sequence[Box], size: tuple[float, float], gap: float) -> list[list[int]]:
    """Places in `boxes` of those that are within `gap` points of each other, directly or through others.

    Boxes are drawn on a grid whose connected cells are counted, so the time grows with the area of the page and with
    the number of boxes, and never with its square. size: width and height of the page.
    """
    import numpy as np

    if not boxes:
        return []
    cell = max(CELL, (size[0] * size[1] / MOST_CELLS) ** 0.5)
    rows, columns = int(size[1] / cell) + 2, int(size[0] / cell) + 2
    grid = np.zeros((rows, columns), np.bool_)
    places = []
    for box in boxes:
        x0, y0, x1, y1 = grown(box, gap / 2)
        top, left = min(max(int(y0 / cell), 0), rows - 1), min(max(int(x0 / cell), 0), columns - 1)
        bottom, right = min(max(int(y1 / cell), top), rows - 1), min(max(int(x1 / cell), left), columns - 1)
        grid[top : bottom + 1, left : right + 1] = True
        places.append((top, left))
    parents: list[int] = []

    def root(label: int) -> int:
        while parents[label] != label:
            parents[label] = parents[parents[label]]
            label = parents[label]
        return label

    # Of each row: where its runs of cells start and end, and their labels; a run joins those above that it touches.
    edges = np.diff(np.pad(grid, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    of_rows, ends_at = np.nonzero(edges)
    runs: dict[int, tuple[list[int], list[int], list[int]]] = {}
    above: tuple[list[int], list[int], list[int]] = ([], [], [])
    for row, bounds in groupby(zip(of_rows.tolist(), ends_at.tolist(), strict=True), key=lambda pair: pair[0]):
        columns_of_row = [column for _, column in bounds]
        starts, ends = columns_of_row[::2], columns_of_row[1::2]
        labels: list[int] = []
        if row - 1 not in runs:
            above = ([], [], [])
        place = 0
        for start, end in zip(starts, ends, strict=True):
            label = -1
            while place < len(above[0]) and above[1][place] <= start:
                place += 1
            at = place
            while at < len(above[0]) and above[0][at] < end:
                other = root(above[2][at])
                if label < 0:
                    label = other
                elif other != label:
                    low, high = sorted((label, other))
                    parents[high] = label = low
                at += 1
            if label < 0:
                label = len(parents)
                parents.append(label)
            labels.append(label)
        runs[row] = above = (starts, ends, labels)
    found: dict[int, list[int]] = {}
    for index, (top, left) in enumerate(places):
        starts, _, labels = runs[top]
        found.setdefault(root(labels[bisect_right(starts, left) - 1]), []).append(index)
    return list(found.values())
