"""Images for the vision towers: decoded, resized and cut, without torch.

Ordinary 8-bit images come out bit for bit as the published processors make them of an opened `PIL.Image`. What those
make useless has a rule of its own, the same in training, evaluation and export:

- one channel of 16 bit, 32 bit or floats (published: white above 255, and black for floats between 0 and 1) is
  stretched: the 0.1 % and 99.9 % quantiles become 0 and 255. Not by the bit depth, because 10 and 12 bit cameras and
  float images do not say theirs; not by the extremes, because one hot pixel would flatten the rest.
- NaN is black; a grey value declared transparent is white; a TIFF whose white is 0 is inverted.
- the turn in EXIF is applied (published: for a path, but not for an opened image), and what is transparent is laid
  on white (published: for an opened image, but not for a path).
- several channels of 16 bit keep their high byte, and of several frames the first is taken, as published.

Sources: transformers' Qwen2VLImageProcessor and GotOcr2ImageProcessor, whose results these are.

Legend: H, W sides of an image · C 3 channels · P patch size · m merge · T patches.
"""

from __future__ import annotations

import io
import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.data.errors import DataError

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

# Those of pictures; Pillow would run Ghostscript on EPS, and an ICO changes its size when it is decoded.
FORMATS = ("PNG", "JPEG", "JPEG2000", "GIF", "TIFF", "WEBP", "AVIF", "BMP", "DIB", "PPM", "TGA")
SUFFIXES = (
    "jpg", "jpeg", "jfif", "png", "webp", "gif", "bmp", "tif", "tiff", "jp2", "j2k", "jpx", "avif", "ppm", "pgm", "pbm",
    "pnm", "tga", "dib",
)  # of image files in tars  # fmt: skip
DECODE_LIMIT = 178_956_970  # pixels of a file; twice those that Pillow warns at as a possible decompression bomb
OPENING = threading.Lock()  # Pillow's own limit is a global
GREY = ("I", "F")  # modes of Pillow; also those that start with I;16
QUANTILES = (0.001, 0.999)
LONGEST_RATIO = 200  # of the sides
WHITE_IS_ZERO = 262, 0  # a tag of TIFF and its value
TURNED = (5, 6, 7, 8)  # values of EXIF's orientation that swap the sides
# Pillow looks for EXIF behind a PNG's pixels, and reads them for it; only a file with one of these can have any.
PNG_EXIF = (b"eXIf", b"Raw profile type", b"XML:com.adobe.xmp")
PATCHES_AT_A_TIME = 64  # normalised while they are in the cache
HALF = (0.5, 0.5, 0.5)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def decode(data: bytes, *, where: str, max_pixels: int) -> Bytes:
    """The pixels of an image file: [H, W, 3], RGB.

    Args: where: names the image in errors. max_pixels: what has more, by its header, is not decoded.
    Raises: DataError for a file that is truncated, of a format not in `FORMATS`, of more pixels, or without any.
    """
    with _opened(data, where) as image:
        width, height = image.size
        if width * height > max_pixels:
            raise DataError(
                f"{where}: {width} x {height} pixels, more than the {max_pixels:,} that are decoded; scale it down, or "
                "raise decode_limit of --image",
                where=where, value=width * height, allowed=max_pixels,
            )  # fmt: skip
        try:
            image.load()
            orientation = _orientation(image, data)
            pixels = _stretched(image) if _is_wide_grey(image) else _rgb(image)
        except Exception as error:  # Pillow's readers raise errors of every kind
            raise _unreadable(where, error) from error
    return np.ascontiguousarray(_upright(pixels, orientation))


def size_of(data: bytes, where: str = "image") -> tuple[int, int]:
    """Height and width that `decode` gives the image, by its header. Raises DataError as `decode` does for it."""
    with _opened(data, where) as image:
        width, height = image.size
        try:
            turned = _orientation(image, data) in TURNED
        except Exception as error:
            raise _unreadable(where, error) from error
    return (width, height) if turned else (height, width)


@dataclass(frozen=True)
class PatchRule:
    """Native resolution, Intern-S1-Pro: sides of whole blocks of m x m patches, area within a range of pixels."""

    patch_size: int = 16
    merge: int = 2
    frames: int = 2
    min_pixels: int = 65_536
    max_pixels: int = 16_777_216
    mean: tuple[float, float, float] = HALF
    std: tuple[float, float, float] = HALF

    def __post_init__(self) -> None:
        _check_values("pixels", self.min_pixels, self.max_pixels, self.mean, self.std)

    def grid(self, height: int, width: int, where: str = "image") -> tuple[int, int]:
        """Rows and columns of patches of an image; its sides are scaled to them.

        Raises: DataError for a side of 0, or sides of a ratio over 200. Published code refuses some of its own results,
            such as 8928 x 32; here an image whose sides are already right keeps them, whatever their ratio.
        """
        factor = self.patch_size * self.merge
        _check_sides(height, width, where)
        right = height % factor == width % factor == 0 and self.min_pixels <= height * width <= self.max_pixels
        if not right and max(height, width) > LONGEST_RATIO * min(height, width):
            raise DataError(
                f"{where}: {width} x {height} pixels, a side over {LONGEST_RATIO} times the other; crop it",
                where=where, value=(height, width), allowed=LONGEST_RATIO,
            )  # fmt: skip
        rows, columns = round(height / factor), round(width / factor)  # a half becomes even, as published
        if rows * columns * factor**2 > self.max_pixels:
            scale = math.sqrt(height * width / self.max_pixels)
            rows = max(1, math.floor(height / scale / factor))
            columns = max(1, math.floor(width / scale / factor))
        elif rows * columns * factor**2 < self.min_pixels:
            scale = math.sqrt(self.min_pixels / (height * width))
            rows, columns = math.ceil(height * scale / factor), math.ceil(width * scale / factor)
        return rows * self.merge, columns * self.merge

    def tokens(self, height: int, width: int, where: str = "image") -> int:
        """Embeddings that the tower makes of an image: one for each block."""
        rows, columns = self.grid(height, width, where)
        return rows * columns // self.merge**2

    def prepare(self, image: Bytes, where: str = "image") -> tuple[Floats, tuple[int, int]]:
        """image: [H, W, 3] -> patches [T, C * frames * P * P] in the order of `vision.Images`, and the grid."""
        pixels, grid = self.cut(image, where)
        patches = np.empty((len(pixels), 3, self.frames, self.patch_size**2), np.float32)
        for first in range(0, len(pixels), PATCHES_AT_A_TIME):
            part = slice(first, first + PATCHES_AT_A_TIME)
            patches[part] = _normalised(pixels[part], self.mean, self.std)[:, :, None]
        return patches.reshape(len(pixels), -1), grid

    def cut(self, image: Bytes, where: str = "image") -> tuple[Bytes, tuple[int, int]]:
        """As `prepare`, before it normalises and repeats the frame, with an eighth of the bytes: [T, C, P * P]."""
        P, m = self.patch_size, self.merge
        rows, columns = self.grid(image.shape[0], image.shape[1], where)
        resized = _resized(image, rows * P, columns * P)
        blocks = resized.reshape(rows // m, m, P, columns // m, m, P, 3).transpose(0, 3, 1, 4, 6, 2, 5)
        return np.ascontiguousarray(blocks).reshape(rows * columns, 3, P * P), (rows, columns)


@dataclass(frozen=True)
class TileRule:
    """Dynamic tiles, Intern-S1: the grid of tiles whose shape is closest to the image's, and the whole image once."""

    tile_size: int = 448
    patch_size: int = 14
    merge: int = 2
    min_tiles: int = 1
    max_tiles: int = 12
    thumbnail: bool = True  # the whole image as a last tile, where there is more than one
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def __post_init__(self) -> None:
        _check_values("tiles", self.min_tiles, self.max_tiles, self.mean, self.std)

    def grid(self, height: int, width: int, where: str = "image") -> tuple[int, int]:
        """Rows and columns of tiles. Raises DataError for a side of 0."""
        _check_sides(height, width, where)
        best, closest = (1, 1), math.inf
        for rows, columns in self._grids:
            distance = abs(width / height - columns / rows)
            # Of shapes equally close, the larger one, unless it has over twice the pixels of the image.
            if distance < closest or (
                distance == closest and height * width > 0.5 * self.tile_size**2 * rows * columns
            ):
                best, closest = (rows, columns), distance
        return best

    def tiles(self, height: int, width: int, where: str = "image") -> int:
        """Tiles of an image, the whole image included."""
        rows, columns = self.grid(height, width, where)
        return rows * columns + (self.thumbnail and rows * columns > 1)

    def tokens(self, height: int, width: int, where: str = "image") -> int:
        """Embeddings that the tower makes of an image."""
        return self.tiles(height, width, where) * (self.tile_size // self.patch_size // self.merge) ** 2

    def prepare(self, image: Bytes, where: str = "image") -> Floats:
        """image: [H, W, 3] -> [tiles, 3, tile_size, tile_size], row by row."""
        S = self.tile_size
        rows, columns = self.grid(image.shape[0], image.shape[1], where)
        resized = _resized(image, rows * S, columns * S)
        tiles = resized.reshape(rows, S, columns, S, 3).transpose(0, 2, 4, 1, 3).reshape(-1, 3, S, S)
        if self.thumbnail and len(tiles) > 1:
            tiles = np.concatenate([tiles, _resized(image, S, S).transpose(2, 0, 1)[None]])
        pixels = tiles.reshape(len(tiles), 3, S * S)
        return np.concatenate([_normalised(tile[None], self.mean, self.std) for tile in pixels]).reshape(tiles.shape)

    @cached_property
    def _grids(self) -> list[tuple[int, int]]:
        """Rows and columns of all grids, by area; of equal ones the narrower first."""
        sides = range(1, self.max_tiles + 1)
        allowed = range(self.min_tiles, self.max_tiles + 1)
        grids = [(rows, columns) for columns in sides for rows in sides if rows * columns in allowed]
        return sorted(grids, key=lambda grid: grid[0] * grid[1])


def pillow(where: str) -> Any:
    """Pillow's `Image` module. Raises DataError that names the extra, where it is not installed."""
    try:
        from PIL import Image
    except ImportError as error:
        raise DataError(
            f"{where}: reading images needs Pillow: pip install -e '.[media]'", where=where, allowed=".[media]"
        ) from error
    return Image


def _opened(data: bytes, where: str) -> Any:
    module = pillow(where)
    try:
        with OPENING:
            limit, module.MAX_IMAGE_PIXELS = module.MAX_IMAGE_PIXELS, None  # max_pixels decides alone
            try:
                image = module.open(io.BytesIO(data), formats=FORMATS)
            finally:
                module.MAX_IMAGE_PIXELS = limit
    except Exception as error:  # Pillow's readers raise errors of every kind
        raise _unreadable(where, error) from error
    _check_sides(image.height, image.width, where)
    return image


def _unreadable(where: str, error: Exception) -> DataError:
    reason = " ".join(str(error).replace("\n", " ").split()) or type(error).__name__
    if "_io.BytesIO object" in reason:  # an address, which differs every time
        reason = f"use one of {', '.join(FORMATS)}"
    return DataError(f"{where}: an image that cannot be read: {reason}", where=where, value=reason)


def _check_sides(height: int, width: int, where: str) -> None:
    if min(height, width) < 1:
        raise DataError(f"{where}: an image of {width} x {height} pixels", where=where, value=(height, width))


def _orientation(image: Any, data: bytes) -> int:
    """EXIF's orientation, 1 to 8; 1 for TIFF, which Pillow turns itself."""
    if image.format == "TIFF":
        return 1
    if image.format == "PNG" and "exif" not in image.info and not any(name in data for name in PNG_EXIF):
        return 1
    found = image.getexif().get(274, 1)
    return found if found in range(1, 9) else 1


def _upright(pixels: Bytes, orientation: int) -> Bytes:
    """pixels: [H, W, C], a view of them: 2 and 4 mirror, 3 and 4 turn by half, 5 to 8 swap the sides."""
    if orientation in TURNED:
        pixels = pixels.transpose(1, 0, 2)
    rows = slice(None, None, -1 if orientation in (3, 4, 7, 8) else 1)
    columns = slice(None, None, -1 if orientation in (2, 3, 6, 7) else 1)
    return pixels[rows, columns]


def _is_wide_grey(image: Any) -> bool:
    return image.mode in GREY or image.mode.startswith("I;16")


def _rgb(image: Any) -> Bytes:
    if image.mode.endswith(("A", "a")) or image.info.get("transparency") is not None:
        image = image.convert("RGBA")
        white = pillow("").new("RGBA", image.size, (255, 255, 255, 255))
        image = pillow("").alpha_composite(white, image)
    return np.asarray(image.convert("RGB"))


def _stretched(image: Any) -> Bytes:
    """One wide channel -> [H, W, 3]; a constant image is black."""
    values = np.asarray(image).astype(np.float64)
    clear = image.info.get("transparency")
    clear = values == clear if isinstance(clear, int) else np.zeros(values.shape, bool)
    shown = values[np.isfinite(values) & ~clear]
    low, high = np.quantile(shown, QUANTILES, method="nearest") if shown.size else (0.0, 0.0)
    if low == high and shown.size:
        low, high = shown.min(), shown.max()
    with np.errstate(invalid="ignore"):
        scaled = np.rint(np.clip((values - low) / ((high - low) or np.inf), 0, 1) * 255)
    if getattr(image, "tag_v2", {}).get(WHITE_IS_ZERO[0]) == WHITE_IS_ZERO[1]:
        scaled = 255 - scaled
    grey = np.where(clear, 255, np.nan_to_num(scaled)).astype(np.uint8)
    return np.repeat(grey[:, :, None], 3, axis=2)


def _check_values(unit: str, least: int, most: int, mean: Sequence[float], std: Sequence[float]) -> None:
    """Raises DataError for values of a rule that fit no image. unit: of the limits."""
    if least > most:
        text = f"--image min_{unit}={least} is more than max_{unit}={most}; use {most} or less"
        raise DataError(text, where=f"--image min_{unit}", value=least, allowed=f"{most} or less")
    for key, values in (("mean", mean), ("std", std)):
        fits = len(values) == 3 and all(map(math.isfinite, values)) and (key == "mean" or min(values) > 0)
        if not fits:
            allowed = f"three finite numbers{' above 0' if key == 'std' else ''}, of red, green and blue"
            shown = ",".join(f"{value:g}" for value in values)
            raise DataError(
                f"--image {key}={shown}; use {allowed}", where=f"--image {key}", value=values, allowed=allowed
            )


def _resized(image: Bytes, height: int, width: int) -> Bytes:
    if image.shape[:2] == (height, width):
        return image
    module = pillow("image")
    return np.asarray(module.fromarray(image).resize((width, height), module.Resampling.BICUBIC))


def _normalised(pixels: Bytes, mean: Sequence[float], std: Sequence[float]) -> Floats:
    """pixels: [N, C, ...] -> the same shape.

    Published code divides by 255 in fp64 and rounds to fp32: for all 256 values what the division in fp32 gives.
    """
    found = pixels.astype(np.float32)
    found /= np.float32(255)
    found -= np.asarray(mean, np.float32)[:, None]
    found /= np.asarray(std, np.float32)[:, None]
    return found
