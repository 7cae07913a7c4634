"""The tokens that images and signals become, and where their embeddings go."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from trainer.config.model import InternViTConfig, VisionConfig
from trainer.model.towers.signal_patches import token_count
from trainer.model.towers.time_series import Signal
from trainer.model.towers.vision import Images


class Places(NamedTuple):
    """The places of the embeddings of one kind of media.

    at: [n] int64, in the flattened B * S tokens. rows: [n] int64, of the tower's embeddings that go there; None for all
    of them, in their order. sizes: embeddings of each image (tile) or signal.
    """

    at: Tensor
    rows: Tensor | None = None
    sizes: tuple[int, ...] = ()


def image_tokens(cfg: VisionConfig | InternViTConfig, images: Images | Tensor) -> tuple[int, ...]:
    """Embeddings of each image, or of each tile. Raises TypeError for what is not this tower's."""
    if isinstance(cfg, InternViTConfig):
        if not isinstance(images, Tensor):
            raise TypeError(f"model.vision.kind={cfg.kind} takes tiles, not images in patches")
        return (cfg.tokens,) * len(images)
    if not isinstance(images, Images):
        raise TypeError(f"model.vision.kind={cfg.kind} takes images in patches, not tiles")
    return tuple(int(rows * columns) // cfg.merge**2 for rows, columns in images.grids)


def signal_tokens(signals: Sequence[Signal]) -> tuple[int, ...]:
    """Embeddings of each signal."""
    return tuple(token_count(len(values), rate, stride) for values, rate, stride in signals)


def blank_tile(cfg: InternViTConfig) -> Tensor:
    """[1, channels, tile_size, tile_size]."""
    return torch.zeros(1, cfg.channels, cfg.tile_size, cfg.tile_size)


def blank_image(cfg: VisionConfig | InternViTConfig) -> Images | Tensor:
    """The smallest image that a tower takes, or a tile."""
    if isinstance(cfg, InternViTConfig):
        return blank_tile(cfg)
    return Images(torch.zeros(cfg.merge**2, cfg.patch_values), [(cfg.merge, cfg.merge)])


def blank_signal() -> Signal:
    """A signal of one step, which is one token."""
    return Signal(torch.zeros(1, 1), 1.0)


def choose_images(images: Images | Tensor, numbers: Sequence[int]) -> Images | Tensor:
    """Some of the images, or tiles, in their order."""
    if not isinstance(images, Images):
        return images[torch.tensor(numbers, dtype=torch.int64, device=images.device)]
    patches = images.pixels.split([int(rows * columns) for rows, columns in images.grids])
    return Images(torch.cat([patches[number] for number in numbers]), [images.grids[number] for number in numbers])
