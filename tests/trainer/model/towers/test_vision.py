"""The native-resolution tower against transformers' Qwen3-VL, whose vision module it is without deepstack."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.trainer.model.tiny import assert_close, relative
from tests.trainer.model.towers.published import copy_published, published_gradients, randomise
from trainer.config.model import VisionConfig
from trainer.model.towers.parts import full_attention
from trainer.model.towers.vision import Images, VisionTower

BOUND = 1e-5
# Every size differs from every other where it can, so that a swapped dimension cannot go unseen.
SIZES: dict[str, Any] = {
    "width": 24, "num_layers": 2, "num_heads": 3, "mlp_width": 40, "channels": 3, "frames": 2, "patch_size": 4,
    "merge": 2, "position_side": 6, "out_width": 20,
}  # fmt: skip


def tower(dtype: torch.dtype = torch.float32, device: str = "cpu", **changed: Any) -> VisionTower:
    built = VisionTower(VisionConfig(**SIZES | changed))
    randomise(built)
    return built.to(dtype).to(device)


def images(cfg: VisionConfig, *grids: tuple[int, int]) -> Images:
    patches = sum(rows * columns for rows, columns in grids)
    size = cfg.channels * cfg.frames * cfg.patch_size**2
    return Images(torch.randn(patches, size, generator=torch.Generator().manual_seed(2)), grids)


def transformers_tower(cfg: VisionConfig) -> torch.nn.Module:
    from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLVisionConfig
    from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel

    built = Qwen3VLVisionModel(
        Qwen3VLVisionConfig(
            depth=cfg.num_layers, hidden_size=cfg.width, intermediate_size=cfg.mlp_width, num_heads=cfg.num_heads,
            in_channels=cfg.channels, patch_size=cfg.patch_size, temporal_patch_size=cfg.frames,
            spatial_merge_size=cfg.merge, out_hidden_size=cfg.out_width, deepstack_visual_indexes=[],
            num_position_embeddings=cfg.position_side**2, hidden_act="gelu_pytorch_tanh", attn_implementation="sdpa",
        )
    )  # fmt: skip
    randomise(built)
    return built


# on the table, smaller and larger than it, long ones, equal neighbours, one block alone
GRIDS = [(6, 6), (4, 10), (4, 10), (14, 2), (2, 2)]


@pytest.mark.parametrize(
    ("side", "grids"), [(6, GRIDS), (48, [(20, 14), (2, 70), (50, 4)])], ids=["small table", "published table"]
)
def test_outputs_and_gradients_are_qwen3_vls(side, grids):
    cfg = VisionConfig(**SIZES | {"position_side": side})
    theirs, ours = transformers_tower(cfg), VisionTower(cfg)
    stored = {f"model.visual.{name}": tensor for name, tensor in theirs.state_dict().items()}
    copy_published(ours, "vision", stored)
    pixels, grids = images(cfg, *grids)
    inputs = [pixels.clone().requires_grad_() for _ in range(2)]
    expected = theirs(inputs[0], torch.tensor([(1, *grid) for grid in grids])).pooler_output
    found = ours(Images(inputs[1], grids))
    assert relative(found, expected) <= BOUND
    upstream = torch.randn(expected.shape, generator=torch.Generator().manual_seed(3))
    expected.backward(upstream)
    found.backward(upstream)
    reference = {f"model.visual.{name}": parameter.grad for name, parameter in theirs.named_parameters()}
    assert_close(published_gradients(ours, "vision"), reference, BOUND)
    assert relative(inputs[1].grad, inputs[0].grad) <= BOUND


def check_images_together_are_images_alone(dtype: torch.dtype, device: str, bound: float) -> None:
    model = tower(dtype, device)
    pixels, grids = images(model.cfg, *GRIDS)
    together = model(Images(pixels.to(device), grids))
    parts = pixels.to(device).split([rows * columns for rows, columns in grids])
    alone = torch.cat([model(Images(part, [grid])) for part, grid in zip(parts, grids, strict=True)])
    assert relative(together, alone) <= bound


def test_images_together_are_images_alone():
    check_images_together_are_images_alone(torch.float64, "cpu", 1e-13)


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, BOUND), (torch.bfloat16, 3e-2)])
def test_images_together_are_images_alone_on_a_gpu(dtype, bound):
    check_images_together_are_images_alone(dtype, "cuda", bound)


@pytest.mark.gpu
def test_a_gpu_gives_the_numbers_of_the_cpu():
    model = tower()
    given = images(model.cfg, *GRIDS)
    expected = model(given)
    assert relative(model.cuda()(given._replace(pixels=given.pixels.cuda())).cpu(), expected) <= BOUND


def test_attention_is_the_softmax_inside_each_image():
    lengths = [3, 3, 5, 1, 3]
    q, k, v = torch.randn(3, sum(lengths), 2, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    image = torch.repeat_interleave(torch.arange(5), torch.tensor(lengths))
    scores = torch.einsum("qhd,khd->hqk", q, k) / 8**0.5
    scores[:, image[:, None] != image] = -torch.inf
    expected = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v)
    assert relative(full_attention(q, k, v, lengths), expected) <= 1e-14


@pytest.mark.parametrize(
    ("grids", "message"),
    [
        ([(4, 3)], "a grid of 4 x 3 patches; use rows and columns that 2 divides"),
        ([(4, 4), (0, 2)], "a grid of 0 x 2 patches; use rows and columns that 2 divides"),
        ([(4, 4)], "the grids have 16 patches, but there are pixels of 12"),
    ],
)
def test_grids_that_do_not_fit(grids, message):
    model = tower()
    pixels = torch.zeros(12, 3 * 2 * 4 * 4)
    with pytest.raises(ValueError) as refused:
        model(Images(pixels, grids))
    assert str(refused.value) == message


def test_grids_may_be_rows_of_a_tensor():
    model = tower()
    given = images(model.cfg, (4, 2), (2, 6))
    assert torch.equal(model(given._replace(grids=torch.tensor(given.grids))), model(given))


@pytest.mark.parametrize("grids", [[(1, 4, 3)], torch.tensor([[1, 4, 3]])])
def test_grids_of_frames_rows_and_columns_are_refused(grids):
    with pytest.raises(ValueError, match=r"use \(rows, columns\)"):
        tower()(Images(torch.zeros(12, 3 * 2 * 4 * 4), grids))


@pytest.mark.parametrize(
    "pixels", [torch.zeros(12, 96, dtype=torch.uint8), torch.zeros(12, 95), torch.zeros(1, 12, 96)]
)
def test_pixels_that_are_not_the_towers_patches_are_refused(pixels):
    with pytest.raises(ValueError, match=r"this tower takes normalised floats, \[patches, 96\]"):
        tower()(Images(pixels, [(2, 6)]))
