"""InternViT with its pixel shuffle and projector against transformers' InternVL."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.trainer.model.tiny import assert_close, relative
from tests.trainer.model.towers.published import copy_published, published_gradients, randomise
from trainer.config.model import InternViTConfig
from trainer.model.towers.intern_vit import InternViT

BOUND = 1e-5
# Every size differs from every other where it can, so that a swapped dimension cannot go unseen.
SIZES: dict[str, Any] = {
    "width": 24, "num_layers": 2, "num_heads": 3, "mlp_width": 40, "channels": 3, "tile_size": 24, "patch_size": 4,
    "merge": 2, "norm_eps": 1e-4, "out_width": 20,
}  # fmt: skip


def tiles(cfg: InternViTConfig, count: int) -> torch.Tensor:
    size = (count, cfg.channels, cfg.tile_size, cfg.tile_size)
    return torch.randn(size, generator=torch.Generator().manual_seed(2))


def transformers_model(cfg: InternViTConfig) -> torch.nn.Module:
    """InternVL with the smallest text model that transformers builds."""
    from transformers import InternVLConfig, InternVLModel, InternVLVisionConfig, Qwen3Config

    text = Qwen3Config(
        vocab_size=8, hidden_size=cfg.out_width, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1, head_dim=8,
    )  # fmt: skip
    vision = InternVLVisionConfig(
        hidden_size=cfg.width, num_hidden_layers=cfg.num_layers, num_attention_heads=cfg.num_heads,
        intermediate_size=cfg.mlp_width, num_channels=cfg.channels, image_size=cfg.tile_size,
        patch_size=cfg.patch_size, layer_norm_eps=cfg.norm_eps, norm_type="rms_norm", use_qk_norm=True,
    )  # fmt: skip
    built = InternVLModel(InternVLConfig(vision_config=vision, text_config=text, downsample_ratio=1 / cfg.merge))
    randomise(built)
    return built


@pytest.mark.parametrize("changed", [{}, {"tile_size": 32, "merge": 4}], ids=["2 x 2", "4 x 4"])
def test_outputs_and_gradients_are_internvls(changed):
    cfg = InternViTConfig(**SIZES | changed)
    theirs, ours = transformers_model(cfg), InternViT(cfg)
    copy_published(ours, "vision", {f"model.{name}": tensor for name, tensor in theirs.state_dict().items()})
    inputs = [tiles(cfg, 3).requires_grad_() for _ in range(2)]
    expected = theirs.get_image_features(
        inputs[0], vision_feature_layer=-1, vision_feature_select_strategy="default"
    ).pooler_output.flatten(0, 1)
    found = ours(inputs[1])
    assert found.shape == (3 * (cfg.side // cfg.merge) ** 2, cfg.out_width)
    assert relative(found, expected) <= BOUND
    upstream = torch.randn(expected.shape, generator=torch.Generator().manual_seed(3))
    expected.backward(upstream)
    found.backward(upstream)
    reference = {f"model.{name}": p.grad for name, p in theirs.named_parameters() if "language_model" not in name}
    assert_close(published_gradients(ours, "vision"), reference, BOUND)
    assert relative(inputs[1].grad, inputs[0].grad) <= BOUND


@pytest.mark.gpu
def test_a_gpu_gives_the_numbers_of_the_cpu():
    model = InternViT(InternViTConfig(**SIZES))
    randomise(model)
    given = tiles(model.cfg, 3)
    expected = model(given)
    assert relative(model.cuda()(given.cuda()).cpu(), expected) <= BOUND


def test_tiles_of_another_size():
    model = InternViT(InternViTConfig(**SIZES))
    with pytest.raises(ValueError) as refused:
        model(torch.zeros(2, 3, 24, 28))
    assert str(refused.value) == "tiles of shape [2, 3, 24, 28]; this tower takes [3, 24, 24] for each"
