"""Hashes of a crop: of its pixels, of how it looks, and of how it looks whatever its colours are.

Hashes of looks are taken inside the crop's margins, since two readers seldom cut the same figure with the same margin.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL import Image

    Picture = Image.Image

Pixels = NDArray[np.uint8]  # [height, width, 3]
FAINT, INK = 24, 64  # levels of 255 that a pixel differs from the background; ink is more than the noise of JPEG
BLANK = 0.0005  # share of ink up to which a crop is blank, such as one with a speck
TURNS_SIDE, TURNS_BITS = 32, 32
NOISE = 4.0  # sum over channels of the squared slope, levels a pixel, below which a direction counts less
MAX_PIXELS = 1 << 26  # of an image that is decoded: 192 MiB


class UnreadableImageError(Exception):
    """An image that cannot be decoded, or has more than MAX_PIXELS; `str` is one line."""


@dataclass(frozen=True)
class Looks:
    """exact: SHA-256 of size and pixels, 64 hexadecimal digits. blank: the crop has no ink; the others are then 0.

    phash: imagehash's perceptual hash. turns: a hash of the directions of edges, which hardly depend on the colour map.
    """

    exact: str
    blank: bool
    phash: int
    turns: int


def decoded(image: bytes) -> Picture:
    """The picture of a file as RGB on white, turned as EXIF says. Raises UnreadableImageError."""
    from PIL import Image, ImageOps

    try:
        picture: Picture = Image.open(io.BytesIO(image))
        if picture.width * picture.height > MAX_PIXELS:
            raise UnreadableImageError(f"{picture.width} x {picture.height} pixels; at most {MAX_PIXELS:,} are read")
        picture = ImageOps.exif_transpose(picture)
        if picture.has_transparency_data:
            clear = picture.convert("RGBA")
            picture = Image.new("RGBA", clear.size, "white")
            picture.alpha_composite(clear)
        return picture.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UnreadableImageError(str(error).splitlines()[0] if str(error) else type(error).__name__) from error


def looks_of(picture: Picture) -> Looks:
    """Raises ModuleNotFoundError without imagehash."""
    import imagehash

    pixels = np.asarray(picture)
    exact = hashlib.sha256(f"{picture.width} {picture.height} ".encode() + pixels.tobytes()).hexdigest()
    inside = without_margins(picture)
    if inside is None:
        return Looks(exact, True, 0, 0)
    return Looks(exact, False, _number(imagehash.phash(inside).hash), _number(_turns(inside)))


def without_margins(picture: Picture) -> Picture | None:
    """The part inside the margins of the commonest colour of the border; None for a blank crop."""
    pixels = np.asarray(picture)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    coarse = (border >> 3).astype(np.int64) @ np.array([1 << 10, 1 << 5, 1])
    background = np.median(border[coarse == np.bincount(coarse).argmax()], axis=0).astype(np.uint8)
    far = np.maximum(pixels, background) - np.minimum(pixels, background)
    ink = far.max(axis=2) > INK
    if ink.mean() <= BLANK:
        ink = far.max(axis=2) > FAINT
        if ink.mean() <= BLANK:
            return None
    rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
    return picture.crop((int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1))


def _turns(picture: Picture) -> NDArray[np.bool_]:
    """Signs of the lowest frequencies of the edges' directions.

    A colour map changes how steep an edge is, not its direction (mod 180 degrees): it is the principal direction of the
    colours' structure tensor (Di Zenzo 1986).
    """
    from PIL import Image
    from scipy.fft import dctn

    side = 2 * TURNS_SIDE
    pixels = np.asarray(picture.resize((side, side), Image.Resampling.BOX), np.float64)
    down, right = np.gradient(pixels, axis=(0, 1))
    cosine = (right * right - down * down).sum(axis=2)
    sine = (2 * right * down).sum(axis=2)
    size = (right * right + down * down).sum(axis=2)
    weight = 1 / (size + NOISE)
    signs = []
    for part in (cosine * weight, sine * weight):
        coarse = part.reshape(TURNS_SIDE, 2, TURNS_SIDE, 2).mean(axis=(1, 3))
        lowest = dctn(coarse)[:8, :8]
        order = np.argsort(np.add.outer(np.arange(8), np.arange(8)).ravel(), kind="stable")[1 : TURNS_BITS + 1]
        signs.append(lowest.ravel()[order] > 0)
    return np.concatenate(signs)


def _number(bits: NDArray[np.bool_]) -> int:
    """64 bits, the first the highest."""
    return int.from_bytes(np.packbits(bits.ravel()).tobytes(), "big")
