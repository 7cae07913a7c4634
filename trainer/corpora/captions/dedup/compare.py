"""Comparing two crops whose hashes are near: copies of one figure, or different figures that look alike from afar.

Different curves in the same axes have the same perceptual hash surprisingly often. Here both crops are laid over each
other at SIDE x SIDE pixels, inside their margins, and every pixel of the one must be found in the other next to the
same place. A pixel that is not is foreign; a copy has hardly any in any part of the picture.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL import Image

    Picture = Image.Image

SIDE = 160
CELL = 16  # pixels of the squares that are judged one by one
NOISE = 40  # levels of 255 by which copies differ after the blur: JPEG, text and lines drawn at another size
FOREIGN = 0.03  # share of foreign pixels in a cell, above which two crops are different
COARSE = 0.6  # of SIDE: a smaller crop is compared at its own size
ASPECT = 1.15  # ratio of the ratios of width to height up to which one crop may be a copy of another
EXPLAINED = 0.97  # share of the colours' variance that a change of the colour map leaves
SHADES = 16  # per channel, of a colour map
DENSE = 0.35  # share of inked pixels from which on a picture is a map and not a drawing of lines
Levels = NDArray[np.int16]  # [height, width, 3]


@dataclass(frozen=True)
class Thumbnail:
    """A crop inside its margins, at SIDE x SIDE pixels. size: its width and height before."""

    pixels: NDArray[np.uint8]
    size: tuple[int, int]


def thumbnail(inside: Picture) -> Thumbnail:
    """inside: what `looks.without_margins` returned."""
    from PIL import Image

    small = inside.resize(
        (SIDE, SIDE), Image.Resampling.BOX if min(inside.size) > 2 * SIDE else Image.Resampling.HAMMING
    )
    return Thumbnail(np.asarray(small), inside.size)


def are_copies(one: Thumbnail, other: Thumbnail) -> bool:
    """Return True for two pictures of one figure: of other sizes, compressed, with other colours. Symmetric."""
    if not 1 / ASPECT <= one.size[0] * other.size[1] / (one.size[1] * other.size[0]) <= ASPECT:
        return False
    first, second = _at_one_size(one, other)
    if _foreign(first, second) <= FOREIGN:
        return True
    if _density(first) + _density(second) < 2 * DENSE:
        return _foreign(_ink(first), _ink(second)) <= FOREIGN
    return min(_explained(first, second), _explained(second, first)) >= EXPLAINED


def _at_one_size(one: Thumbnail, other: Thumbnail) -> tuple[Levels, Levels]:
    """Both at the size of the smaller crop where that has fewer pixels, or its missing detail would look foreign."""
    from PIL import Image

    side = min(*one.size, *other.size)
    if side >= SIDE * COARSE:
        return one.pixels.astype(np.int16), other.pixels.astype(np.int16)
    side = max(side, 8)
    first, second = (
        np.asarray(Image.fromarray(each.pixels).resize((side, side), Image.Resampling.BOX)).astype(np.int16)
        for each in (one, other)
    )
    return first, second


def _foreign(first: Levels, second: Levels) -> float:
    """Share of foreign pixels in the worst cell."""
    first, second = _blurred(first), _blurred(second)
    return max(_cells(_outside(first, second)), _cells(_outside(second, first)))


def _outside(levels: Levels, other: Levels) -> NDArray[np.bool_]:
    """Pixels that differ from all that the other has at the same place and its eight neighbours, in any channel."""
    low, high = other, other
    for axis in (0, 1):
        before, at, behind = _neighbours(low, axis)
        low = np.minimum(np.minimum(before, at), behind)
        before, at, behind = _neighbours(high, axis)
        high = np.maximum(np.maximum(before, at), behind)
    found: NDArray[np.bool_] = np.any((levels > high + NOISE) | (levels < low - NOISE), axis=2)
    return found


def _blurred(levels: Levels) -> Levels:
    """Weights 1, 2, 1 each way: a thin line is drawn from one pixel or two, depending on where it happens to be."""
    for axis in (0, 1):
        before, at, behind = _neighbours(levels, axis)
        levels = before + 2 * at + behind
    return levels >> 4


def _neighbours(levels: Levels, axis: int) -> tuple[Levels, Levels, Levels]:
    """The pixels before, at and behind each along an axis; those at the edge are their own neighbours."""
    around = [(1, 1) if each == axis else (0, 0) for each in range(3)]
    padded = np.pad(levels, around, mode="edge")
    count = levels.shape[axis]
    if axis == 0:
        return padded[:count], padded[1:-1], padded[2:]
    return padded[:, :count], padded[:, 1:-1], padded[:, 2:]


def _cells(marked: NDArray[np.bool_]) -> float:
    """The largest share of marked pixels in a cell; cells overlap by half."""
    half = CELL // 2
    count = max(len(marked) // half, 2)
    edges = np.linspace(0, len(marked), count + 1).astype(int)[:-1]
    sums = np.add.reduceat(np.add.reduceat(marked.astype(np.int32), edges, axis=0), edges, axis=1)
    wide = sums[:-1] + sums[1:]
    return float((wide[:, :-1] + wide[:, 1:]).max()) / CELL**2


def _background(levels: Levels) -> Levels:
    """The commonest colour."""
    coarse = (levels >> 4).astype(np.int64) @ np.array([256, 16, 1])
    found: Levels = np.median(levels[coarse == np.bincount(coarse.ravel()).argmax()], axis=0).astype(np.int16)
    return found


def _ink(levels: Levels) -> Levels:
    """The distance of each pixel from the background, in the channel where it is farthest: lines of any dark or bright
    colour are alike."""
    found: Levels = np.abs(levels - _background(levels)).max(axis=2, keepdims=True)
    return found


def _density(levels: Levels) -> float:
    return float((_ink(levels) > NOISE).mean())


def _explained(first: Levels, second: Levels) -> float:
    """Share of the second's variance that is between pixels of different colours of the first."""
    colours = ((first.astype(np.int64) * SHADES) >> 8) @ np.array([SHADES**2, SHADES, 1])
    _, which = np.unique(colours.ravel(), return_inverse=True)
    counts = np.bincount(which)
    values = second.reshape(-1, second.shape[2]).astype(np.float64)
    total = values.var(axis=0).sum()
    inside = 0.0
    for channel in values.T:
        mean = np.bincount(which, channel) / counts
        inside += float(((channel - mean[which]) ** 2).mean())
    return 1 - inside / total if total else 1.0
