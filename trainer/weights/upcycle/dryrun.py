"""Describe a source from its config.json, and its index if there is one, without weights. No torch here."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trainer.storage.boxes import StoredTensor
from trainer.weights.config_json.text import text_section
from trainer.weights.hf_config import model_config_from_huggingface
from trainer.weights.hf_files import (
    CONFIG,
    INDEX,
    SHARDS,
    SINGLE,
    Directory,
    HuggingFaceError,
    byte_count,
    open_directory,
    read_index,
    read_json,
)
from trainer.weights.hf_survey import FP8, piece_scales, scale_shape, usual_prefix
from trainer.weights.map import (
    HEAD,
    HEAD_NAMES,
    stacked_layers,
    text_pieces,
    text_prefix,
)
from trainer.weights.section import located, object_under
from trainer.weights.towers.names import tower_of, tower_shapes

SPELLED = {"bfloat16": "BF16", "float32": "F32", "float16": "F16", "float64": "F64"}  # dtypes in config.json
ABSENT = "absent.safetensors"


def directory_or_description(path: Path) -> tuple[Directory, list[str]]:
    """Open a directory, or describe it by its config.json if none of its weight files are there.

    Returns: the directory, whose tensors may be in missing files; and remarks, one line each.
    Raises: HuggingFaceError.
    """
    listed = read_index(path) or {}
    present = any((path / file).exists() for file in listed.values()) or os.path.lexists(path / SINGLE)
    if present or (not listed and any(path.glob(SHARDS))):
        return open_directory(path), []
    if not (path / CONFIG).is_file():
        remedy = f"a Hugging Face model directory with at least {CONFIG}"
        raise HuggingFaceError(f"{path}: no {CONFIG}; give {remedy}", where=str(path), allowed=remedy)
    config = read_json(path / CONFIG)
    try:
        described = {tensor.name: tensor for tensor in _described(path, config, set(listed))}
    except HuggingFaceError as error:
        raise located(path, error) from error
    if not listed:
        return Directory(path, config, described), [f"no weights and no {INDEX}: sizes by {CONFIG} alone"]
    remarks = [f"no weights: names by {INDEX}, sizes by {CONFIG}"]
    unsized = [name for name in listed if name not in described]
    left_out = {name for name in unsized if tower_of(name)}
    if left_out:
        remarks.append(f"{len(left_out)} tensors of towers, such as {min(left_out)}, not counted: of unknown size")
    tensors = {name: described.get(name, StoredTensor(name, "BF16", (), path / ABSENT, 0, 2)) for name in listed}
    return Directory(path, config, {name: t for name, t in tensors.items() if name not in left_out}), remarks


def _described(path: Path, config: dict[str, Any], names: set[str]) -> Iterator[StoredTensor]:
    """The tensors that a config.json requires, named like `names` if there are any."""
    model, text = model_config_from_huggingface(config), text_section(config)
    dtypes = ((k, v) for section in (config, text) for k in ("dtype", "torch_dtype") if (v := section.get(k)))
    dtype_key, dtype = next(dtypes, ("dtype", "bfloat16"))
    if dtype not in SPELLED:
        raise HuggingFaceError(
            f"{CONFIG}: dtype={dtype} is not supported; only {', '.join(SPELLED)} are",
            where=dtype_key,
            value=dtype,
            allowed=tuple(SPELLED),
        )
    usual = SPELLED[dtype]
    key = "quantization_config"
    quantised = object_under(config, key) or object_under(text, key)
    prefix = text_prefix(names, usual_prefix(config))
    head = next((name for name in HEAD_NAMES if name in names), HEAD)
    seen: set[str] = set()
    for piece in text_pieces(model, stacked_layers(dict.fromkeys(names, ()), prefix, model)):
        name = head if piece.name == HEAD else prefix + piece.name
        if name in seen:  # two halves of one stack
            continue
        seen.add(name)
        if not (quantised and piece.matrix):
            yield _tensor(path, name, usual, piece.shape)
            continue
        yield _tensor(path, name, FP8, piece.shape)
        yield _tensor(path, piece_scales(name), "F32", scale_shape(piece.shape))
    for name, shape in tower_shapes(config).items():
        yield _tensor(path, name, usual, shape)


def _tensor(path: Path, name: str, dtype: str, shape: tuple[int, ...]) -> StoredTensor:
    return StoredTensor(name, dtype, shape, path / ABSENT, 0, byte_count(dtype, shape))
