"""Images spread over ranks by their patches, decided on the host before a batch is on the device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from parallel.balance.assign import assign, loads
from parallel.balance.moves import Grid, Moves
from parallel.world import World
from trainer.config.model import InternViTConfig, VisionConfig
from trainer.data.batch import Batch
from trainer.model.towers.run_images import grids_of
from trainer.model.towers.vision import Images


class Load(NamedTuple):
    """Largest over mean patches of a rank in the micro-batches that were spread, and what it would have been."""

    tower_load: float
    tower_load_before: float


@dataclass(frozen=True)
class Balance:
    """Spreads the images of micro-batches over the ranks of `world`, which run the tower together."""

    world: World
    vision: VisionConfig | InternViTConfig

    def __call__(self, batches: Sequence[Batch]) -> tuple[list[Batch], Load | None]:
        """This rank's parts of some micro-batches, with the moves of their images, and their load; None without images.

        Collective over `world` where there are images, which all ranks must have in the same micro-batches: a blank
        one where they have none. Sizes are exchanged once for all batches, and no device is involved.
        """
        if all(batch.media is None or batch.media.images is None for batch in batches):
            return list(batches), None
        of_ranks = self.world.gather([(self._grids(batch), _in_bytes(batch)) for batch in batches])
        found, largest, before, mean = [], 0, 0, 0.0
        for batch, *of_each in zip(batches, *of_ranks, strict=True):
            grids, in_bytes = zip(*of_each, strict=True)
            sizes = [[rows * columns for rows, columns in of_rank] for of_rank in grids]
            owners = assign(sizes, [[patches_cost(self.vision, size) for size in of_rank] for of_rank in sizes])
            largest, before = largest + max(loads(sizes, owners)), before + max(map(sum, sizes))
            mean += sum(map(sum, sizes)) / len(sizes)
            stays = all(owner == rank for rank, of_rank in enumerate(owners) for owner in of_rank)
            as_bytes = all(known for known, some in zip(in_bytes, grids, strict=True) if some)
            moves = None if stays else Moves.of(self.world.rank, grids, owners, as_bytes)
            found.append(batch if moves is None else _with_moves(batch, moves))
        return found, Load(largest / mean, before / mean) if mean else None

    def _grids(self, batch: Batch) -> list[Grid]:
        """The grids of images whose embeddings go anywhere: a blank one's do not."""
        media = batch.media
        if media is None or media.images is None:
            return []
        if media.image_places is not None and not len(media.image_places.at):
            return []
        return grids_of(self.vision, media.images)


def _in_bytes(batch: Batch) -> bool:
    images = batch.media and batch.media.images
    return isinstance(images, Images) and images.pixels.dtype == torch.uint8


def patches_cost(vision: VisionConfig | InternViTConfig, patches: int) -> int:
    """Work of an image's patches in a layer of the tower: FLOPs over 4 times its width, those of attention included."""
    return patches * (2 * vision.width + vision.mlp_width + patches)


def _with_moves(batch: Batch, moves: Moves) -> Batch:
    assert batch.media is not None
    return replace(batch, media=replace(batch.media, image_moves=moves))
