"""FP8 weights of a directory as they are stored, into a model whose base is codes and scales."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from parallel.errors import Fault
from trainer.config.errors import ConfigError
from trainer.model.decoder import Decoder
from trainer.model.frozen.hold import Held, held
from trainer.storage.boxes import Box
from trainer.weights.hf_config import BLOCK
from trainer.weights.hf_read import read_tensor, require_finite, upright
from trainer.weights.hf_survey import FP8, SourceModel
from trainer.weights.map import Piece


def check_stored_in_fp8(source: SourceModel) -> None:
    """Raises ConfigError, naming a tensor, where a matrix of attention or an expert is not stored in FP8, or in blocks
    that its halves share."""
    for piece in source.pieces:
        if not piece.matrix:
            continue
        dtype = source.stored(piece).dtype
        reason = (
            f"is {dtype}" if dtype != FP8 else "" if _starts_a_block(piece) else "has blocks that gate and up share"
        )
        if reason:
            text = (
                f"lora.base=fp8 keeps a base in FP8 as it is stored, and {source.stored_name(piece)} of "
                f"{source.directory.path} {reason}; use lora.base=linears, which takes twice the memory or more"
            )
            raise ConfigError([Fault(text, where="lora.base", value="fp8", allowed=("linears",))])


@torch.no_grad()
def fill_scales(
    model: Decoder, source: SourceModel, pieces: Iterable[Piece], tick: Callable[[], None] = lambda: None
) -> int:
    """Read the scales of this rank's codes, one tensor at a time. Returns the bytes read. Raises HuggingFaceError."""
    parts: dict[str, list[Piece]] = {}
    for piece in pieces:
        parts.setdefault(piece.parameter, []).append(piece)
    nbytes = 0
    for matrix in held(model):
        for number, piece in enumerate(sorted(parts[matrix.name], key=_first)):
            for place, where in _places(matrix, piece, number):
                scales = _read_scales(source, piece, where)
                matrix.scaled.scales[place] = scales
                nbytes += scales.nbytes
            tick()
    return nbytes


def _first(piece: Piece) -> tuple[int, ...]:
    return tuple(part.start for part in piece.box)


def _places(matrix: Held, piece: Piece, number: int) -> Iterator[tuple[tuple[slice | int, ...], Box]]:
    """The places of a piece's scales on this rank, in `matrix.scaled.scales`, and the parts of the parameter that these
    are for. number: of the piece among those of its parameter."""
    blocks = matrix.scaled.blocks
    if matrix.experts is None:  # q, k and v are one below the other
        yield (blocks.rows_of(number),), piece.box
        return
    first = max(matrix.experts.start, piece.box[0].start)
    stop = min(matrix.experts.stop, piece.box[0].stop)
    if first >= stop:
        return
    part = piece.box[1].start if len(piece.box) == 4 else 0
    here = slice(first - matrix.experts.start, stop - matrix.experts.start)
    inside = (blocks.rows[part], blocks.columns)
    box = (slice(first, stop), *piece.box[1:-2], *(slice(size.start, size.stop) for size in inside))
    yield (here, blocks.rows_of(part)), box


def _read_scales(source: SourceModel, piece: Piece, box: Box) -> Tensor:
    """The scales of all blocks that `box` of the piece's parameter touches, in fp32."""
    stored = source.scales(piece)
    assert stored is not None  # `check_stored_in_fp8`
    where = piece.stored_box(box)
    blocks = (slice(part.start // size, -(-part.stop // size)) for part, size in zip(where[-2:], BLOCK, strict=True))
    scales = read_tensor(stored, (*where[:-2], *blocks))
    require_finite(scales, stored)
    if len(box) == 4:  # of gate and up: their dimension is not in the scales
        piece = piece._replace(dropped=tuple(d for d in piece.dropped if d != 1))
    return upright(scales.float(), piece)


def _starts_a_block(piece: Piece) -> bool:
    return all(start % size == 0 for start, size in zip((piece.origin or (0, 0))[-2:], BLOCK, strict=True))
