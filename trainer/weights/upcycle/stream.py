"""The tensors of an expanded model, made from the source's a few at a time, with shapes and sizes known in advance.

Every bundle's `make` is a pure function of the source's bytes, the expansion and the names of its outputs.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from trainer.config.model import ModelConfig
from trainer.model.initial import fope_matrix
from trainer.storage.boxes import Box, full_box, read_into
from trainer.storage.progress import OnProgress, ignore
from trainer.weights.beside.remote_code import attach_code
from trainer.weights.beside.side_files import SideFiles
from trainer.weights.dtypes import DtypeName, dtypes, full_dtype, outputs_of, scales_as, stored_as, unconverted
from trainer.weights.hf_config import huggingface_config
from trainer.weights.hf_files import HuggingFaceError
from trainer.weights.hf_read import DTYPES, bytes_of, read_piece, read_tensor, require_finite
from trainer.weights.hf_survey import FP8, SourceModel, quantization
from trainer.weights.hf_write import Bundle, copy_of
from trainer.weights.map import Piece, full_name, text_pieces
from trainer.weights.upcycle.coactivation import Counts
from trainer.weights.upcycle.describe import base_config, prefix_of, side_files_of, warnings_of
from trainer.weights.upcycle.noise import Noise
from trainer.weights.upcycle.placement import CopyPlacement, Expansion, check, expanded_model, place_copies
from trainer.weights.upcycle.rows import moved_rows
from trainer.weights.upcycle.vocabulary import Vocabulary, vocabulary_of

TABLES = ("embed", "lm_head")


class _Scratch(threading.local):
    """Memory that a thread reuses for every bundle: allocating it anew costs about as much as copying."""

    def __init__(self) -> None:
        self.bytes = torch.empty(0, dtype=torch.uint8)

    def tensor(self, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
        """A tensor of uninitialised values; the next call takes its memory back."""
        need = prod(shape) * dtype.itemsize
        if self.bytes.nbytes < need:
            self.bytes = torch.empty(need, dtype=torch.uint8)
        return self.bytes[:need].view(dtype).view(shape)


@dataclass(frozen=True)
class Upcycled:
    """An expanded model before any weight is read: its names, shapes and tokenizer are known."""

    bundles: list[Bundle]  # layer by layer, towers last; one at a time in a thread
    placement: CopyPlacement
    model: ModelConfig
    config: dict[str, Any]  # config.json
    facts: dict[str, Any]  # for the manifest
    side_files: SideFiles  # tokenizer and the like


def plan_upcycle(
    source: SourceModel,
    expansion: Expansion,
    dtype: DtypeName = "source",
    counts: Counts | None = None,
    progress: OnProgress = ignore,
) -> Upcycled:
    """Plan the expansion of a directory from its headers and tokenizers; weights are read when a bundle is made.

    Args:
        dtype: dtype of the text model. "source" keeps each tensor's; otherwise as in `export`.
        counts, progress: as in `place_copies`.
    Raises: UpcycleError; HuggingFaceError if the directory is incomplete or not one model;
        UserError for a dtype that does not exist.
    """
    old = source.model
    check(old, expansion)
    per_token = expansion.picks(old.experts_per_token)
    placement = place_copies(old.num_experts, per_token, expansion, old.num_layers, counts, progress)
    source.require(towers=True)
    vocabulary = vocabulary_of(source, expansion)
    model = expanded_model(old, expansion, old.vocab_size if vocabulary is None else len(vocabulary.rows))
    bundles = list(_Text(source, model, expansion, vocabulary, dtype).bundles(placement))
    outputs = [output for bundle in bundles for output in bundle.outputs]
    scale_fmt: Any = "ue8m0"  # of scales that are made here; others are copied
    if FP8 in source.kinds.values():
        scale_fmt = (quantization(source.directory) or {}).get("scale_fmt")
    config = huggingface_config(
        model,
        base_config(source, model, vocabulary),
        dtype=full_dtype(outputs),
        unconverted=unconverted(outputs),
        scale_fmt=scale_fmt,
    )
    facts = {
        "source": str(source.directory.path.absolute()),
        "expansion": asdict(expansion),
        "identical_copies": placement.identical,
        "warnings": warnings_of(source, model, expansion, placement, {output.dtype for output in outputs}, vocabulary),
        "vocabulary": None if vocabulary is None else vocabulary.facts(),
        "placement": placement.facts(),
    }
    bundles += [copy_of(tensor) for tensor in source.carried]
    beside = side_files_of(source.directory.path, expansion, vocabulary)
    same_model = source.directory.config.get("model_type") == config.get("model_type")
    beside |= attach_code(config, beside, same_model=same_model)
    return Upcycled(bundles, placement, model, config, facts, beside)


class _Text:
    """The text model's bundles."""

    def __init__(
        self,
        source: SourceModel,
        model: ModelConfig,
        expansion: Expansion,
        vocabulary: Vocabulary | None,
        dtype: DtypeName,
    ) -> None:
        self.source, self.model, self.expansion, self.vocabulary = source, model, expansion, vocabulary
        self.prefix, self.choose = prefix_of(source, model), dtypes(dtype, source.kinds)
        self.noise, self.scratch = Noise(expansion.noise, expansion.seed), _Scratch()
        self.pieces = {(piece.parameter, _starts(piece.box)): piece for piece in source.pieces}

    def bundles(self, placement: CopyPlacement) -> Iterator[Bundle]:
        """Bundles in the order of the source's layers. The copies of an expert's matrix are one bundle, read once."""
        copies: dict[tuple[str, tuple[int, ...]], list[Piece]] = {}
        for piece in text_pieces(self.model):
            layer = int(piece.parameter.split(".")[1]) if piece.parameter.startswith("layers.") else -1
            if ".moe.experts." in piece.parameter:
                expert = placement.source_of[layer][piece.box[0].start]
                copies.setdefault((piece.parameter, (expert, *_starts(piece.box[1:]))), []).append(piece)
                continue
            yield from (self._copies(pieces, expert) for (_, (expert, *_)), pieces in copies.items())
            copies = {}
            if piece.parameter.endswith("moe.router.weight"):
                yield self._router(piece, placement.source_of[layer])
            elif piece.parameter in TABLES:
                yield self._table(piece)
            elif piece.parameter.startswith("rotary.") and self.source.model.positions != "fope":
                yield self._new_positions(piece)
            else:
                yield self._unchanged(piece)

    def _copies(self, pieces: list[Piece], expert: int) -> Bundle:
        dtype, box = self.choose(pieces[0]), (slice(expert, expert + 1), *pieces[0].box[1:])
        shape, names = pieces[0].shape, [piece.name for piece in pieces]
        read = self._read_name(box, pieces[0])
        scales = self._scales(pieces[0], box)
        outputs = tuple(output for piece in pieces for output in outputs_of(self._name(piece), dtype, shape, scales))

        def exact() -> Sequence[Tensor]:
            return [*self._stored(box, pieces[0], dtype)] * len(pieces)

        def noisy() -> Iterator[Tensor]:
            values = self._values(box, pieces[0])
            if dtype != FP8:
                yield from self.noise.copies(values, names, DTYPES[dtype], read)
                return
            for name in names:
                runs = self.noise.copies(values, [name], torch.float32, read)
                yield from stored_as(torch.cat([run.clone() for run in runs]), FP8, scales)

        return Bundle(outputs, noisy if self.noise.relative else exact)

    def _router(self, piece: Piece, source_of: list[int]) -> Bundle:
        dtype, temperature = self.choose(piece), self.expansion.router_temperature
        box = (slice(0, self.source.model.num_experts), piece.box[1])

        def make() -> Iterator[Tensor]:
            rows = self._values(box, piece)[torch.tensor(source_of)]
            if temperature != 1:
                rows = rows.double() / temperature
            return self.noise.copies(rows, [piece.name], DTYPES[dtype], self._read_name(box, piece))

        return Bundle(outputs_of(self._name(piece), dtype, piece.shape), make)

    def _table(self, piece: Piece) -> Bundle:
        dtype = self.choose(piece)
        stored = self.source.stored(self.pieces[piece.parameter, (0, 0)])
        rows = range(self.model.vocab_size) if self.vocabulary is None else self.vocabulary.rows
        known = None if self.vocabulary is None else self.vocabulary.known

        def make() -> Iterator[Tensor]:
            return moved_rows(stored, rows, known, DTYPES[dtype], self.noise, piece.name)

        return Bundle(outputs_of(self._name(piece), dtype, piece.shape), make)

    def _new_positions(self, piece: Piece) -> Bundle:
        dtype, (heads, kept, _) = self.choose(piece), piece.shape

        def make() -> Sequence[Tensor]:
            matrix = fope_matrix(heads, kept, self.model.fope_gain, self.expansion.seed, piece.parameter)
            return [matrix.to(DTYPES[dtype])]

        return Bundle(outputs_of(self._name(piece), dtype, piece.shape), make)

    def _unchanged(self, piece: Piece) -> Bundle:
        dtype = self.choose(piece)
        outputs = outputs_of(self._name(piece), dtype, piece.shape, self._scales(piece, piece.box))
        return Bundle(outputs, lambda: self._stored(piece.box, piece, dtype))

    # ---- the source's values

    def _name(self, piece: Piece) -> str:
        return full_name(self.prefix, piece)

    def _found(self, parameter: str, box: Box) -> Piece:
        """The source's piece that holds `box`: this part only, or all experts."""
        key = (parameter, _starts(box))
        return self.pieces[key] if key in self.pieces else self.pieces[parameter, (0, *key[1][1:])]

    def _read_name(self, box: Box, piece: Piece) -> str:
        """The source's tensor that `_values` reads."""
        return self.source.stored_name(self._found(piece.parameter, box))

    def _scales(self, piece: Piece, box: Box) -> str:
        """The dtype of the scales that are written for a part of the source's parameter, in FP8."""
        return scales_as(self.source.scales(self._found(piece.parameter, box)))

    def _values(self, box: Box, piece: Piece) -> Tensor:
        """Values of `box` of the source's parameter, in the shape that `piece` is stored in."""
        there = self._found(piece.parameter, box)
        shape = tuple(box[d].stop - box[d].start for d in range(len(box)) if d not in piece.dropped)
        stored = self.source.stored(there)
        if there.box != box or there.transposed or there.origin or stored.dtype == FP8:
            return read_piece(self.source, there, box)[0].reshape(shape)
        values = self.scratch.tensor(DTYPES[stored.dtype], shape)
        try:
            with open(stored.file, "rb", buffering=0) as file:
                read_into(file.fileno(), bytes_of(values), stored.start)
        except (OSError, EOFError) as error:
            raise HuggingFaceError(
                f"{stored.file}: {stored.name} cannot be read: {error}",
                where=str(stored.file),
                value=stored.name,
                allowed="a complete, readable file",
            ) from error
        require_finite(values, stored)
        return values

    def _stored(self, box: Box, piece: Piece, dtype: str) -> Sequence[Tensor]:
        """The tensors that `outputs_of` names; the source's own bytes if they are the same."""
        there = self._found(piece.parameter, box)
        scales = self.source.scales(there)
        if scales is not None and dtype == FP8 and there.box == box and not (there.transposed or there.origin):
            found = [
                (tensor, read_tensor(tensor, full_box(tensor.shape))) for tensor in (self.source.stored(there), scales)
            ]
            for tensor, values in found:
                require_finite(values, tensor)
            (_, codes), (_, factors) = found
            return [codes, factors.to(DTYPES[scales_as(scales)])]
        return stored_as(self._values(box, piece), dtype, scales_as(scales))


def _starts(box: Box) -> tuple[int, ...]:
    return tuple(part.start for part in box)
