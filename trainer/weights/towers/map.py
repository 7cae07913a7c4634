"""The map of stored tensors to parts of the parameters of a `Multimodal`. No torch here.

A parameter has the shape of the stored tensor that it is, or is several of them, one above another.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from trainer.storage.boxes import full_box
from trainer.weights.map import Piece

# Parameter, or module with a weight and a bias -> its published name; * is the number of a layer.
_NAMES = {
    "vision.patch": "model.visual.patch_embed.proj",
    "vision.positions": "model.visual.pos_embed.weight",
    "vision.blocks.*.attention_norm": "model.visual.blocks.*.norm1",
    "vision.blocks.*.attention.qkv": "model.visual.blocks.*.attn.qkv",
    "vision.blocks.*.attention.out": "model.visual.blocks.*.attn.proj",
    "vision.blocks.*.mlp_norm": "model.visual.blocks.*.norm2",
    "vision.blocks.*.up": "model.visual.blocks.*.mlp.linear_fc1",
    "vision.blocks.*.down": "model.visual.blocks.*.mlp.linear_fc2",
    "vision.merger.norm": "model.visual.merger.norm",
    "vision.merger.up": "model.visual.merger.linear_fc1",
    "vision.merger.down": "model.visual.merger.linear_fc2",
}
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


def tower_pieces(shapes: Mapping[str, tuple[int, ...]]) -> Iterator[Piece]:
    """Every part of the parameters of towers, under its full published name.

    shapes: parameter of a `Multimodal`, as in its state_dict -> its shape; the text model's are passed over.
    """
    for parameter, shape in shapes.items():
        if not parameter.startswith("text."):
            number = _NUMBER.search(parameter)
            name = _published(_NUMBER.sub("*", parameter))
            yield Piece(name.replace("*", number[0]) if number else name, shape, parameter, full_box(shape))


def _published(parameter: str) -> str:
    if parameter in _NAMES:
        return _NAMES[parameter]
    module, _, kind = parameter.rpartition(".")
    return f"{_NAMES[module]}.{kind}"
