"""The map of stored tensors to parts of the parameters of a `Multimodal`. No torch here.

A parameter has the shape of the stored tensor that it is, or is several of one shape, one above another.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from trainer.storage.boxes import Box, full_box
from trainer.weights.map import Piece

_PATCH_LAYER = "model.time_series.encoder_embed.transformer_encoder.layers.0"
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
    # signals of Intern-S1-Pro
    "signals.patches.conv": "model.time_series.encoder_embed.conv",
    "signals.patches.positions": "model.time_series.encoder_embed.pos_encoder.pe",
    "signals.patches.qkv.weight": f"{_PATCH_LAYER}.self_attn.in_proj_weight",
    "signals.patches.qkv.bias": f"{_PATCH_LAYER}.self_attn.in_proj_bias",
    "signals.patches.out": f"{_PATCH_LAYER}.self_attn.out_proj",
    "signals.patches.attention_norm": f"{_PATCH_LAYER}.norm1",
    "signals.patches.up": f"{_PATCH_LAYER}.linear1",
    "signals.patches.down": f"{_PATCH_LAYER}.linear2",
    "signals.patches.mlp_norm": f"{_PATCH_LAYER}.norm2",
    "signals.adapt_in": "model.time_series.encoder.adapt_in",
    "signals.conv1": "model.time_series.encoder.conv1",
    "signals.conv2": "model.time_series.encoder.conv2",
    "signals.positions": "model.time_series.encoder.embed_positions.weight",
    "signals.layers.*.attention_norm": "model.time_series.encoder.layers.*.self_attn_layer_norm",
    "signals.layers.*.q": "model.time_series.encoder.layers.*.self_attn.q_proj",
    "signals.layers.*.k": "model.time_series.encoder.layers.*.self_attn.k_proj",
    "signals.layers.*.v": "model.time_series.encoder.layers.*.self_attn.v_proj",
    "signals.layers.*.out": "model.time_series.encoder.layers.*.self_attn.out_proj",
    "signals.layers.*.mlp_norm": "model.time_series.encoder.layers.*.final_layer_norm",
    "signals.layers.*.up": "model.time_series.encoder.layers.*.fc1",
    "signals.layers.*.down": "model.time_series.encoder.layers.*.fc2",
    "signals.norm": "model.time_series.encoder.layer_norm",
    "signals.adapt_out": "model.time_series.encoder.adapt_out",
    "signals.projector.norm": "model.time_series.projector.layer_norm",
    "signals.projector.up": "model.time_series.projector.linear_1",
    "signals.projector.down": "model.time_series.projector.linear_2",
}
TOWERS = ("vision.", "signals.")  # how the names of their parameters start
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


def tower_pieces(shapes: Mapping[str, tuple[int, ...]]) -> Iterator[Piece]:
    """Every part of the parameters of towers, under its full published name.

    shapes: parameter of a `Multimodal`, as in its state_dict -> its shape; the text model's are passed over.
    """
    for parameter, shape in shapes.items():
        if not parameter.startswith(TOWERS):
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
