"""Boxes and points in images: RefCOCO's and ScreenSpot's metrics as VLMEvalKit computes them."""

from __future__ import annotations

import re
from collections.abc import Sequence

Box = tuple[float, float, float, float]
_NUMBER = r"[-+]?\d*\.?\d+(?:[eE][-+]?\d+)?"
_GAP = r"(?:\s*,\s*|\s+)"
_BOX = re.compile(r"\[\s*(" + (")" + _GAP + "(").join([_NUMBER] * 4) + r")\s*\]")
_CLICK = re.compile(r"x=([\d.]+), y=([\d.]+)")


def box(answer: str) -> Box | None:
    """The first `[x1, y1, x2, y2]` of an answer, else its first four numbers; None with fewer."""
    found = _BOX.search(answer)
    numbers = found.groups() if found else re.findall(_NUMBER, answer)[:4]
    if len(numbers) < 4:
        return None
    x1, y1, x2, y2 = map(float, numbers)
    return x1, y1, x2, y2


def in_pixels(found: Box, width: float, height: float) -> Box:
    """A box in pixels, inside the image, with its corners in order.

    Coordinates up to 1.5 are shares of the image, up to 1,000 thousandths of it, and pixels beyond.
    """
    largest = max(map(abs, found))
    unit = 1.0 if largest <= 1.5 else 1000.0 if largest <= 1000 else 0.0
    x1, y1, x2, y2 = found
    if unit:
        x1, x2 = x1 / unit * width, x2 / unit * width
        y1, y2 = y1 / unit * height, y2 / unit * height
    x1, x2 = sorted(min(max(x, 0.0), width) for x in (x1, x2))
    y1, y2 = sorted(min(max(y, 0.0), height) for y in (y1, y2))
    return x1, y1, x2, y2


def overlap(first: Sequence[float], second: Sequence[float]) -> float:
    """Intersection over union, 0 to 1, of two boxes (x1, y1, x2, y2)."""
    wide = min(first[2], second[2]) - max(first[0], second[0])
    high = min(first[3], second[3]) - max(first[1], second[1])
    if wide <= 0 or high <= 0:
        return 0.0
    areas = [max(one[2] - one[0], 0) * max(one[3] - one[1], 0) for one in (first, second)]
    return wide * high / (areas[0] + areas[1] - wide * high)


def point(answer: str) -> tuple[float, float] | None:
    """The first `x=..., y=...` of an answer; None without one, and where one is not a number."""
    found = _CLICK.search(answer)
    if not found:
        return None
    try:
        return float(found[1]), float(found[2])
    except ValueError:
        return None


def hits(click: tuple[float, float], target: Sequence[float], width: int, height: int) -> bool:
    """True if a click is inside a target (x, y, wide, high), in pixels, its last row and column of pixels included.

    Clicks up to 1 are shares of the image; if one coordinate is larger, both are pixels. A corner of -1 counts as 0.
    """
    x, y = click
    if x > 1 or y > 1:
        x, y = x / width, y / height
    left, top, wide, high = target
    right, bottom = left + wide - 1, top + high - 1
    left, top, right, bottom = (0 if edge == -1 else edge for edge in (left, top, right, bottom))
    return left / width <= x <= right / width and top / height <= y <= bottom / height
