"""A training checkpoint as a Hugging Face directory, for serving engines and for the next training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from parallel.errors import UserError
from trainer.checkpoint.errors import CheckpointError
from trainer.checkpoint.slices import StoredState
from trainer.config.model import ModelConfig
from trainer.config.run_files import SOURCE
from trainer.data.errors import DataError
from trainer.storage.boxes import StoredTensor, full_box
from trainer.storage.progress import OnProgress, Progress, ignore
from trainer.weights.beside.card import model_card
from trainer.weights.beside.media import exported_media
from trainer.weights.beside.readers import readers
from trainer.weights.beside.remote_code import attach_code
from trainer.weights.beside.side_files import CARD, TOKENIZERS
from trainer.weights.beside.tokenizer import find_tokenizer, of_synthetic_data, put_token_ids
from trainer.weights.dtypes import (
    DtypeName,
    dtypes,
    full_dtype,
    outputs_of,
    scales_as,
    stored_as,
    unconverted,
    width_warnings,
)
from trainer.weights.hf_config import BLOCK, huggingface_config, is_qwen3_moe
from trainer.weights.hf_files import Directory, HuggingFaceError
from trainer.weights.hf_read import read_tensor
from trainer.weights.hf_survey import FP8, quantization
from trainer.weights.hf_write import SHARD_BYTES, Bundle, copy_of, make_room, write_directory
from trainer.weights.kept_source import Carried, read_carried
from trainer.weights.lora.merged import MergedState
from trainer.weights.map import MULTIMODAL, PLAIN, Piece, full_name, text_pieces
from trainer.weights.opened import OpenedCheckpoint, open_checkpoint
from trainer.weights.towers.trained import describe


@dataclass(frozen=True)
class Exported:
    """The result of `export`."""

    step: int
    nbytes: int
    dtypes: str  # of the text model, such as "BF16, F32"
    carried: int  # tensors of other parts
    parts: str  # that the run trained, such as "text model and vision tower"
    side_files: list[str]  # paths of what is beside the tensors, config.json and the card
    tokenizer: str  # where it is from, or that there is none
    warnings: list[str]
    media: str = ""  # the rules of its images and signals, in words, or why there are none; empty without towers


def export(
    checkpoint: Path,
    target: Path,
    *,
    dtype: DtypeName = "source",
    text_only: bool = False,
    pad: bool = False,
    shard_bytes: int = SHARD_BYTES,
    progress: OnProgress = ignore,
) -> Exported:
    """Write the weights of a training checkpoint, of any layout of ranks, as a Hugging Face directory.

    The towers that the run trained are written as the text model is; others, and the side files that the run kept of
    the directory that it started from, are copied byte for byte. A run from random weights has the tokenizer of its
    corpora, and generation defaults that name its end token. The rules by which its images and signals were prepared
    are stated, and are in the files that other programs read.

    Args:
        checkpoint: a run directory, whose newest step is taken, or a step-N directory in it. target: must not
            exist.
        dtype: of the model. "source": every tensor as in the directory that the run started from, bf16 for a
            run that started from random weights. "bf16", "fp32". "fp8": attention's and experts' matrices as e4m3 with
            a power of two for each 128 x 128 block, made from their bf16 values (as FP8 training makes its own), the
            others bf16. FoPE's tables are as in the source, or fp32.
        text_only: leave towers out, and write a Qwen3-MoE directory where the text model is one.
        pad: pad the width of the experts with zeros, which change no result, to a multiple of 128, where they are
            written in FP8.
        progress: called as bytes are written.
    Raises: CheckpointError or ConfigError for what is wrong with the run, HuggingFaceError for what is wrong with the
        target, each with one line; UserError for a dtype that does not exist.
    """
    opened = open_checkpoint(checkpoint)
    opened.refuse_inside(target)
    model, state, pieces = opened.model, opened.state, opened.pieces
    if wrong := [*(f"{name} is missing" for name in opened.missing), *opened.unfit]:
        raise CheckpointError(
            f"{opened.path} does not match the model of its run: {wrong[0]} (octavo inspect lists all)",
            where=str(opened.path),
            value=wrong,
            allowed="a checkpoint beside the config.yaml that it was trained with",
        )
    carried = None
    if opened.init_from is not None:
        try:
            carried = read_carried(opened.run_directory, model)
        except HuggingFaceError as error:  # that directory is a part of the run
            raise CheckpointError(error.faults) from error
        if carried is None and (dtype == "source" or not text_only):
            raise CheckpointError(
                f"{opened.run_directory / SOURCE} is missing; it held the towers, dtypes and side files that the run "
                f"kept of {opened.init_from}; restore it, or export the text model alone, with --text-only and a "
                "--dtype other than source",
                where=str(opened.run_directory / SOURCE),
                allowed="--text-only and a --dtype other than source",
            )
    prefix, config = _destination(model, carried, text_only)
    choose = dtypes(dtype, carried.kinds if carried else {})
    scales = carried.scales if carried else {}
    if pad:
        model = replace(model, expert_width=-(-model.expert_width // BLOCK[0]) * BLOCK[0])
    text = {piece.name: piece for piece in text_pieces(model)}
    if text_only:
        pieces = tuple(piece for piece in pieces if piece.name in text)
    bundles = [
        _trained(state, piece, text.get(piece.name, piece), full_name(prefix, piece), choose(piece), scales)
        for piece in pieces
    ]
    if pad and not any(output.dtype == FP8 for bundle in bundles for output in bundle.outputs):
        useless = "--pad widens experts for FP8, and nothing is written in FP8; add --dtype fp8, or drop --pad"
        raise UserError(useless, where="--pad", allowed="--dtype fp8")
    towers = [] if carried is None or text_only else carried.tensors
    bundles += [copy_of(tensor) for tensor in towers]
    outputs = [output for bundle in bundles for output in bundle.outputs]
    total, done = sum(bundle.nbytes for bundle in bundles), 0

    make_room(target, total)  # before hours of reading
    opened.compare_hashes()
    state.compare_one()

    def count(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        progress(Progress("writing", done, total))

    scale_fmt: Any = "ue8m0"
    if carried is not None and scales:
        scale_fmt = (quantization(Directory(carried.path, carried.config, {})) or {}).get("scale_fmt")
    config = huggingface_config(
        model, config, dtype=full_dtype(outputs), unconverted=unconverted(outputs), scale_fmt=scale_fmt
    )
    beside = _beside(opened, carried, text_only)
    if beside.ids is not None:
        put_token_ids(config, beside.ids)
    beside.files.update(attach_code(config, beside.files, same_model=carried is not None))
    read_by = readers(config, [output.name for output in outputs], beside.files)
    card = model_card(
        model, config, beside.files, read_by, opened.step, opened.init_from, beside.tokenizer, beside.card,
        text_only=text_only,
    )  # fmt: skip
    files = {**beside.files, CARD: card.encode()}
    write_directory(target, bundles, config, files, shard_bytes=shard_bytes, wrote=count)
    written = sorted({output.dtype for bundle in bundles[: len(pieces)] for output in bundle.outputs})
    warnings = [*_left_out(opened, text_only), *_warnings(model, written), *beside.warnings]
    return Exported(
        opened.step,
        total,
        ", ".join(written),
        len(towers),
        _parts(model, text_only),
        sorted(beside.files),
        beside.tokenizer,
        warnings,
        beside.media,
    )


def _parts(model: ModelConfig, text_only: bool) -> str:
    """The parts of the model that are written, in words."""
    parts = ["text model"]
    if not text_only:
        parts += [
            name
            for name, tower in (("vision tower", model.vision), ("signal tower", model.signals))
            if tower is not None
        ]
    return " and ".join(filter(None, [", ".join(parts[:-1]), parts[-1]]))


def _left_out(opened: OpenedCheckpoint, text_only: bool) -> list[str]:
    """A line for each part that the run trained and the export lacks."""
    lines = []
    if opened.common_space:
        names = ", ".join(opened.common_space)
        lines.append(
            f"left out: {names}, the common space of images and texts, for which published layouts have no names"
        )
    if text_only and (opened.model.vision is not None or opened.model.signals is not None):
        lines.append("left out: the towers that the run trained, because of --text-only")
    return lines


@dataclass(frozen=True)
class _Beside:
    """The side files of an export. ids: of the run's own tokenizer, where that is the one. media: as of `Exported`.
    card: lines about images and signals."""

    files: dict[str, Path | bytes]
    tokenizer: str
    ids: dict[str, int] | None
    warnings: list[str]
    media: str = ""
    card: Sequence[str] = ()


def _beside(opened: OpenedCheckpoint, carried: Carried | None, text_only: bool) -> _Beside:
    found = _with_tokenizer(opened, carried)
    if text_only:
        return found
    try:
        media = exported_media(opened.run_directory, None if carried is None else carried.path)
    except (HuggingFaceError, DataError) as error:  # that directory is a part of the run
        raise CheckpointError(error.faults) from error
    files, warnings = {**found.files, **media.files}, [*found.warnings, *media.warnings]
    said, towers = media.said, (opened.model.vision, opened.model.signals)
    if not said and towers != (None, None) and of_synthetic_data(opened.run_directory):
        said = "rules: none, the run's data are synthetic"
    return replace(found, files=files, warnings=warnings, media=said, card=media.card)


def _with_tokenizer(opened: OpenedCheckpoint, carried: Carried | None) -> _Beside:
    files: dict[str, Path | bytes] = {**carried.side_files} if carried else {}
    warnings = [f"{name} of {opened.init_from} is not in the export" for name in (carried.clashes if carried else [])]
    try:
        found, why = find_tokenizer(opened.run_directory)
    except HuggingFaceError as error:  # that directory is a part of the run
        raise CheckpointError(error.faults) from error
    if found is not None:
        files.update(found.template_files())  # what the run was fine-tuned with goes before the source's own
    if any(name in files for name in TOKENIZERS):
        return _Beside(files, f"that of {opened.init_from}", None, warnings)
    if found is not None:
        ours = found.side_files(opened.model.max_position)
        origin = f"that of the run's corpora; {found.eos} ends a document"
        return _Beside({**ours, **files}, origin, found.token_ids(), warnings)
    if why is None:
        return _Beside(files, "none: the run's data are synthetic", None, warnings)
    text = f"the export has no tokenizer: {why}; copy the tokenizer.json of the run's corpora into it"
    return _Beside(files, f"none: {why}", None, [*warnings, text])


def _warnings(model: ModelConfig, dtypes: Sequence[str]) -> list[str]:
    """Warnings about values that other programs may read differently."""
    found = []
    if model.positions == "fope" and model.fope_pad_sin != 1:
        found.append(
            f"model.fope_pad_sin={model.fope_pad_sin:g} is kept in config.json, but published code pads with 1"
        )
    return [*found, *width_warnings(model, dtypes, pad=True)]


def _destination(model: ModelConfig, carried: Carried | None, text_only: bool) -> tuple[str, dict[str, Any] | None]:
    """Prefix of the text names, and the config.json to start from."""
    plain = is_qwen3_moe(model)
    if carried is None:
        if (model.vision is not None or model.signals is not None) and not text_only:
            return MULTIMODAL, describe(model)
        return (PLAIN if plain else MULTIMODAL), None
    text = carried.config.get("text_config")
    if text is None:
        return PLAIN, carried.config
    if not text_only:
        return MULTIMODAL, carried.config
    if plain:
        return PLAIN, {"architectures": ["Qwen3MoeForCausalLM"], **text, "model_type": "qwen3_moe"}
    towers = ("vision_config", "ts_config")
    return MULTIMODAL, {key: value for key, value in carried.config.items() if key not in towers}


def _trained(
    state: StoredState | MergedState,
    piece: Piece,
    wide: Piece,
    name: str,
    dtype: str,
    of_source: Mapping[str, StoredTensor],
) -> Bundle:
    """The tensor of `piece`, in the shape of `wide`. of_source: the scales that the run's source has, by piece."""
    scales = of_source.get(piece.name)

    def make() -> Sequence[Tensor]:
        trained = state.read(f"model.{piece.parameter}", piece.box).view(piece.shape)
        if wide.shape != piece.shape:
            rows, columns = (after - before for before, after in zip(piece.shape, wide.shape, strict=True))
            trained = F.pad(trained, (0, columns, 0, rows))
        before = read_tensor(scales, full_box(scales.shape)) if scales is not None and dtype == FP8 else None
        written = stored_as(trained, dtype, scales_as(scales), before)
        if dtype == "F16" and not torch.equal(written[0].isinf(), trained.isinf()):
            raise CheckpointError(
                f"{name}: {trained.abs().max():g} is too large for F16, which the run's source is in; "
                "give another --dtype than source",
                where="--dtype",
                value="source",
                allowed="another --dtype",
            )
        return written

    return Bundle(outputs_of(name, dtype, wide.shape, scales_as(scales)), make)
