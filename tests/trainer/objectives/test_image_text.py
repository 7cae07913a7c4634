"""The dual encoder and its objective: pairs embedded as if each were alone, and ranks that equal one process."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from parallel.world import World
from tests.distributed.pool import on_ranks
from tests.trainer.model.tiny import assert_close, model_config, relative
from tests.trainer.spread import whole
from tests.trainer.tiny_run import tiny_config
from trainer.config.keys import Config, ParallelConfig
from trainer.config.model import EmbeddingConfig, VisionConfig
from trainer.data.batch import Batch
from trainer.data.media.balance import Balance
from trainer.data.media.images import PatchRule
from trainer.data.pairs.reader import Pairs
from trainer.data.pairs.stream import make_pair_batch
from trainer.model.dual_encoder import MAX_SCALE, DualEncoder
from trainer.model.towers.vision import normalised
from trainer.objectives.image_text import ImageText
from trainer.objectives.retrieval import Rows, recalls, zero_shot
from trainer.objectives.scalars import GlobalBatch
from trainer.optim.native import NativeEngine
from trainer.parallelize import build_meshes, parallelize
from trainer.run.step import accumulate_gradients

VISION = {"num_layers": 1, "num_heads": 2, "mlp_width": 24, "channels": 3, "frames": 2, "patch_size": 4, "merge": 2}
PAIRS = 8


def sizes(**changed: Any) -> dict[str, Any]:
    vision = VisionConfig(width=16, position_side=3, out_width=32, **VISION)
    dense = {"num_experts": 1, "experts_per_token": 1, "router_groups": 1, "balance_coef": 0.0, "hidden_size": 32}
    return {**dense, "init_std": 0.2, "vision": vision, "embedding": EmbeddingConfig(width=12), **changed}


def batch_of(first: int, count: int) -> Batch:
    """Pairs of images of unequal sizes and captions of unequal lengths; the first and the fifth caption are alike."""
    generator = torch.Generator().manual_seed(1)
    grids = [(2 * (1 + number % 3), 2 * (1 + number % 2)) for number in range(PAIRS)]
    lengths = [2 + number * 3 % 5 for number in range(PAIRS)]
    patches = torch.randint(0, 256, (sum(rows * columns for rows, columns in grids), 3, 16), generator=generator)
    tokens = torch.randint(0, 61, (sum(lengths),), generator=generator)
    hashes = torch.arange(2 * PAIRS).view(PAIRS, 2)
    hashes[4, 0] = hashes[0, 0]
    own = slice(first, first + count)
    of_image = patches.split([rows * columns for rows, columns in grids])[own]
    pairs = Pairs(
        torch.cat(of_image).to(torch.uint8).numpy(),
        grids[own],
        torch.cat(tokens.split(lengths)[own]).numpy(),
        torch.tensor(lengths[own]).numpy(),
        hashes[own].numpy(),
        torch.full((count, 2), -1).numpy(),
    )
    return make_pair_batch(pairs, list(range(first, first + count)))


def build(dtype: torch.dtype = torch.float64) -> DualEncoder:
    model = DualEncoder(model_config(**sizes())).to(dtype)
    model.init_weights(3)
    return model


def test_a_pair_is_embedded_as_if_it_were_alone():
    model, objective = build(), ImageText("softmax")
    assert model.num_params() == model.cfg.num_params()
    found = model(**objective.inputs(batch_of(0, PAIRS))).hidden
    assert found.shape == (2, PAIRS, 12)
    for number in range(PAIRS):
        alone = model(**objective.inputs(batch_of(number, 1))).hidden
        assert relative(found[:, number], alone[:, 0]) <= 1e-12


def test_pixels_are_normalised_as_elsewhere():
    image = torch.arange(256).repeat(24).to(torch.uint8).view(32, 64, 3).numpy()
    rule = PatchRule(8, 2, 2, 1024, 4096)
    (cut, grid), (prepared, same) = rule.cut(image), rule.prepare(image)
    assert grid == same
    assert normalised(torch.from_numpy(cut), 2).equal(torch.from_numpy(prepared))


def test_the_scale_is_limited_and_can_come_back():
    model = build()
    assert model.scale.item() == pytest.approx(1 / 0.07)
    assert model.bias.item() == -10
    with torch.no_grad():
        model.log_scale.fill_(9.0)
    assert model.scale.item() == pytest.approx(MAX_SCALE)
    (up,) = torch.autograd.grad(-model.scale.sum(), model.log_scale)  # descent would raise it further
    (down,) = torch.autograd.grad(model.scale.sum(), model.log_scale)
    assert up == 0
    assert down == pytest.approx(MAX_SCALE)


def test_what_is_not_used_is_frozen():
    for loss in ("softmax", "sigmoid"):
        model, objective = build(torch.float32), ImageText(loss)
        objective(model, batch_of(0, PAIRS), GlobalBatch(units=PAIRS)).total.backward()
        without = {name for name, weight in model.named_parameters() if weight.grad is None}
        assert without == {*objective.unused}


# ---- ranks

LAYOUTS = {"copies": (2, 1, False), "shards": (1, 2, False), "shards, images spread": (1, 2, True)}


def layout(replicate: int, shard: int, spread: bool = False) -> Config:
    cfg = tiny_config("unused", model=sizes(), name="sgd", lr=1.0, schedule="constant", warmup_steps=0, clip_norm=0.0)
    cfg.optim.momentum = cfg.optim.weight_decay = 0.0
    cfg.parallel = ParallelConfig(dp_replicate=replicate, dp_shard=shard, ep=1, balance_towers=spread)
    return cfg


def one_step(cfg: Config, loss: str, world: World) -> tuple[dict[str, Tensor], float, float]:
    """The gradients of two micro-batches, their norm, and the loss."""
    objective = ImageText(loss)
    with torch.device("meta"):
        model = DualEncoder(cfg.model).double()
    for name, weight in model.named_parameters():
        weight.requires_grad_(name not in objective.unused)
    meshes = build_meshes(cfg, "cpu")
    parallelize(model, meshes, cfg, "cpu")
    model.to_empty(device="cpu")
    model.init_weights(3)
    engine = NativeEngine(model, cfg.optim, world, None if meshes is None else meshes.shard_group)
    engine.prepare()
    before = {name: whole(weight) for name, weight in model.named_parameters()}
    rows = PAIRS // 2 // world.size
    batches = [batch_of(micro * PAIRS // 2 + world.rank * rows, rows) for micro in range(2)]
    if cfg.parallel.balance_towers:
        assert cfg.model.vision is not None
        batches, _ = Balance(world, cfg.model.vision)(batches)
        assert any(batch.media is not None and batch.media.image_moves for batch in batches)
    totals = accumulate_gradients(model, engine, objective, batches, PAIRS, world, step=1)
    total = world.sum_tensor(totals.values["loss"].clone()).item()
    norm = engine.step(1, 10)["grad_norm"].item()
    return {name: before[name] - whole(weight) for name, weight in model.named_parameters()}, norm, total


def rank_steps(loss: str) -> list[tuple[dict[str, Tensor], float, float]]:
    world = World(rank=dist.get_rank(), size=dist.get_world_size())
    return [one_step(layout(*counts), loss, world) for counts in LAYOUTS.values()]


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_two_ranks_equal_one_process_in_every_gradient(loss):
    grads, norm, total = one_step(layout(1, 1), loss, World())
    frozen = {*ImageText(loss).unused}
    router = {name for name in grads if "router" in name}  # a single expert leaves it without a choice
    assert all(grad.any() for name, grad in grads.items() if name not in frozen | router)
    for of_rank in on_ranks(2, rank_steps, loss, init=True, timeout_s=120.0):
        for name, (their_grads, their_norm, their_total) in zip(LAYOUTS, of_rank, strict=True):
            assert their_total == pytest.approx(total, rel=1e-10), name
            assert their_norm == pytest.approx(norm, rel=1e-10), name
            moving = {key: grad for key, grad in grads.items() if key not in frozen | router}
            assert_close({key: their_grads[key] for key in moving}, moving, 1e-10)


# ---- retrieval


def test_recall_counts_duplicates_as_right_and_ties_as_wrong():
    images = torch.nn.functional.normalize(torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [0.6, 0.8]]), dim=-1)
    texts = images[[1, 0, 3, 3]].clone()  # of pairs 0 and 1 swapped, of 2 and 3 equal
    hashes = torch.tensor([[5, 1], [5, 2], [6, 3], [7, 4]])  # 0 and 1 share a caption
    found = recalls(Rows(torch.stack([images, texts]), hashes, torch.full((4, 2), -1)))
    assert found["image_to_text_r1"] == pytest.approx(2 / 4)  # 0 and 1 by their duplicate; 2 and 3 are tied
    assert found["image_to_text_r5"] == 1.0
    hashes[1, 0] = 8
    assert recalls(Rows(torch.stack([images, texts]), hashes, hashes))["image_to_text_r1"] == 0.0


def test_zero_shot_takes_the_mean_of_a_classs_sentences():
    images = torch.eye(3)
    texts = torch.nn.functional.normalize(torch.tensor([[1, 0.2, 0], [1, -0.2, 0], [0, 0, 1.0]]), dim=-1)
    classes = torch.tensor([[0, 0], [1, 0], [-1, 1]])
    assert zero_shot(Rows(torch.stack([images, texts]), classes, classes)) == pytest.approx(0.5)


def test_embeddings_that_are_not_numbers_are_never_right():
    rows = Rows(torch.full((2, 4, 3), torch.nan), torch.arange(8).view(4, 2), torch.zeros(4, 2, dtype=torch.int64))
    assert set(recalls(rows).values()) == {0.0}
    assert zero_shot(rows) == 0.0
    one = torch.eye(4)[None].repeat(2, 1, 1)
    one[0, 1] = torch.nan
    found = recalls(Rows(one, rows.hashes, rows.classes))
    assert found["image_to_text_r5"] == 0.75
    assert zero_shot(rows._replace(classes=torch.full((4, 2), -1))) is None
