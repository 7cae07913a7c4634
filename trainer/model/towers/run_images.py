"""Images of a batch in a vision tower: on their own rank, or spread over ranks that then have about as many patches;
and signals in theirs. Together, or each alone.

Legend: H hidden size of the text model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from parallel.balance.moves import Grid, Moves, exchange_rows
from parallel.dispatch.collectives import start_all_to_all
from trainer.config.model import InternViTConfig, VisionConfig
from trainer.model.towers.places import blank_image, choose_images
from trainer.model.towers.time_series import Signal
from trainer.model.towers.vision import Images, normalised

Tower = Callable[[Images | Tensor], Tensor]
SignalTower = Callable[[Sequence[Signal]], Tensor]


class RunImages(Protocol):
    """Runs a tower on the images (or tiles) of a batch."""

    def __call__(self, tower: Tower, images: Images | Tensor, moves: Moves | None) -> Tensor:
        """Embeddings of `images`, one after another [n, H]. moves: of the images of all ranks; None where each rank
        runs its own."""


class RunSignals(Protocol):
    """Runs a tower on the signals of a batch."""

    def __call__(self, tower: SignalTower, signals: Sequence[Signal]) -> Tensor:
        """Embeddings of `signals`, one after another [n, H]."""


def run_here(tower: Tower, images: Images | Tensor, moves: Moves | None) -> Tensor:
    """Implements `RunImages` for images that stay on their rank."""
    assert moves is None, "images are only exchanged by `SpreadImages`"
    return tower(images)


def run_together(tower: SignalTower, signals: Sequence[Signal]) -> Tensor:
    """Implements `RunSignals` as the tower does it."""
    return tower(signals)


class EachImage:
    """Implements `RunImages`: the tower runs once for each image (tile), whose embeddings then do not depend on the
    others, bit for bit. run: what decides where. Ranks that share a tower's weights need equally many images."""

    def __init__(self, run: RunImages) -> None:
        self.run = run

    def __call__(self, tower: Tower, images: Images | Tensor, moves: Moves | None) -> Tensor:
        return self.run(lambda some: _one_by_one(tower, some), images, moves)


def _one_by_one(tower: Tower, images: Images | Tensor) -> Tensor:
    count = len(images.grids if isinstance(images, Images) else images)
    return torch.cat([tower(choose_images(images, [number])) for number in range(count)])


def run_each_signal(tower: SignalTower, signals: Sequence[Signal]) -> Tensor:
    """Implements `RunSignals`: the tower runs once for each signal, as in `EachImage`."""
    return torch.cat([tower([signal]) for signal in signals])


def grids_of(cfg: VisionConfig | InternViTConfig, images: Images | Tensor) -> list[Grid]:
    """Rows and columns of patches of each image, or of each tile."""
    if isinstance(images, Images):
        return [(int(rows), int(columns)) for rows, columns in images.grids]
    assert isinstance(cfg, InternViTConfig)
    return [(cfg.side, cfg.side)] * len(images)


class SpreadImages:
    """Implements `RunImages`: images go to the ranks of `group` that `Moves` names, and their embeddings come back.

    Pixels have no gradient; those of the embeddings take the way back. A rank without images runs the blank one.
    """

    def __init__(self, group: dist.ProcessGroup, cfg: VisionConfig | InternViTConfig) -> None:
        self.group, self.cfg = group, cfg

    def __call__(self, tower: Tower, images: Images | Tensor, moves: Moves | None) -> Tensor:
        if moves is None:
            return tower(images)
        order = [number for numbers in moves.sent for number in numbers]
        grids = grids_of(self.cfg, images)
        tokens = [rows * columns // self.cfg.merge**2 for rows, columns in grids]
        found_nH = exchange_rows(
            tower(self._fetch(images, moves, order)),
            self.group,
            [sum(rows * columns for rows, columns in some) // self.cfg.merge**2 for some in moves.received],
            [sum(tokens[number] for number in numbers) for numbers in moves.sent],
        )
        return _reordered(found_nH, [tokens[number] for number in order], _inverse(order))

    def _fetch(self, images: Images | Tensor, moves: Moves, order: Sequence[int]) -> Images | Tensor:
        """The images that this rank runs."""
        pixels = self._as_sent(images, moves.as_bytes) if isinstance(images, Images) else images
        rows = [rows * columns if isinstance(images, Images) else 1 for rows, columns in grids_of(self.cfg, images)]
        given = [grid for some in moves.received for grid in some]
        per_item = [[r * c if isinstance(images, Images) else 1 for r, c in some] for some in moves.received]
        found = start_all_to_all(
            _reordered(pixels, rows, order),
            self.group,
            [sum(rows[number] for number in numbers) for numbers in moves.sent],
            [sum(some) for some in per_item],
        ).wait()
        if not given:
            blank = blank_image(self.cfg)
            if isinstance(blank, Images):  # in floats, which the tower takes beside bytes
                return blank._replace(pixels=blank.pixels.to(pixels.device))
            return blank.to(pixels)
        return Images(found, given) if isinstance(images, Images) else found

    def _as_sent(self, images: Images, as_bytes: bool) -> Tensor:
        """Pixels in the form that all ranks send, bytes or fp32: a blank image is in floats, and is not sent."""
        cfg, pixels = self.cfg, images.pixels
        assert isinstance(cfg, VisionConfig)
        if pixels.dtype == torch.uint8:
            return pixels if as_bytes else normalised(pixels, cfg.frames)
        if as_bytes:
            return pixels.new_zeros(len(pixels), cfg.channels, cfg.patch_size**2, dtype=torch.uint8)
        return pixels.float()


def _reordered(x: Tensor, rows: Sequence[int], order: Sequence[int]) -> Tensor:
    """Items of x, each of some rows, in another order; those left out are dropped."""
    if list(order) == list(range(len(rows))):
        return x
    parts = x.split(list(rows))
    return torch.cat([parts[number] for number in order]) if order else x[:0]


def _inverse(order: Sequence[int]) -> list[int]:
    return sorted(range(len(order)), key=order.__getitem__)
