"""A directory against what it should hold: which tensors are missing, unknown, of another shape or dtype.

Looks at config.json and the headers of the files alone, and needs no torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from trainer.config.model import ModelConfig
from trainer.storage.boxes import StoredTensor
from trainer.weights.config_json.text import text_section, unknown_keys
from trainer.weights.hf_config import BLOCK, model_config_from_huggingface
from trainer.weights.hf_files import CONFIG, Directory, HuggingFaceError
from trainer.weights.map import (
    HEAD,
    HEAD_NAMES,
    MULTIMODAL,
    PLAIN,
    SCALE_SUFFIX,
    Piece,
    full_name,
    stacked_layers,
    text_pieces,
    text_prefix,
)
from trainer.weights.section import Section, located, object_under
from trainer.weights.towers.names import LOOSE, OPTIONAL, tower_of, tower_shapes

FP8 = "F8_E4M3"
WEIGHTS = ("F64", "F32", "BF16", "F16", FP8)
SCALES = ("F32", "BF16", "F16", "F8_E8M0")
SHOWN = 3  # problems that one line names


@dataclass(frozen=True)
class SourceModel:
    """A directory and the text model in it."""

    directory: Directory
    model: ModelConfig
    prefix: str
    pieces: tuple[Piece, ...]  # of the text model, as this directory lays it out
    towers: dict[str, tuple[int, ...]]  # `tower_shapes`

    @property
    def tensors(self) -> dict[str, StoredTensor]:
        return self.directory.tensors

    def stored_name(self, piece: Piece) -> str:
        """The name of the tensor that `piece` is in; the first spelling where it is missing."""
        if piece.name != HEAD:
            return full_name(self.prefix, piece)
        return next((name for name in HEAD_NAMES if name in self.tensors), HEAD)

    def stored(self, piece: Piece) -> StoredTensor:
        return self.tensors[self.stored_name(piece)]

    def scales(self, piece: Piece) -> StoredTensor | None:
        """The scales of a piece that is stored in FP8."""
        return self.tensors[piece_scales(self.stored_name(piece))] if self.stored(piece).dtype == FP8 else None

    @cached_property
    def text_names(self) -> set[str]:
        """Every name that the text model may have here, scales of FP8 weights included."""
        names = {self.stored_name(piece) for piece in self.pieces}
        fp8 = {name for name in names if name in self.tensors and self.tensors[name].dtype == FP8}
        return names | {piece_scales(name) for name in fp8}

    @cached_property
    def carried(self) -> list[StoredTensor]:
        """The tensors of other parts than the text model."""
        return [tensor for name, tensor in self.tensors.items() if name not in self.text_names and tower_of(name)]

    @cached_property
    def kinds(self) -> dict[str, str]:
        """Kind of text tensor (`Piece.kind`, of the layout with every expert apart) -> the dtype it is stored in."""
        found: dict[str, str] = {}
        stacked = {
            "layers.*.mlp.experts.gate_up_proj": ("gate_proj.weight", "up_proj.weight"),
            "layers.*.mlp.experts.down_proj": ("down_proj.weight",),
        }
        for piece in self.pieces:
            here, dtype = piece.kind, self.stored(piece).dtype
            for kind in [f"layers.*.mlp.experts.*.{name}" for name in stacked.get(here, ())] or [here]:
                found[kind] = _widest(found.get(kind, dtype), dtype)
        return found

    @cached_property
    def ignored_keys(self) -> list[str]:
        """Keys of config.json that are unknown: `key`, `text_config.key`."""
        return unknown_keys(self.directory.config)

    @property
    def warnings(self) -> list[str]:
        """Lines about what may make this another model than other programs read."""
        if not self.ignored_keys:
            return []
        keys = ", ".join(self.ignored_keys)
        remedy = "check that none of them changes what the model computes"
        return [f"{self.directory.path / CONFIG}: unknown keys are ignored: {keys}; {remedy}"]

    # ---- what is wrong

    @cached_property
    def missing(self) -> list[str]:
        """Names of the text model and of the towers that config.json describes."""
        wanted = dict.fromkeys(self.stored_name(piece) for piece in self.pieces)
        return [name for name in (*wanted, *self.towers) if name not in self.tensors]

    @cached_property
    def unknown(self) -> list[str]:
        """Names that belong to no part."""
        return [name for name in self.tensors if name not in self.text_names and not self._of_a_tower(name)]

    @cached_property
    def _described(self) -> set[str | None]:
        """The parts that config.json describes as towers that are known."""
        return {tower_of(name) for name in self.towers}

    def _of_a_tower(self, name: str) -> bool:
        part = tower_of(name)
        if part is None:
            return False
        return (
            name in self.towers or part == LOOSE or part not in self._described or OPTIONAL.fullmatch(name) is not None
        )

    @cached_property
    def unfit(self) -> list[str]:
        """One line for each tensor of a wrong shape or dtype, or in FP8 without what makes sense of it; first one for
        blocks of another size."""
        block = (quantization(self.directory) or {}).get("weight_block_size", BLOCK)
        lines = [] if block == BLOCK else [f"weight_block_size={block} is not supported; only {BLOCK} is"]
        shapes = {self.stored_name(piece): piece for piece in self.pieces}
        lines += [line for name, piece in shapes.items() if name in self.tensors for line in self._judge(name, piece)]
        for name, shape in self.towers.items():
            if name in self.tensors and self.tensors[name].shape != shape:
                lines.append(_wrong_shape(self.tensors[name], shape))
        lines += [
            f"{tensor.name}: {tensor.dtype} in a tower; only attention's and experts' matrices may be FP8"
            for tensor in self.carried
            if tensor.dtype.startswith("F8_")
        ]
        return lines

    def _judge(self, name: str, piece: Piece) -> Iterator[str]:
        tensor = self.tensors[name]
        if tensor.shape != piece.shape:
            yield _wrong_shape(tensor, piece.shape)
        if tensor.dtype not in WEIGHTS:
            kinds = ", ".join(WEIGHTS[:-1])
            yield f"{name}: {tensor.dtype} is not supported for weights; expected {kinds} or {FP8} with scales"
        if tensor.dtype != FP8:
            return
        if not piece.matrix:
            yield f"{name}: {FP8}, but only attention's and experts' matrices may be FP8"
        scales = self.tensors.get(piece_scales(name))
        if scales is None:
            yield f"{name}: {FP8} without its scales: no tensor {piece_scales(name)}"
        elif scales.dtype not in SCALES:
            yield f"{scales.name}: {scales.dtype} is not supported for scales; expected {', '.join(SCALES)}"
        else:
            need = scale_shape(piece.shape)
            if scales.shape != need:
                yield _wrong_shape(scales, need)

    def problems(self, *, towers: bool) -> list[str]:
        """All that is wrong, a line each; of the text model alone, or of its towers too."""
        missing = [f"no tensor {name}" for name in self.missing if towers or tower_of(name) is None]
        unfit = [line for line in self.unfit if towers or tower_of(line) is None]
        unknown = [name for name in self.unknown if towers or tower_of(name) is None]
        return [
            *missing,
            *unfit,
            *(f"{name}: unknown tensor, not part of the model" for name in unknown),
        ]

    def require(self, *, towers: bool) -> None:
        """Raises HuggingFaceError, one line, where anything is wrong."""
        problems = self.problems(towers=towers)
        if problems:
            hidden = len(problems) - SHOWN
            more = f"; and {hidden} more; see `octavo inspect {self.directory.path}`" if hidden > 0 else ""
            raise HuggingFaceError(
                f"{self.directory.path}: {'; '.join(problems[:SHOWN])}{more}",
                where=str(self.directory.path),
                value=problems,
                allowed="the tensors that config.json describes",
            )


def survey_directory(directory: Directory) -> SourceModel:
    """The text model that a directory's config.json describes. Raises HuggingFaceError for a model that is not ours,
    and for a description that cannot be read."""
    try:
        model, towers = model_config_from_huggingface(directory.config), tower_shapes(directory.config)
        quantization(directory)
    except HuggingFaceError as error:
        raise located(directory.path, error) from error
    prefix = text_prefix(directory.tensors, usual_prefix(directory.config))
    shapes = {name: tensor.shape for name, tensor in directory.tensors.items()}
    pieces = tuple(text_pieces(model, stacked_layers(shapes, prefix, model)))
    return SourceModel(directory, model, prefix, pieces, towers)


def usual_prefix(config: dict[str, Any]) -> str:
    """The prefix of the text model's names in most directories with such a config.json."""
    return MULTIMODAL if object_under(config, "text_config") else PLAIN


def _widest(one: str, other: str) -> str:
    """The narrowest of `WEIGHTS` that holds all values of both."""
    if one != other and {one, other} <= {"BF16", "F16", FP8} and "F16" in (one, other):
        return "F32"  # BF16 has the exponents that F16 lacks, and fewer digits; so has FP8 with its scales
    return min(one, other, key=WEIGHTS.index)


def part_of(name: str) -> str:
    """The part of the model that a tensor belongs to, judged by its name alone."""
    if name.endswith(SCALE_SUFFIX):
        return "FP8 scales"
    patterns = {
        "embedding": r"embed_tokens\.", "position tables": r"rotary_emb\.", "norms": r"norm\.weight$",
        "attention": r"\.self_attn\.", "router": r"\.mlp\.gate\.", "experts": r"\.mlp\.experts\.",
        "LM head": r"lm_head\.",
    }  # fmt: skip
    return tower_of(name) or next((part for part, pattern in patterns.items() if re.search(pattern, name)), "unknown")


def quantization(directory: Directory) -> dict[str, object] | None:
    """config.json's `quantization_config`, at the top or in the text model; None without.

    Raises HuggingFaceError where it is not an object, and for other methods than FP8, which programs apply as they load
    also where the weights are not quantised.
    """
    key = "quantization_config"
    found = object_under(directory.config, key) or object_under(text_section(directory.config), key)
    if found is not None and found.get("quant_method") not in (None, "fp8"):
        raise Section(found, f"in {key}").refused("quant_method", "fp8, or no quantization_config")
    return found


def piece_scales(name: str) -> str:
    """The name of the scales of the FP8 tensor `name`."""
    return name + SCALE_SUFFIX


def scale_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of the scales of an FP8 weight, one for each block of its last two dimensions."""
    return (*shape[:-2], *(-(-size // block) for size, block in zip(shape[-2:], BLOCK, strict=True)))


def _wrong_shape(tensor: StoredTensor, need: tuple[int, ...]) -> str:
    return f"{tensor.name}: the checkpoint has shape {list(tensor.shape)}; expected {list(need)}"
