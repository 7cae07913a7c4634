"""FP8 with block scaling as its formula says, in fp64, by way of a list of the numbers of e4m3; for tests."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor


def number_of(code: int) -> float:
    """The value of one byte in e4m3: 1 bit of sign, 4 of exponent (bias 7), 3 of mantissa; no infinity, one NaN."""
    sign, exponent, mantissa = -1.0 if code & 0x80 else 1.0, (code >> 3) & 0xF, code & 7
    if code & 0x7F == 0x7F:
        return math.nan
    return sign * (mantissa / 8 * 2.0**-6 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7))


NUMBERS = np.array([number_of(code) for code in range(256)])


def expected_scale(amax: float) -> float:
    if math.isnan(amax) or math.isinf(amax) or amax == 0:
        return 1.0
    # A quotient of fp32 numbers may be rounded to fp64 before it is rounded to fp32: 53 bits are more than 2 * 24 + 1.
    with np.errstate(over="ignore"):
        ratio = float(np.float32(448.0 / amax))
    return 2.0 ** math.floor(math.log2(min(ratio, float(np.finfo(np.float32).max))))


def expected_codes(scaled: np.ndarray) -> np.ndarray:
    """The nearest of the numbers, of two as near the one whose code is even; above all of them the largest."""
    rising = NUMBERS[:127]  # 0 ... 448
    size = np.minimum(np.abs(scaled), 448.0)
    above = np.clip(np.searchsorted(rising, size), 1, 126)
    below = above - 1
    to_above, to_below = rising[above] - size, size - rising[below]
    even = np.where(above % 2 == 0, above, below)
    code = np.where(to_above < to_below, above, np.where(to_above > to_below, below, even))
    code = np.where(np.isnan(scaled), 127, code)
    return code + 128 * np.signbit(scaled)


def expected_tiles(x: Tensor, tile: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes, scales and dequantised values of x [..., R, C], which is rounded to fp32 first."""
    given = x.detach().to(torch.float32).double().numpy()
    rows, columns = given.shape[-2:]
    scale = np.empty((*given.shape[:-2], -(-rows // tile[0]), -(-columns // tile[1])))
    codes, values = np.empty(given.shape, dtype=np.int64), np.empty(given.shape)
    for index in np.ndindex(scale.shape):
        *matrix, r, c = index
        place = (*matrix, slice(r * tile[0], (r + 1) * tile[0]), slice(c * tile[1], (c + 1) * tile[1]))
        scale[index] = expected_scale(float(np.max(np.abs(given[place]))))
        codes[place] = expected_codes(given[place] * scale[index])
        values[place] = NUMBERS[codes[place]] / scale[index]
    return codes, scale, values
