"""Drawings of one shape, with captions in English and Chinese: pairs that a small model learns in seconds.

An image's size, shape, colour, place and background are drawn from hashes of its number; its caption says all but the
size in pixels.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from trainer.data.hashing import mix64
from trainer.data.media.images import pillow

# name in English -> in Chinese
SHAPES = {"circle": "圆", "square": "正方形", "triangle": "三角形", "ring": "圆环", "cross": "十字", "bar": "横条"}
COLOURS = {
    "red": ("红色", (220, 30, 30)),
    "green": ("绿色", (30, 160, 50)),
    "blue": ("蓝色", (40, 60, 220)),
    "yellow": ("黄色", (240, 210, 30)),
    "purple": ("紫色", (140, 40, 160)),
    "orange": ("橙色", (250, 130, 20)),
    "black": ("黑色", (10, 10, 10)),
    "grey": ("灰色", (130, 130, 130)),
}
PLACES = {
    "top left": ("左上角", (0, 0)),
    "top right": ("右上角", (0, 1)),
    "bottom left": ("左下角", (1, 0)),
    "bottom right": ("右下角", (1, 1)),
}
SIZES = {"small": ("小", 0.17), "large": ("大", 0.30)}  # name, half of the shape's height as a share of the image's
BACKGROUNDS = {"white": ("白色", (255, 255, 255)), "pale blue": ("浅蓝色", (200, 220, 250))}
SIDES = (48, 56, 64, 80)  # pixels
QUALITY = 92  # of JPEG
T = TypeVar("T")


class Drawing(NamedTuple):
    """Names of what is drawn, and the sides in pixels."""

    shape: str
    colour: str
    place: str
    size: str
    background: str
    height: int
    width: int

    def english(self) -> str:
        return f"a {self.size} {self.colour} {self.shape} at the {self.place} on {self.background}"

    def chinese(self) -> str:
        size, colour, place = SIZES[self.size][0], COLOURS[self.colour][0], PLACES[self.place][0]
        return f"{BACKGROUNDS[self.background][0]}背景{place}的{colour}{size}{SHAPES[self.shape]}"

    def jpeg(self) -> bytes:
        """The image as a file."""
        file = io.BytesIO()
        pillow("drawing").fromarray(self.pixels()).save(file, "JPEG", quality=QUALITY)
        return file.getvalue()

    def pixels(self) -> npt.NDArray[np.uint8]:
        """[height, width, 3]."""
        row, column = PLACES[self.place][1]
        half = SIZES[self.size][1] * min(self.height, self.width) * 0.75
        y = (np.arange(self.height)[:, None] + 0.5 - self.height * (0.28 + 0.44 * row)) / half
        x = (np.arange(self.width)[None] + 0.5 - self.width * (0.28 + 0.44 * column)) / half
        inside = {
            "circle": x**2 + y**2 <= 1,
            "square": np.maximum(abs(x), abs(y)) <= 0.9,
            "triangle": (y <= 0.9) & (y >= 2 * abs(x) - 1),
            "ring": (x**2 + y**2 <= 1.1) & (x**2 + y**2 >= 0.35),
            "cross": (np.minimum(abs(x), abs(y)) <= 0.3) & (np.maximum(abs(x), abs(y)) <= 1.1),
            "bar": (abs(y) <= 0.35) & (abs(x) <= 1.2),
        }[self.shape]
        image = np.empty((self.height, self.width, 3), np.uint8)
        image[:] = BACKGROUNDS[self.background][1]
        image[inside] = COLOURS[self.colour][1]
        return image


def drawing(number: int, seed: int) -> Drawing:
    """The drawing of a number."""

    def chosen(kind: int, names: Iterable[T]) -> T:
        some = list(names)
        return some[int(mix64(seed, number, kind)[0]) % len(some)]

    return Drawing(
        chosen(0, SHAPES),
        chosen(1, COLOURS),
        chosen(2, PLACES),
        chosen(3, SIZES),
        chosen(4, BACKGROUNDS),
        chosen(5, SIDES),
        chosen(6, SIDES),
    )
