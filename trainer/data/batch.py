"""Micro-batches: what the model is called with, and what the objective compares its output to.

Shape legend: B windows of a micro-batch · S positions of a window · L = S + 1 tokens read for it · D documents
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from parallel.balance.moves import Moves
from parallel.context.share import Share
from trainer.data.weights import Reduction, label_weights
from trainer.data.windows import Prepared, Windows
from trainer.model.towers.places import Places, choose_images
from trainer.model.towers.time_series import Signal
from trainer.model.towers.vision import Images, normalised

IGNORE = -100  # the label that the loss skips, torch's default ignore_index


@dataclass(frozen=True)
class Media:
    """Images and signals of a micro-batch, in the order of their placeholders in its flattened ids.

    images: what the vision tower takes: `Images` (Intern-S1-Pro) or tiles [tiles, channels, side, side] (Intern-S1);
    None without any. signals: as `prepare_signal` makes them. image_places, signal_places: where their embeddings go;
    None where nothing has looked yet. image_moves: of images that other ranks run; None where each rank runs its own.
    """

    images: Images | Tensor | None = None
    signals: tuple[Signal, ...] = ()
    image_places: Places | None = None
    signal_places: Places | None = None
    image_moves: Moves | None = None

    def inputs(self) -> dict[str, Any]:
        """The arguments of the model's forward pass, by name."""
        return {one.name: getattr(self, one.name) for one in fields(self)}

    def part(self, share: Share, tokens: int) -> Media:
        """The media of a rank that shares sequences of `tokens` tokens: the images and signals with an embedding in its
        slices. Where there is none it keeps the smallest, so that all ranks run the same towers."""
        images, signals = self.images, self.signals
        local = torch.full((tokens,), -1)
        mine = share.take(torch.arange(tokens))
        local[mine] = torch.arange(len(mine))
        image_places, of_images = _slice(self.image_places, local)
        signal_places, of_signals = _slice(self.signal_places, local)
        if images is not None:
            images = choose_images(images, of_images)
        return Media(images, tuple(signals[number] for number in of_signals), image_places, signal_places)

    def to(self, device: torch.device | str) -> Media:
        """The same media with pixels and values on `device`."""
        images = self.images
        if isinstance(images, Images):
            images = images._replace(pixels=_move(images.pixels, device))
        elif images is not None:
            images = _move(images, device)
        signals = tuple(signal._replace(values=_move(signal.values, device)) for signal in self.signals)
        image_places, signal_places = (
            of and Places(_move(of.at, device), None if of.rows is None else _move(of.rows, device), of.sizes)
            for of in (self.image_places, self.signal_places)
        )
        return Media(images, signals, image_places, signal_places, self.image_moves)


@dataclass(frozen=True)
class Batch:
    """One micro-batch of B windows of S positions.

    inputs: keyword arguments of the model's forward, batch dimension first. Text has `ids` and `positions`, both [B, S]
    int64; a position is counted from the first token of its document that is in the window.
    """

    inputs: Mapping[str, Tensor]
    labels: Tensor | None  # [B, S] int64: the next token of the document, or IGNORE; None if the objective needs none
    cu_seqlens: Tensor  # [D + 1] int32, always on the CPU: document boundaries in the flattened B * S positions
    num_tokens: int  # supervised positions, counted on the host; the loss of a step is normalised by their sum
    samples: Sequence[int]  # [B] sample numbers
    faults: tuple[str, ...] = ()  # as of `Windows`: a line for each unreadable sample or document
    media: Media | None = None  # None for text alone
    weights: Tensor | None = None  # [B, S] fp64, of labels that do not weigh the same; 0 where there is none
    extra: Mapping[str, Tensor] = field(default_factory=dict)  # [B, S], what an objective reads beside the labels

    def model_inputs(self) -> dict[str, Any]:
        """The arguments of the model's forward pass, by name."""
        media = {} if self.media is None else self.media.inputs()
        return {**self.inputs, "cu_seqlens": self.cu_seqlens, **media}

    def part(self, share: Share) -> Batch:
        """The part of a rank that shares the sequences: inputs and labels [1, T] of its slices of the flattened B * S
        positions, and the number of its own supervised ones. `cu_seqlens` and `samples` stay those of the whole."""
        if share.ranks == 1:
            return self
        inputs, extra = (
            {name: share.take(tensor.flatten(0, 1)).unsqueeze(0) for name, tensor in of.items()}
            for of in (self.inputs, self.extra)
        )
        labels, weights = (
            None if of is None else share.take(of.flatten()).unsqueeze(0) for of in (self.labels, self.weights)
        )
        num_tokens = 0 if labels is None else int((labels != IGNORE).sum())
        tokens = next(iter(self.inputs.values())).shape[:2].numel()
        media = None if self.media is None else self.media.part(share, tokens)
        return replace(
            self, inputs=inputs, labels=labels, num_tokens=num_tokens, media=media, weights=weights, extra=extra
        )

    def to(self, device: torch.device | str) -> Batch:
        """The same batch with inputs, labels, weights, media and extra on `device`; `cu_seqlens` stays on the CPU."""
        inputs, extra = (
            {name: _move(tensor, device) for name, tensor in of.items()} for of in (self.inputs, self.extra)
        )
        labels, weights = (None if of is None else _move(of, device) for of in (self.labels, self.weights))
        media = None if self.media is None else self.media.to(device)
        return replace(self, inputs=inputs, labels=labels, media=media, weights=weights, extra=extra)


def _slice(places: Places | None, local: Tensor) -> tuple[Places | None, list[int]]:
    """The places in a rank's slices, and the numbers of the images or signals that it needs for them. local: [tokens],
    the place of each token among the rank's, or -1."""
    if places is None or not places.sizes:
        return places, []
    at = local[places.at]
    rows = (at >= 0).nonzero().flatten()
    here, rows = at[rows], rows if places.rows is None else places.rows[rows]
    ends = torch.tensor(places.sizes).cumsum(0)
    needed = torch.searchsorted(ends, rows, right=True).unique().tolist()
    needed = needed or [min(range(len(ends)), key=lambda number: places.sizes[number])]
    sizes = tuple(places.sizes[number] for number in needed)
    # A row's place among those of the items that stay: less what the others before it have.
    kept = torch.zeros(len(ends), dtype=torch.int64)
    kept[needed] = torch.tensor(sizes)
    number = torch.searchsorted(ends, rows, right=True)
    before = (ends - torch.tensor(places.sizes))[number], (kept.cumsum(0) - kept)[number]
    return Places(here, rows - before[0] + before[1], sizes), needed


@dataclass(frozen=True)
class LateBatch:
    """A batch that is read only where it is needed. samples: as of the batch. read: returns it."""

    samples: Sequence[int]
    read: Callable[[], Batch]


def _move(tensor: Tensor, device: torch.device | str) -> Tensor:
    pin = torch.device(device).type == "cuda"  # copies from pinned memory alone run beside the host
    return (tensor.pin_memory() if pin else tensor).to(device, non_blocking=True)


def make_batch(windows: Windows, samples: Sequence[int], reduction: Reduction = "token") -> Batch:
    """Label and delimit windows of S + 1 tokens.

    The label of position p is token p + 1, so that windows that overlap by one token leave no token of a document
    without a label; it is IGNORE where token p + 1 starts another document, or is context. Every window start
    is a boundary. Images and signals are joined in the order of their placeholders. reduction: other than token gives
    labels weights.
    """
    tokens_BL, starts_BL = windows.tokens_BL, windows.starts_BL
    B, S = tokens_BL.shape[0], tokens_BL.shape[1] - 1
    supervised_BS = windows.supervised_BS
    labels_BS = np.where(supervised_BS, tokens_BL[:, 1:], IGNORE)
    first_BS = starts_BL[:, :S].copy()
    first_BS[:, 0] = True
    column_S = np.arange(S)
    positions_BS = column_S - np.maximum.accumulate(np.where(first_BS, column_S, 0), axis=1)
    boundaries = np.append(np.flatnonzero(first_BS), B * S).astype(np.int32)
    return Batch(
        inputs={
            "ids": torch.from_numpy(np.ascontiguousarray(tokens_BL[:, :S])),
            "positions": torch.from_numpy(positions_BS),
        },
        labels=torch.from_numpy(labels_BS),
        cu_seqlens=torch.from_numpy(boundaries),
        num_tokens=int(np.count_nonzero(supervised_BS)),
        samples=samples,
        faults=windows.faults,
        media=media_of(windows.media),
        weights=None if reduction == "token" else torch.from_numpy(label_weights(first_BS, supervised_BS, reduction)),
    )


def media_of(prepared: Sequence[Prepared]) -> Media | None:
    """The inputs of the towers for what `prepare` returned, in its order; None without any."""
    if not prepared:
        return None
    values = [medium.value for medium in prepared if medium.kind == "image"]
    images: Images | Tensor | None = None
    if values and isinstance(values[0], tuple):
        images = Images(_joined([torch.from_numpy(patches) for patches, _ in values]), [grid for _, grid in values])
    elif values:
        images = torch.from_numpy(np.concatenate(values))
    signals = [medium.value for medium in prepared if medium.kind == "signal"]
    return Media(images, tuple(Signal(torch.from_numpy(one.values), one.rate, one.stride) for one in signals))


def _joined(patches: Sequence[Tensor]) -> Tensor:
    """Patches of all images: bytes, or floats where a rule of some of them has a mean of its own."""
    floats = next((some for some in patches if some.dtype != torch.uint8), None)
    if floats is not None:
        patches = [
            normalised(some, floats.shape[1] // some.shape[1:].numel()) if some.dtype == torch.uint8 else some
            for some in patches
        ]
    return torch.cat(list(patches))
