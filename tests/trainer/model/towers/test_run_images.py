"""Images that other ranks run: embeddings and gradients are those of a rank that runs its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from parallel.balance.moves import Grid, Moves
from parallel.world import World
from tests.bench.balance import drawn
from tests.distributed.pool import on_ranks
from trainer.config.model import InternViTConfig, VisionConfig
from trainer.data.batch import Batch, Media
from trainer.data.media.balance import Balance, Load
from trainer.model.initial import seeded_normal
from trainer.model.towers.intern_vit import InternViT
from trainer.model.towers.places import Places
from trainer.model.towers.run_images import SpreadImages
from trainer.model.towers.vision import Images, VisionTower

NATIVE = VisionConfig(
    width=16, num_layers=1, num_heads=2, mlp_width=24, channels=1, frames=2, patch_size=2, merge=2, position_side=3,
    out_width=12,
)  # fmt: skip
TILES = InternViTConfig(
    width=12, num_layers=1, num_heads=3, mlp_width=20, channels=1, tile_size=8, patch_size=2, merge=2, norm_eps=1e-6,
    out_width=12,
)  # fmt: skip
# of each rank; one has no image, and the blank one is not sent anywhere
GRIDS: list[list[Grid]] = [[(4, 4), (2, 2), (6, 4)], [], [(2, 6), (2, 2), (4, 8), (2, 4)]]
COUNTS = [3, 0, 4]  # of tiles


def images_of(kind: str, rank: int) -> Images | Tensor:
    if kind == "tiles":
        return seeded_normal((COUNTS[rank] or 1, 1, 8, 8), 3, f"tiles {rank}").double()
    grids = GRIDS[rank] or [(2, 2)]
    patches = sum(rows * columns for rows, columns in grids)
    if not GRIDS[rank]:
        return Images(torch.zeros(4, 8), grids)
    if kind == "bytes" or (kind == "mixed" and rank == 0):
        generator = torch.Generator().manual_seed(rank)
        return Images(torch.randint(0, 256, (patches, 1, 4), generator=generator, dtype=torch.uint8), grids)
    return Images(seeded_normal((patches, 8), 3, f"patches {rank}"), grids)


def batch_of(images: Images | Tensor | None, own: int) -> Batch:
    """With places of its images' embeddings; nowhere for a blank one."""
    at = torch.arange(own)
    places = None if images is None else Places(at, None if own else at, (1,))
    empty = torch.zeros(1, 1, dtype=torch.int64)
    return Batch({"ids": empty}, None, torch.zeros(1, dtype=torch.int32), 0, [0], media=Media(images, (), places))


def run(kind: str, spread: bool) -> tuple[Tensor, dict[str, Tensor], list[int], Load | None]:
    """Embeddings of this rank's images, the gradients of the tower summed over ranks, and the patches or tiles that the
    tower ran."""
    torch.manual_seed(1)
    cfg: Any = TILES if kind == "tiles" else NATIVE
    tower = (InternViT(cfg) if kind == "tiles" else VisionTower(cfg)).double()
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter.copy_(torch.randn_like(parameter))
    rank, world = dist.get_rank(), World(rank=dist.get_rank(), size=dist.get_world_size())
    ran: list[int] = []
    tower.register_forward_pre_hook(lambda _, given: ran.append(len(getattr(given[0], "pixels", given[0]))))
    images, group = images_of(kind, rank), dist.group.WORLD
    own = (COUNTS if kind == "tiles" else [len(grids) for grids in GRIDS])[rank]
    ((batch,), load) = Balance(world, cfg)([batch_of(images, own)])
    assert batch.media is not None
    assert batch.media.image_moves is not None
    assert group is not None
    found = SpreadImages(group, cfg)(tower, images, batch.media.image_moves) if spread else tower(images)
    (found * seeded_normal(found.shape, 4, f"of {rank}")).sum().mul(1.0 if own else 0.0).backward()
    grads = {}
    for name, parameter in tower.named_parameters():
        assert parameter.grad is not None
        dist.all_reduce(parameter.grad)
        grads[name] = parameter.grad
    return found.detach() if own else found.detach()[:0], grads, ran, load


@pytest.mark.parametrize("kind", ["patches", "bytes", "mixed", "tiles"])
def test_embeddings_and_gradients_are_those_of_ranks_that_run_their_own(kind):
    spread = on_ranks(3, run, kind, True, init=True)
    own = on_ranks(3, run, kind, False, init=True)
    for (found, grads, _, _), (expected, expected_grads, _, _) in zip(spread, own, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-13)
        assert grads.keys() == expected_grads.keys()
        for name, grad in expected_grads.items():
            assert (grads[name] - grad).norm() <= 1e-12 * grad.norm(), name
    ran, before = ([sum(ran) for _, _, ran, _ in of_all] for of_all in (spread, own))
    assert sum(before) == sum(ran) + (4 if kind != "tiles" else 1)  # but for the blank one
    load = spread[0][3]
    assert load is not None
    assert load.tower_load == pytest.approx(max(ran) / (sum(ran) / 3))
    assert load.tower_load < load.tower_load_before


def test_images_on_one_rank_and_none_at_all():
    assert all(on_ranks(2, edge_cases, init=True))


def edge_cases() -> bool:
    rank = dist.get_rank()
    balance = Balance(World(rank=rank, size=2), NATIVE)
    without = batch_of(None, 0)
    assert balance([without, without]) == ([without, without], None)
    blank = batch_of(images_of("patches", 1), 0)  # of a micro-batch in which no rank has an image
    one = batch_of(Images(torch.zeros(8, 8), [(2, 4)]) if rank else images_of("patches", 1), rank)
    batches, load = balance([blank, one])
    assert load == (2.0, 2.0)
    return all(batch.media is not None and batch.media.image_moves is None for batch in batches)


# ---- eight ranks


class Blocks(torch.nn.Module):
    """In the place of a tower: a block's mean times a weight. Attention over 65,536 patches would take minutes."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))
        self.ran: list[Grid] = []

    def forward(self, images: Images) -> Tensor:
        self.ran += images.grids
        return images.pixels.unflatten(0, (-1, 4)).mean(1) * self.weight


def run_drawn(seed: int) -> tuple[list[Grid], Load | None, float]:
    rank, group = dist.get_rank(), dist.group.WORLD
    assert group is not None
    grids = drawn(seed)[rank]
    patches = sum(rows * columns for rows, columns in grids)
    images = Images(seeded_normal((patches, 1), seed, f"rank {rank}"), grids)
    ((batch,), load) = Balance(World(rank=rank, size=8), NATIVE)([batch_of(images, patches // 4)])
    assert batch.media is not None
    here, away = Blocks(), Blocks()
    expected = here(images)
    found = SpreadImages(group, NATIVE)(away, images, batch.media.image_moves)
    assert found.equal(expected)
    slopes = seeded_normal(found.shape, seed, f"slopes {rank}")
    sums = []
    for tower, out in ((here, expected), (away, found)):
        (out * slopes).sum().backward()
        assert tower.weight.grad is not None
        dist.all_reduce(tower.weight.grad)
        sums.append(tower.weight.grad.item())
    assert sums[1] == pytest.approx(sums[0], rel=1e-12)
    return away.ran, load, sums[1]


@pytest.mark.slow
def test_eight_ranks_run_about_as_many_patches_each():
    for seed in range(3):
        found = on_ranks(8, run_drawn, seed, init=True, timeout_s=240.0)
        everything = sorted(grid for of_rank in drawn(seed) for grid in of_rank)
        assert sorted(grid for ran, _, _ in found for grid in ran) == everything
        patches = [sum(rows * columns for rows, columns in ran) for ran, _, _ in found]
        mean, largest = sum(patches) / 8, max(rows * columns for rows, columns in everything)
        assert max(patches) <= max(1.05 * mean, largest)
        before = [sum(rows * columns for rows, columns in of_rank) for of_rank in drawn(seed)]
        assert all(load == (max(patches) / mean, max(before) / mean) for _, load, _ in found)


@pytest.mark.gpu
def test_nothing_waits_for_a_gpu():
    """On the only rank of a group, which sends its images to itself in another order."""
    grids = [(2, 2), (4, 2), (2, 6)]
    moves = Moves(((2, 0, 1),), ((grids[2], grids[0], grids[1]),))
    images, tower = Images(torch.randn(24, 1, device="cuda"), grids), Blocks().cuda()
    dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=1, device_id=torch.device("cuda", 0))
    try:
        assert dist.group.WORLD is not None
        spread = SpreadImages(dist.group.WORLD, NATIVE)
        spread(tower, images, moves).sum().backward()  # makes what is made once
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            found = spread(tower, images, moves)
            found.sum().backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert found.equal(tower(images))
    finally:
        dist.destroy_process_group()
