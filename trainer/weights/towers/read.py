"""A Hugging Face directory as a `Multimodal`, and its parameters under published names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from warnings import warn

import torch
from torch import Tensor

from trainer.model.multimodal import Multimodal
from trainer.weights.hf_files import HuggingFaceError, open_directory
from trainer.weights.hf_read import fill
from trainer.weights.hf_survey import survey_directory
from trainer.weights.map import MULTIMODAL, Piece, full_name, text_pieces
from trainer.weights.section import located
from trainer.weights.towers.config import multimodal_config_from_huggingface
from trainer.weights.towers.map import tower_pieces


def load_multimodal(directory: str | Path, dtype: torch.dtype = torch.float32) -> Multimodal:
    """The text model and the towers of a Hugging Face directory of Intern-S1 or Intern-S1-Pro, on the CPU.

    Args:
        directory: holds config.json and safetensors files.
        dtype: of the parameters and of the computation (FoPE's matrices and the fixed
            positions of signals stay fp32, or fp64 when dtype is).
    Returns: a `Multimodal` whose parameters are all read, none left at random.
    Raises: HuggingFaceError naming the key, file or tensor that is missing or does not fit.
    Warns: of keys of config.json that are unknown.
    """
    opened = open_directory(Path(directory))
    source = survey_directory(opened)
    try:
        cfg = multimodal_config_from_huggingface(opened.config)
    except HuggingFaceError as error:
        raise located(opened.path, error) from None
    source.require(towers=True)
    for warning in source.warnings:
        warn(warning, stacklevel=2)
    with torch.device("meta"):
        model = Multimodal(cfg)
    model = model.to(dtype)
    for module in model.modules():
        for name, table in module.named_buffers(recurse=False):
            setattr(module, name, table.to(torch.promote_types(dtype, torch.float32)))
    model = model.to_empty(device="cpu")
    fill(model, source, pieces=_pieces(model, source.pieces))
    return model


def published_tensors(model: Multimodal) -> Iterator[tuple[str, Tensor]]:
    """All parameters and tables of `model` under published names and in published shapes, as views of its own.

    Experts come one by one.
    """
    state = model.state_dict()
    for piece in _pieces(model, text_pieces(model.cfg)):
        yield full_name(MULTIMODAL, piece), state[piece.parameter][piece.box].view(piece.shape)


def _pieces(model: Multimodal, text: Iterable[Piece]) -> list[Piece]:
    """Every part of the parameters of `model`. text: those of its decoder."""
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    return [*text, *tower_pieces(shapes)]
