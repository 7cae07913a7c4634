"""Random images and signals in synthetic text, for golden runs and benchmarks of models with towers.

Half of the windows have an image and a quarter has a signal, at a random place each. A window's media depend on its
split and number alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trainer.config import coerce
from trainer.config.model import InternViTConfig, ModelConfig, VisionConfig
from trainer.data.batch import Batch, LateBatch, Media, make_batch
from trainer.data.errors import DataError
from trainer.data.protocols import Data, Split
from trainer.data.synthetic import SPLITS, SyntheticText
from trainer.data.windows import Windows
from trainer.model.towers.places import blank_tile, image_tokens, signal_tokens
from trainer.model.towers.time_series import Signal
from trainer.model.towers.vision import Images

IMAGES, SIGNALS = 2, 4  # one window in so many has one
TOKENS = 256  # of a blank image or signal
LONGEST = 4  # media of one kind are at most so large a part of a window
STEPS_OF_TOKEN, RATE = 8, 1.0  # of a signal


class SyntheticMedia:
    """A `Stream` and a `HeldOut` of the windows of `text`, with media for the towers of `model`."""

    def __init__(self, text: SyntheticText, model: ModelConfig, seed: int) -> None:
        self.shares = text.shares
        self.sources: Sequence[str] = list(text.shares)
        self._text, self._model, self._seed = text, model, seed

    def batch(self, first: int, count: int) -> Batch:
        return self._batch("train", self._text.read(first, count), range(first, first + count))

    def batches(self, source: str, count: int, micro_batch: int) -> Iterator[LateBatch]:
        for first in range(0, count * micro_batch, micro_batch):
            numbers = list(range(first, first + micro_batch))
            yield LateBatch(numbers, partial(self._held_out, source, numbers))

    def _held_out(self, source: str, numbers: list[int]) -> Batch:
        return self._batch("heldout", self._text.read_split("heldout", source, np.array(numbers)), numbers)

    def _batch(self, split: Split, windows: Windows, numbers: Sequence[int]) -> Batch:
        tokens, starts = windows.tokens_BL.copy(), windows.starts_BL.copy()
        unsupervised = windows.context_BL.copy()
        images: list[Images | Tensor] = []
        signals: list[Signal] = []
        for row, number in enumerate(numbers):
            random = np.random.default_rng([self._seed, SPLITS[split], number])
            placed: list[tuple[int | None, int]] = []
            if self._model.vision is not None and random.integers(IMAGES) == 0:
                images.append(self._image(random, tokens.shape[1] - 1))
                placed.append((self._model.image_token, sum(image_tokens(self._model.vision, images[-1]))))
            if self._model.signals is not None and random.integers(SIGNALS) == 0:
                signals.append(_signal(random, tokens.shape[1] - 1))
                placed.append((self._model.signal_token, sum(signal_tokens(signals[-1:]))))
            half = (tokens.shape[1] - 1) // 2
            for place, (token, length) in zip((0, half), placed, strict=False):
                at = slice(first := place + int(random.integers(half - length + 1)), first + length)
                tokens[row, at] = _token(token)
                starts[row, at], unsupervised[row, at] = False, True
        batch = make_batch(replace(windows, tokens_BL=tokens, starts_BL=starts, context_BL=unsupervised), list(numbers))
        return replace(batch, media=Media(_joined(images), tuple(signals)))

    def _image(self, random: np.random.Generator, window: int) -> Images | Tensor:
        cfg, most = self._model.vision, window // LONGEST
        assert cfg is not None
        if isinstance(cfg, InternViTConfig):
            shape = (1 + int(random.integers(most // cfg.tokens)), cfg.channels, cfg.tile_size, cfg.tile_size)
            return torch.from_numpy(_normal(random, *shape))
        side = max(1, int(most**0.5))
        rows, columns = (cfg.merge * (1 + int(random.integers(side))) for _ in range(2))
        return Images(torch.from_numpy(_normal(random, rows * columns, cfg.patch_values)), [(rows, columns)])


def with_media(data: Data, model: ModelConfig, seq_len: int, seed: int) -> Data:
    """Synthetic text of `data` with media for the towers of `model`, whose placeholders the text does not use. Raises
    DataError for windows that are too short for a tile."""
    assert isinstance(data.text, SyntheticText)
    if isinstance(model.vision, InternViTConfig) and model.vision.tokens * LONGEST > seq_len:
        least = model.vision.tokens * LONGEST
        raise DataError(
            f"data.seq_len={seq_len} is too short for synthetic images: a tile has {model.vision.tokens} tokens, and "
            f"is at most a quarter of a window; use {least} or more, or a model without its vision tower",
            where="data.seq_len",
            value=seq_len,
            allowed=f"{least} or more",
        )
    media = SyntheticMedia(data.text, model, seed)
    towers = [coerce.to_dict(tower) for tower in (model.vision, model.signals) if tower is not None]
    fingerprint = coerce.digest({"text": data.fingerprint, "towers": towers})
    return replace(data, stream=media, heldout=media, fingerprint=fingerprint)


def blank_media(model: ModelConfig, ids: Tensor) -> Media | None:
    """Zeros for the towers, an image and a signal of up to `TOKENS` tokens for each window, whose placeholders are
    written into ids [B, S]; None without towers. Media of one kind are at most a quarter of a window, but for a tile,
    which is left out where a window is shorter."""
    windows, most = ids.shape[0], ids.shape[1] // LONGEST
    images: Images | Tensor | None = None
    signals: tuple[Signal, ...] = ()
    if isinstance(model.vision, InternViTConfig):
        if model.vision.tokens <= ids.shape[1]:
            images = blank_tile(model.vision).expand(windows, -1, -1, -1)
            ids[:, : model.vision.tokens] = _token(model.image_token)
    elif isinstance(model.vision, VisionConfig):
        side = int(min(TOKENS, max(most, 1)) ** 0.5)
        patches, grid = (side * model.vision.merge) ** 2, (side * model.vision.merge,) * 2
        images = Images(torch.zeros(windows * patches, model.vision.patch_values), [grid] * windows)
        ids[:, : side * side] = _token(model.image_token)
    if model.signals is not None:
        signal = Signal(torch.zeros(STEPS_OF_TOKEN * min(TOKENS, max(most, 1)), 1), RATE)
        signals = (signal,) * windows
        ids[:, most : most + signal_tokens([signal])[0]] = _token(model.signal_token)
    return Media(images, signals) if images is not None or signals else None


def _token(placeholder: int | None) -> int:
    assert placeholder is not None  # the checks of the model have seen that a tower has one
    return placeholder


def _signal(random: np.random.Generator, window: int) -> Signal:
    steps = STEPS_OF_TOKEN * (1 + int(random.integers(max(1, window // LONGEST))))
    return Signal(torch.from_numpy(_normal(random, steps - int(random.integers(STEPS_OF_TOKEN)), 1)), RATE)


def _normal(random: np.random.Generator, *shape: int) -> npt.NDArray[np.float32]:
    return random.standard_normal(shape, np.float32)


def _joined(images: Sequence[Images | Tensor]) -> Images | Tensor | None:
    if not images:
        return None
    if isinstance(images[0], Tensor):
        return torch.cat([image for image in images if isinstance(image, Tensor)])
    parts = [image for image in images if isinstance(image, Images)]
    return Images(torch.cat([part.pixels for part in parts]), [grid for part in parts for grid in part.grids])
