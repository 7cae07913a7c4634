"""Finds the SVG in an answer, and compares images.

Source: VLMEvalKit, dataset/utils/sarena.py and dataset/utils/SArena/ (SSIM.py, PSNR.py), which use scikit-image 0.2x.
"""

from __future__ import annotations

import math
import re
from typing import Any

WINDOW = 11


def svg_in(answer: str) -> str:
    """The last ```svg block; else from the first `<svg` to the last `</svg>`; else the whole text."""
    if blocks := re.findall(r"```svg(.*?)```", answer, re.DOTALL):
        return str(blocks[-1]).strip()
    start, end = answer.find("<svg"), answer.rfind("</svg>")
    return answer[start : end + len("</svg>")] if start >= 0 and end >= 0 else answer.strip()


def similarity(first: Any, second: Any) -> float:
    """Structural similarity (SSIM) of two uint8 images [height, width, 3], the mean over channels; -1 to 1.

    Windows of 11 x 11 pixels of equal weight, sample covariances, constants 0.01 and 0.03 of 255, borders of 5 left
    out: scikit-image's defaults, as the published scorer calls it (its sigma has no effect without Gaussian weights).
    """
    import numpy as np
    from scipy.ndimage import uniform_filter

    def smooth(image: Any) -> Any:
        return uniform_filter(image, size=(WINDOW, WINDOW, 1))

    one, other = np.asarray(first, np.float64), np.asarray(second, np.float64)
    count = WINDOW * WINDOW
    unbiased = count / (count - 1)
    mean_one, mean_other = smooth(one), smooth(other)
    var_one = unbiased * (smooth(one * one) - mean_one * mean_one)
    var_other = unbiased * (smooth(other * other) - mean_other * mean_other)
    both = unbiased * (smooth(one * other) - mean_one * mean_other)
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    top = (2 * mean_one * mean_other + c1) * (2 * both + c2)
    bottom = (mean_one**2 + mean_other**2 + c1) * (var_one + var_other + c2)
    edge = WINDOW // 2
    return float((top / bottom)[edge:-edge, edge:-edge].mean())


def mean_square(first: Any, second: Any) -> float:
    """Mean squared difference of two uint8 images of one shape, 0 to 255 squared."""
    import numpy as np

    return float(np.mean((np.asarray(first, np.float64) - np.asarray(second, np.float64)) ** 2))


def signal_to_noise(error: float) -> float:
    """Peak signal-to-noise ratio in dB of a mean squared error; 100 for equal images, as published."""
    return 10 * math.log10(255**2 / error) if error else 100.0
