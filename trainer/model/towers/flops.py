"""The FLOPs of the towers for the images and signals of a batch, counted on the host."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from trainer.config.model import InternViTConfig, ModelConfig, VisionConfig
from trainer.model.towers.places import image_tokens, signal_tokens
from trainer.model.towers.signal_patches import patch_stride
from trainer.model.towers.time_series import Signal
from trainer.model.towers.vision import Images


def tower_flops(model: ModelConfig, images: Images | Tensor | None, signals: Sequence[Signal]) -> float:
    """Model FLOPs, forward and backward, as the towers' `flops_per_token` count them; 0 for media without a tower."""
    found = 0.0
    if images is not None and model.vision is not None:
        found += _of_images(model.vision, images)
    if signals and model.signals is not None:
        for signal, tokens in zip(signals, signal_tokens(signals), strict=True):
            stride = patch_stride(signal.rate) if signal.stride is None else signal.stride
            channels = signal.values.shape[1]
            found += tokens * model.signals.flops_per_token(stride, tokens, channels)
    return found


def _of_images(vision: VisionConfig | InternViTConfig, images: Images | Tensor) -> float:
    sizes = image_tokens(vision, images)
    if isinstance(vision, InternViTConfig):
        return sum(sizes) * vision.flops_per_token()
    return sum(size * vision.flops_per_token(size * vision.merge**2) for size in sizes)
