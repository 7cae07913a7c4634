"""Towers of a few numbers each, and images and signals for them that differ from sequence to sequence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from trainer.config.model import InternViTConfig, TimeSeriesConfig, VisionConfig
from trainer.data.batch import Media
from trainer.model.initial import seeded_normal
from trainer.model.towers.places import signal_tokens
from trainer.model.towers.time_series import Signal
from trainer.model.towers.vision import Images

IMAGE, SIGNAL = 59, 60  # placeholders, tokens that no sequence has
VISION = VisionConfig(
    width=16, num_layers=2, num_heads=2, mlp_width=24, channels=1, frames=1, patch_size=2, merge=2, position_side=3,
    out_width=16,
)  # fmt: skip
TILES = InternViTConfig(
    width=16, num_layers=2, num_heads=2, mlp_width=24, channels=1, tile_size=4, patch_size=2, merge=2, out_width=16
)
SIGNALS = TimeSeriesConfig(
    bins=6, width=8, num_layers=2, num_heads=2, mlp_width=12, positions=8, adapt_width=10, out_width=16,
    patch_width=8, patch_heads=2, patch_mlp_width=12, patch_positions=16,
)  # fmt: skip


def place_media(
    tokens: Any,
    starts: Any,
    unsupervised: Any,
    numbers: Sequence[int],
    *,
    tiles: bool = False,
    many_images: bool = False,
) -> Media:
    """Write placeholders into sequences, and return their media: an image of one token or two at the sixth place of
    every sixth sequence, a signal or two in every eighth. One micro-batch in six has neither. tiles: a tile for each
    token of an image, and no signals. many_images: up to four in the sequences of a micro-batch, of one token to four,
    most of them in its first half."""
    images, grids, signals = [], [], []
    for row, number in enumerate(numbers):
        found = []
        if number % 4 < 2 or number % 12 == 3 if many_images else number % 6 == 0:
            columns = 2 * (1 + number % 7 % 4) if many_images else 2 + 2 * (number % 4 == 0)
            grids.append((2, columns))
            images.append(seeded_normal((2 * columns, 4), 5, f"image {number}"))
            found.append((5, IMAGE, columns // 2))
        if number % 8 == 3 and not tiles:
            signals.append(Signal(seeded_normal((5 + number % 16, 1 + number % 2), 5, f"signal {number}"), 1.0))
            if number < 16:  # a second one, before it
                signals.insert(-1, Signal(seeded_normal((3, 1), 5, f"signal before {number}"), 1.0))
                found.append((1, SIGNAL, 1))
            found.append((9, SIGNAL, sum(signal_tokens(signals[-1:]))))
        for place, token, length in found:
            assert place + length < tokens.shape[1]
            at = slice(place, place + length)
            tokens[row, at], starts[row, at], unsupervised[row, at] = token, False, True
    if tiles:
        return Media(torch.cat(images).view(-1, 1, 4, 4) if images else None)
    return Media(Images(torch.cat(images), grids) if images else None, tuple(signals))
