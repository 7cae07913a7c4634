"""Media in the places of their placeholders: counts that differ, slices of ranks, blanks for the towers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from parallel.context.share import Share
from tests.trainer.stages.media import IMAGE, SIGNAL, SIGNALS, VISION
from tests.trainer.tiny_run import MODEL
from trainer.config.model import ModelConfig
from trainer.data.batch import IGNORE, Batch, Media, make_batch
from trainer.data.errors import DataError
from trainer.data.media.images import PatchRule
from trainer.data.media.placed import alike, placed
from trainer.data.windows import Prepared, Windows
from trainer.model.towers.time_series import Signal
from trainer.model.towers.vision import Images, normalised

TEXT = ModelConfig(**MODEL)
CFG = replace(TEXT, vision=VISION, image_token=IMAGE, signals=SIGNALS, signal_token=SIGNAL)
IMG, S = IMAGE, SIGNAL
TWO = Images(torch.arange(48.0).view(12, 4), [(2, 4), (2, 2)])  # of two tokens and of one
ONE = Signal(torch.ones(3, 1), 1.0)  # of one token


def batch(rows: list[list[int]], media: Media | None = None) -> Batch:
    ids = torch.tensor(rows)
    inputs = {"ids": ids, "positions": torch.arange(ids.shape[1]).expand_as(ids)}
    bounds = torch.tensor([0, ids.numel()], dtype=torch.int32)
    return Batch(inputs, torch.full_like(ids, IGNORE), bounds, 1, list(range(7, 7 + len(rows))), media=media)


def test_places_of_images_and_signals():
    found = placed(batch([[1, IMG, IMG, 2], [S, 3, IMG, 4]], Media(TWO, (ONE,))), CFG).media
    assert found.image_places.at.tolist() == [1, 2, 6]
    assert found.image_places.sizes == (2, 1)
    assert found.signal_places.at.tolist() == [4]
    text = placed(batch([[1, 2]]), CFG).media
    assert (text.images, text.image_places.at.tolist(), text.image_places.sizes) == (None, [], ())
    assert placed(batch([[1, IMG]]), TEXT).media is None


@pytest.mark.parametrize(
    ("rows", "media", "sample", "found", "needed"),
    [
        ([[1, IMG, 2, 2], [1, IMG, 2, 2]], Media(TWO), 7, 1, 2),  # the second token of the first image is missing
        ([[1, IMG, IMG, 2], [1, 2, 2, 2]], Media(TWO), 8, 0, 1),
        ([[1, IMG, IMG, 2], [IMG, IMG, 2, 2]], Media(TWO), 8, 2, 1),
        ([[1, 2, 2, 2], [IMG, 2, 2, 2]], None, 8, 1, 0),
        ([[1, S, S, 2], [1, 2, 2, 2]], Media(None, (ONE,)), 7, 2, 1),
    ],
)
def test_counts_that_differ_name_the_sample(rows, media, sample, found, needed):
    with pytest.raises(DataError) as refused:
        placed(batch(rows, media), CFG)
    assert (refused.value.where, refused.value.value, refused.value.allowed) == (f"sample {sample}", found, needed)


def test_media_for_a_tower_that_is_missing():
    with pytest.raises(DataError) as refused:
        placed(batch([[1, 2]], Media(None, (ONE,))), replace(CFG, signals=None, signal_token=None))
    assert refused.value.where == "model.signal_token"


@pytest.mark.parametrize("kind", ["ulysses", "ring"])
def test_a_rank_has_the_images_of_its_slices(kind):
    """An image across two slices is on both of their ranks, each with its own embeddings of it."""
    whole = placed(batch([[1, 2, 3, IMG, IMG, 4, IMG, S]], Media(TWO, (ONE,))), CFG)
    given = []
    for rank in range(2):
        share = Share(kind, 2, rank)
        part = whole.part(share)
        media, ids = part.media, part.inputs["ids"][0]
        images = media.image_places
        assert sum(rows * columns for rows, columns in media.images.grids) == len(media.images.pixels)
        assert (ids[images.at] == IMG).all()
        assert len(images.at) == int((ids == IMG).sum())
        # Tokens of the rank's images, as (first pixel of the image, number in it).
        tokens, first = [], 0
        for rows, columns in media.images.grids:
            tokens += [(media.images.pixels[first, 0].item(), n) for n in range(rows * columns // 4)]
            first += rows * columns
        given += [
            (int(share.take(torch.arange(8))[at]), tokens[row]) for at, row in zip(images.at, images.rows, strict=True)
        ]
        assert len(media.signals) == 1  # needed, or kept so that both ranks run the tower
        assert len(media.signal_places.at) == int((ids == S).sum())
    assert sorted(given) == [(3, (0.0, 0)), (4, (0.0, 1)), (6, (32.0, 0))]


def test_towers_run_on_a_blank_where_other_ranks_have_media():
    with_media, without = batch([[IMG, IMG, IMG]], Media(TWO)), batch([[1, 2, 3]])
    first, second = (alike(placed(one, CFG), CFG, images=True, signals=False) for one in (with_media, without))
    assert first.media.images is TWO
    assert second.media.images.grids == [(2, 2)]
    assert second.media.image_places.rows.tolist() == []
    assert (first.media.signals, second.media.signals) == ((), ())
    (blank,) = alike(placed(without, CFG), CFG, images=False, signals=True).media.signals
    assert blank.values.shape == (1, 1)
    assert alike(placed(without, CFG), CFG, images=False, signals=False).media.images is None


def test_bytes_beside_floats_become_floats():
    """A rule with a mean of its own makes floats."""
    image = np.arange(96 * 64 * 3, dtype=np.int64).astype(np.uint8).reshape(96, 64, 3)
    rule, other = PatchRule(min_pixels=1024), PatchRule(min_pixels=1024, mean=(0.4, 0.5, 0.6))
    tokens = np.array([[1, 2, 3]])
    windows = Windows(tokens, np.zeros_like(tokens, bool), np.zeros_like(tokens, bool))

    def pixels(*values: Any) -> Tensor:
        media = tuple(Prepared("image", 0, 0, 1, value) for value in values)
        return make_batch(replace(windows, media=media), [0]).media.images.pixels

    alone = pixels(rule.cut(image), rule.cut(image))
    assert (alone.dtype, alone.shape) == (torch.uint8, (48, 3, 256))
    both = [torch.from_numpy(of.prepare(image)[0]) for of in (rule, other)]
    assert normalised(alone, 2).equal(torch.cat([both[0], both[0]]))
    assert pixels(rule.cut(image), other.prepare(image)).equal(torch.cat(both))
