"""Images and signals of a micro-batch in the places of their placeholders, counted on the host."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from trainer.config.model import ModelConfig
from trainer.data.batch import Batch, Media
from trainer.data.errors import DataError
from trainer.model.towers.places import Places, blank_image, blank_signal, image_tokens, signal_tokens


def placed(batch: Batch, model: ModelConfig) -> Batch:
    """The same batch, whose media have their places. Without towers it stays as it is, and
    with images beside texts instead of among them.

    Raises DataError, which names the sample, where its placeholders and the embeddings of its media differ in number.
    """
    if (model.vision is None and model.signals is None) or model.embedding is not None:
        return batch
    given, ids = batch.media or Media(), batch.inputs["ids"]
    images, signals = given.images, given.signals
    of_images = image_tokens(model.vision, images) if model.vision is not None and images is not None else ()
    return replace(
        batch,
        media=Media(
            images,
            signals,
            _find(ids, model.image_token, of_images, "image", batch.samples),
            _find(ids, model.signal_token, signal_tokens(signals), "signal", batch.samples),
        ),
    )


def alike(batch: Batch, model: ModelConfig, *, images: bool, signals: bool) -> Batch:
    """The same batch, on which the towers run whenever others of its turn have images or signals: ranks that share a
    tower's weights gather them together. It then has a blank one, whose embeddings go nowhere."""
    media = batch.media
    if media is None:
        return batch
    if images and media.images is None and model.vision is not None:
        media = replace(media, images=blank_image(model.vision), image_places=_nowhere())
    if signals and not media.signals and model.signals is not None:
        media = replace(media, signals=(blank_signal(),), signal_places=_nowhere())
    return replace(batch, media=media)


def _nowhere() -> Places:
    none = torch.empty(0, dtype=torch.int64)
    return Places(none, none, (1,))


def _find(ids: Tensor, token: int | None, sizes: tuple[int, ...], kind: str, samples: Sequence[int]) -> Places | None:
    if token is None:
        if sizes:
            raise DataError(
                f"sample {samples[0]} or one after it has {kind}s, and the model has no tower for them; use a model "
                "with towers, or data without",
                where=f"model.{kind}_token",
                value=None,
                allowed=f"a model with a tower for {kind}s",
            )
        return None
    there = ids == token
    ends = [0]
    for size in sizes:
        ends.append(ends[-1] + size)
    reached, bounds = 0, set(ends)
    for row, count in enumerate(there.sum(-1).tolist()):
        reached += count
        last = row == len(ids) - 1
        if reached not in bounds or (last and reached != ends[-1]):
            before = max(end for end in ends if end <= reached - count)
            given = (ends[-1] if last else min((end for end in ends if end >= reached), default=ends[-1])) - before
            raise DataError(
                f"sample {samples[row]} holds {count} {kind} placeholders ({token}), but its {kind}s have {given} "
                "embeddings; one placeholder is needed for each",
                where=f"sample {samples[row]}",
                value=count,
                allowed=given,
            )
    return Places(there.flatten().nonzero().flatten(), None, sizes)
