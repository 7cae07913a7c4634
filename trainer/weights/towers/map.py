"""The map of stored tensors to parts of the parameters of a `Multimodal`. No torch here.

A parameter has the shape of the stored tensor that it is, or is several of one shape, one above another.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from trainer.storage.boxes import Box, full_box
from trainer.weights.map import Piece

# Parameter, or module with a weight and a bias -> its published name; * is the number of a layer, {} each of q, k, v.
_NAMES = {
    # Intern-S1-Pro
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
    # Intern-S1
    "vision.class_token": "model.vision_tower.embeddings.cls_token",
    "vision.position_table": "model.vision_tower.embeddings.position_embeddings",
    "vision.patch_embedding": "model.vision_tower.embeddings.patch_embeddings.projection",
    "vision.layers.*.attention_norm": "model.vision_tower.encoder.layer.*.layernorm_before.weight",
    "vision.layers.*.attention.qkv": "model.vision_tower.encoder.layer.*.attention.{}_proj.weight",
    "vision.layers.*.attention.q_norm": "model.vision_tower.encoder.layer.*.attention.q_norm.weight",
    "vision.layers.*.attention.k_norm": "model.vision_tower.encoder.layer.*.attention.k_norm.weight",
    "vision.layers.*.attention.out": "model.vision_tower.encoder.layer.*.attention.projection_layer",
    "vision.layers.*.attention_scale": "model.vision_tower.encoder.layer.*.lambda_1",
    "vision.layers.*.mlp_norm": "model.vision_tower.encoder.layer.*.layernorm_after.weight",
    "vision.layers.*.up": "model.vision_tower.encoder.layer.*.mlp.fc1",
    "vision.layers.*.down": "model.vision_tower.encoder.layer.*.mlp.fc2",
    "vision.layers.*.mlp_scale": "model.vision_tower.encoder.layer.*.lambda_2",
    "vision.projector.norm": "model.multi_modal_projector.layer_norm",
    "vision.projector.up": "model.multi_modal_projector.linear_1",
    "vision.projector.down": "model.multi_modal_projector.linear_2",
}
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


def tower_pieces(shapes: Mapping[str, tuple[int, ...]]) -> Iterator[Piece]:
    """Every part of the parameters of towers, under its full published name.

    shapes: parameter of a `Multimodal`, as in its state_dict -> its shape; the text model's are passed over.
    """
    for parameter, shape in shapes.items():
        if parameter.startswith("text."):
            continue
        number = _NUMBER.search(parameter)
        name = _published(_NUMBER.sub("*", parameter))
        name = name.replace("*", number[0]) if number else name
        if "{}" not in name:
            yield Piece(name, shape, parameter, full_box(shape))
            continue
        rows = shape[0] // len("qkv")
        for part, letter in enumerate("qkv"):
            box: Box = (slice(part * rows, (part + 1) * rows), *full_box(shape[1:]))
            yield Piece(name.format(letter), (rows, *shape[1:]), parameter, box)


def _published(parameter: str) -> str:
    if parameter in _NAMES:
        return _NAMES[parameter]
    module, _, kind = parameter.rpartition(".")
    return f"{_NAMES[module]}.{kind}"
