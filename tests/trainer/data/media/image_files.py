"""Image files of every kind that a corpus may have, as bytes."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

SEED = 0


def saved(image: Image.Image, format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def colours(height: int, width: int, channels: int = 3, seed: int = SEED) -> np.ndarray:
    """Smooth colours with noise: uint8 [height, width, channels]."""
    random = np.random.default_rng([seed, height, width])
    y, x = np.mgrid[:height, :width]
    waves = [127 + 90 * np.sin(x / 9 + 2 * k) * np.cos(y / 7 + k) for k in range(channels)]
    return np.clip(np.stack(waves, -1) + random.normal(0, 12, (height, width, channels)), 0, 255).astype(np.uint8)


def wide(height: int, width: int, dtype: str) -> np.ndarray:
    """One channel as an instrument gives it: a small part of the range of its type."""
    return (colours(height, width, 1)[:, :, 0].astype(np.float64) * 4 + 300).astype(dtype)


def rgb(height: int, width: int) -> Image.Image:
    return Image.fromarray(colours(height, width))


def mode(name: str, height: int, width: int) -> Image.Image:
    if name == "LA":
        return Image.merge("LA", [Image.fromarray(plane) for plane in np.moveaxis(colours(height, width, 2), 2, 0)])
    return Image.fromarray(colours(height, width, 4)) if name == "RGBA" else rgb(height, width).convert(name)


def png16(
    pixels: np.ndarray, colour_type: int, *chunks: tuple[bytes, bytes], claimed: tuple[int, int] | None = None
) -> bytes:
    """A PNG of 16 bits a channel, which Pillow writes for grey only. pixels: [H, W, C]; claimed: a false H and W."""
    height, width = claimed or pixels.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in parts
    )


def turned(format: str, orientation: int, height: int = 41, width: int = 67) -> bytes:
    image = rgb(height, width)
    exif = Image.Exif()
    exif[274] = orientation
    return saved(image, format, exif=exif, **({"lossless": True} if format == "WEBP" else {}))


def ordinary() -> Iterator[tuple[str, bytes]]:
    """Files that published processors read right when they are opened, with names."""
    yield "rgb png", saved(rgb(97, 131), "PNG")
    yield "rgb jpeg", saved(rgb(301, 400), "JPEG", quality=90)
    yield "progressive jpeg", saved(rgb(211, 187), "JPEG", progressive=True)
    yield "grey jpeg", saved(mode("L", 123, 77), "JPEG")
    yield "cmyk jpeg", saved(mode("CMYK", 90, 91), "JPEG")
    yield "cmyk tiff", saved(mode("CMYK", 33, 65), "TIFF")
    yield "ycbcr tiff", saved(mode("YCbCr", 70, 50), "TIFF")
    yield "lab tiff", saved(mode("LAB", 60, 61), "TIFF")
    yield "1-bit png", saved(mode("1", 99, 64), "PNG")
    yield "1-bit tiff", saved(mode("1", 63, 101), "TIFF", compression="group4")
    yield "grey png", saved(mode("L", 5, 9), "PNG")
    yield "grey and alpha png", saved(mode("LA", 73, 49), "PNG")
    yield "rgba png", saved(mode("RGBA", 111, 89), "PNG")
    yield "rgba webp", saved(mode("RGBA", 87, 45), "WEBP", lossless=True)
    yield "rgba tiff", saved(mode("RGBA", 44, 43), "TIFF")
    yield "palette png", saved(mode("P", 81, 121), "PNG")
    yield "palette with one transparent colour", saved(mode("P", 77, 55), "PNG", transparency=3)
    yield "palette with alphas", saved(mode("P", 70, 41), "PNG", transparency=bytes(range(256)))
    yield "rgb with a transparent colour", saved(rgb(40, 80), "PNG", transparency=tuple(colours(40, 80)[5, 7].tolist()))
    yield "grey with a transparent value", saved(mode("L", 61, 37), "PNG", transparency=127)
    yield "gif", saved(mode("P", 43, 59), "GIF", transparency=1)
    frames = [rgb(48, 56), rgb(48, 56).rotate(180)]
    yield "gif of two frames", saved(frames[0], "GIF", save_all=True, append_images=frames[1:])
    yield "tiff of two pages", saved(frames[0], "TIFF", save_all=True, append_images=frames[1:])
    yield "apng of two frames", saved(frames[0], "PNG", save_all=True, append_images=frames[1:])
    yield "webp of two frames", saved(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    yield "bmp", saved(rgb(31, 33), "BMP")
    yield "tga", saved(rgb(35, 47), "TGA")
    yield "jpeg 2000", saved(rgb(65, 71), "JPEG2000")
    yield "avif", saved(rgb(63, 70), "AVIF")
    yield "ppm", saved(rgb(64, 64), "PPM")
    yield "16-bit rgb png", png16(colours(50, 52).astype(np.uint16) * 257 - 100, 2)
    yield "16-bit rgb and alpha png", png16(colours(37, 39, 4).astype(np.uint16) * 250, 6)
    yield "1 x 1", saved(rgb(1, 1), "PNG")
    yield "16 x 16", saved(rgb(16, 16), "PNG")
    yield "halves to the even multiple", saved(rgb(432, 400), "PNG")
    yield "right already", saved(rgb(320, 256), "PNG")
    yield "1 x 200", saved(rgb(1, 200), "PNG")
    yield "199 x 1", saved(rgb(199, 1), "PNG")
    yield "45 x 8922", saved(rgb(45, 8922), "PNG")
    yield "25 x 1599", saved(rgb(25, 1599), "PNG")


def exif_turned() -> Iterator[tuple[str, bytes]]:
    """Files that published processors read turned from a path, and unturned when they are opened."""
    for orientation in range(1, 9):
        yield f"jpeg, orientation {orientation}", turned("JPEG", orientation)
    yield "png, orientation 6", turned("PNG", 6)
    yield "webp, orientation 8", turned("WEBP", 8)
    yield "tiff, orientation 5", turned("TIFF", 5)


def scientific() -> Iterator[tuple[str, bytes]]:
    """Files that published processors make white or black."""
    yield "16-bit png", saved(Image.fromarray(wide(64, 90, "uint16")), "PNG")
    yield "16-bit tiff", saved(Image.fromarray(wide(71, 53, "uint16")), "TIFF")
    yield "32-bit tiff", saved(Image.fromarray(wide(49, 50, "int32")), "TIFF")
    yield "float tiff", saved(Image.fromarray(wide(55, 45, "float32") / 1e6), "TIFF")
