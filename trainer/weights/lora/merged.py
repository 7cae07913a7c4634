"""A checkpoint with adapters, read as if it held W + scale * B A.

Legend: E experts · I expert width · H hidden size · r rank.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from parallel.errors import UserError
from trainer.checkpoint.errors import CheckpointError
from trainer.checkpoint.slices import StoredState
from trainer.config.keys import LoraConfig
from trainer.storage.boxes import Box, full_box, overlap, relative_to
from trainer.weights.hf_files import open_directory
from trainer.weights.hf_read import read_piece
from trainer.weights.hf_survey import SourceModel, survey_directory
from trainer.weights.lora.base import base_path, gone
from trainer.weights.map import Piece

MODEL = "model."


class MergedState:
    """In the place of `StoredState`, for a checkpoint that holds adapters alone.

    Args: stored: the checkpoint. lora: of its run. base: `identify` of the weights that it was trained on. shapes: of
        the model's parameters. pieces: of its towers, where it has any. elsewhere: a directory that is read where those
        weights are not at the path in `base`, if they are in it.
    Raises: CheckpointError where these weights are in neither directory.
    """

    def __init__(
        self,
        stored: StoredState,
        lora: LoraConfig,
        base: Mapping[str, str],
        shapes: Mapping[str, tuple[int, ...]],
        pieces: Iterable[Piece] = (),
        elsewhere: str | None = None,
    ) -> None:
        self.stored, self.lora, self.shapes = stored, lora, shapes
        self.source = _open_base(stored.path, base, elsewhere)
        self.base = self.source.directory.path
        self.parts: dict[str, list[Piece]] = {}
        for piece in (*self.source.pieces, *pieces):
            self.parts.setdefault(piece.parameter, []).append(piece)

    @property
    def tensors(self) -> dict[str, TensorStorageMetadata]:
        """Those in the checkpoint."""
        return self.stored.tensors

    def shape(self, name: str) -> tuple[int, ...] | None:
        """As `StoredState.shape`, of a merged weight too."""
        return self.stored.shape(name) or self.shapes.get(name.removeprefix(MODEL))

    def compare_one(self) -> None:
        """As `StoredState.compare_one`."""
        self.stored.compare_one()

    def read(self, name: str, box: Box) -> Tensor:
        """A part of a parameter with its adapters merged, in fp32. Raises CheckpointError or HuggingFaceError."""
        parameter = name.removeprefix(MODEL)
        values = torch.empty([part.stop - part.start for part in box])
        for piece in self.parts[parameter]:
            if (both := overlap(box, piece.box)) is not None:
                values[relative_to(both, box)] = read_piece(self.source, piece, both)[0].float()
        self._add(parameter, box, values)
        return values

    def _add(self, parameter: str, box: Box, values: Tensor) -> None:
        """Add what the adapters of `parameter` change in `box` of it."""
        owner, _, weight = parameter.rpartition(".")
        if weight in ("qkv", "out") and self.lora.target != "experts":
            self._add_attention(owner, weight, box, values)
        elif weight in ("w13", "w2") and self.lora.target != "attention":
            experts, *rest, columns = box
            a, b = (self._adapter(f"{owner}.backend.{kind}{weight[1:]}", experts) for kind in "ab")
            a = a[:, :, columns]
            if weight == "w13":
                b = b.unflatten(2, (2, -1))[:, :, rest[0], rest[1]]
                values += self.lora.scale * torch.einsum("erhi,erk->ehik", b, a)
            else:
                values += self.lora.scale * torch.einsum("erh,erk->ehk", b[:, :, rest[0]], a)

    def _add_attention(self, owner: str, weight: str, box: Box, values: Tensor) -> None:
        place, letters = ("into", "qkv") if weight == "qkv" else ("out_of", "o")
        first = 0
        for letter in letters:
            at = f"{owner}.{place}.adapters.{letter}."
            a, b = (self._adapter(f"{at}{kind}") for kind in "ab")
            if (both := overlap(box, (slice(first, first + len(b)), box[1]))) is not None:
                rows = slice(both[0].start - first, both[0].stop - first)
                values[relative_to(both, box)] += self.lora.scale * (b[rows] @ a[:, box[1]])
            first += len(b)

    def _adapter(self, name: str, first: slice | None = None) -> Tensor:
        """An adapter's parameter, of the experts `first` alone where it has any."""
        shape = self.stored.shape(f"{MODEL}{name}")
        if shape is None:
            remedy = "a checkpoint of the run with its config.yaml beside it"
            text = f"{self.stored.path}: {MODEL}{name} is missing; use {remedy}"
            raise CheckpointError(text, where=str(self.stored.path), value=f"{MODEL}{name}", allowed=remedy)
        box = full_box(shape) if first is None else (first, *full_box(shape[1:]))
        return self.stored.read(f"{MODEL}{name}", box)


def _open_base(checkpoint: Path, base: Mapping[str, str], elsewhere: str | None) -> SourceModel:
    """The weights that `identify` found `base` for."""
    path = base_path(checkpoint, base, elsewhere)
    try:
        return survey_directory(open_directory(path))
    except UserError as error:
        raise gone(checkpoint, path, error) from error
