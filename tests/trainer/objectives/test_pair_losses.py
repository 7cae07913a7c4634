"""Losses over the pairs of all ranks: their formulas, open_clip's classes, and the memory of a rank."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from parallel.memory.live import LiveBytes
from parallel.world import World
from tests.distributed.pool import on_ranks
from tests.trainer.model.tiny import relative
from trainer.objectives.pair_losses import sigmoid_pairs, softmax_pairs

OPEN_CLIP = importlib.util.find_spec("open_clip")  # found, never imported: it needs torchvision
KINDS = ("softmax", "sigmoid")
SCALE, BIAS = 7.5, -2.5
N, D, TILE = 23, 6, 4
SPLITS = {1: [23], 2: [9, 14], 4: [5, 0, 11, 7]}  # pairs of each rank: unequal, and none


def everything(count: int = N, width: int = D) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Unit vectors a and b, those of a pair near each other; the scale and the bias."""
    generator = torch.Generator().manual_seed(5)
    a, noise = (torch.randn(count, width, generator=generator, dtype=torch.float64) for _ in range(2))
    scale, bias = (torch.tensor([value], dtype=torch.float64) for value in (SCALE, BIAS))
    return F.normalize(a, dim=-1), F.normalize(a + noise, dim=-1), scale, bias


def hashes(count: int = N) -> Tensor:
    """Two columns: captions, where every fifth is alike, and images, where the last is the first."""
    captions, images = torch.arange(count), torch.arange(count) + 100
    captions[::5], images[-1] = 77, images[0]
    return torch.stack([captions, images], 1)


def formula(kind: str, a: Tensor, b: Tensor, scale: Tensor, bias: Tensor, hashes: Tensor | None) -> tuple[Tensor, int]:
    """The sums over all pairs, written with the whole matrix."""
    own = torch.eye(len(a), dtype=torch.bool)
    masked = torch.zeros_like(own) if hashes is None else (hashes[:, None] == hashes[None]).any(-1) & ~own
    products = a @ b.t()
    logits = (scale * products).masked_fill(masked, -torch.inf)
    others = products.masked_fill(masked | own, -torch.inf)
    best = products.diagonal()
    hits = int((best > others.amax(1)).sum() + (best > others.amax(0)).sum())
    if kind == "softmax":
        target = torch.arange(len(a))
        both = [F.cross_entropy(x, target, reduction="sum") for x in (logits, logits.t())]
        return sum(both) / 2, hits
    signs = torch.where(own, 1.0, -1.0).double()
    return -(F.logsigmoid(signs * (scale * products + bias)))[~masked].sum(), hits


def ours(kind: str, a: Tensor, b: Tensor, scale: Tensor, bias: Tensor, hashes: Tensor | None, **more: Any) -> Any:
    if kind == "softmax":
        return softmax_pairs(a, b, scale, hashes_PC=hashes, **more)
    return sigmoid_pairs(a, b, scale, bias, hashes_PC=hashes, **more)


def gradients(loss: Tensor, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    found = torch.autograd.grad(loss, inputs, allow_unused=True)
    return [torch.zeros_like(x) if grad is None else grad for x, grad in zip(inputs, found, strict=True)]


def own_rows(split: list[int], rank: int, *tensors: Tensor) -> list[Tensor]:
    return [tensor.split(split)[rank].clone() for tensor in tensors]


def rank_sums(kind: str, masked: bool) -> dict[str, Any]:
    """The sums and the gradients of this rank, whose parts of the scale's and bias's are to be added."""
    world = World(rank=dist.get_rank(), size=dist.get_world_size(), control=dist.group.WORLD)
    a, b, scale, bias = everything()
    a, b, found = own_rows(SPLITS[world.size], world.rank, a, b, hashes())
    inputs = tuple(x.requires_grad_() for x in (a, b, scale, bias))
    sums = ours(kind, *inputs, found if masked else None, world=world, tile=TILE)
    return {"loss": sums.loss.item(), "hits": int(sums.hits), "grads": gradients(sums.loss * 0.5, inputs)}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("masked", [False, True])
def test_ranks_equal_the_formula_in_every_gradient(kind, masked):
    """On 1, 2 and 4 ranks with different numbers of pairs, tiles that do not divide them, and duplicates."""
    inputs = tuple(x.requires_grad_() for x in everything())
    loss, hits = formula(kind, *inputs, hashes() if masked else None)
    expected = gradients(loss * 0.5, inputs)
    assert 0 < hits < 2 * N
    for size in SPLITS:
        by_rank = on_ranks(size, rank_sums, kind, masked, init=True)
        assert sum(of_rank["loss"] for of_rank in by_rank) == pytest.approx(loss.item(), rel=1e-12)
        assert sum(of_rank["hits"] for of_rank in by_rank) == hits
        for number, (name, grad) in enumerate(zip(("a", "b", "scale", "bias"), expected, strict=True)):
            parts = [of_rank["grads"][number] for of_rank in by_rank]
            found = torch.cat(parts) if number < 2 else sum(parts)
            if kind == "softmax" and name == "bias":
                assert not found.any()
            else:
                assert relative(found, grad) <= 1e-12, (size, name)


@pytest.mark.parametrize("kind", KINDS)
def test_a_single_pair_and_none(kind):
    a, b, scale, bias = everything(1)
    sums = ours(kind, a, b, scale, bias, hashes(1), world=World())
    expected = 0.0 if kind == "softmax" else F.softplus(-(scale * (a * b).sum() + bias)).item()
    assert sums.loss.item() == pytest.approx(expected)
    assert sums.hits == 2
    empty = ours(kind, a[:0].requires_grad_(), b[:0], scale, bias, None, world=World())
    assert empty.loss == empty.hits == 0
    empty.loss.backward()


@pytest.mark.parametrize("kind", KINDS)
def test_fp32_is_near_fp64_at_many_pairs(kind):
    """The scale that CLIP trains up to, and SigLIP's first bias."""
    a, b, *_ = everything(600, 32)
    scale, bias = torch.tensor(100.0), torch.tensor(-10.0)
    for dtype in (torch.float32, torch.float64):
        inputs = tuple(x.to(dtype).requires_grad_() for x in (a, b, scale, bias))
        sums = ours(kind, *inputs, None, world=World(), tile=256)
        found = [sums.loss, *gradients(sums.loss, inputs)]
        if dtype == torch.float32:
            narrow = found
    for low, high in zip(narrow, found, strict=True):
        assert relative(low.double(), high) <= 1e-4


def test_equal_embeddings_are_no_hits():
    """A collapsed model has every other counterpart as near as its own."""
    a = torch.ones(4, 3)
    assert softmax_pairs(a, a, torch.tensor(1.0), World()).hits == 0


# ---- open_clip


def open_clip_losses() -> Any:
    assert OPEN_CLIP is not None
    assert OPEN_CLIP.origin is not None
    spec = importlib.util.spec_from_file_location("open_clip_loss", Path(OPEN_CLIP.origin).with_name("loss.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rank_compares(kind: str) -> list[tuple[float, float]]:
    """(ours, open_clip's) loss of this rank, and the largest relative difference of each gradient."""
    world = World(rank=dist.get_rank(), size=dist.get_world_size(), control=dist.group.WORLD)
    a, b, *rest = everything(24)
    a, b = own_rows([24 // world.size] * world.size, world.rank, a, b)
    inputs = tuple(x.requires_grad_() for x in (a, b, *rest))
    losses = open_clip_losses()
    if kind == "softmax":
        peer = losses.ClipLoss(local_loss=True, gather_with_grad=True, rank=world.rank, world_size=world.size)
        theirs = peer(*inputs[:3])
    else:
        theirs = losses.SigLipLoss(rank=world.rank, world_size=world.size)(*inputs)
    their_grads = gradients(theirs, inputs)
    sums = ours(kind, *inputs, None, world=world, tile=TILE)
    grads = gradients(sums.loss / len(a), inputs)
    totals = []
    for number, pair in enumerate(zip(grads, their_grads, strict=True)):
        pair = [world.sum_tensor(x) if number > 1 else x for x in pair]
        totals.append(float((pair[0] - pair[1]).norm() / pair[1].norm().clamp_min(1e-300)))
    both = world.sum_tensor(torch.stack([sums.loss.detach() / len(a), theirs.detach()]))
    return [tuple(both.tolist()), *((difference, 0.0) for difference in totals)]


@pytest.mark.skipif(
    OPEN_CLIP is None, reason="open_clip_torch is not installed; `make setup` does it without torchvision"
)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1, 2, 4])
def test_the_losses_are_those_of_open_clip(kind, size):
    """The same mean over pairs, and in every gradient: of both features, the scale and the bias."""
    for (mine, theirs), *differences in on_ranks(size, rank_compares, kind, init=True):
        assert mine == pytest.approx(theirs, rel=1e-12)
        assert all(difference <= 1e-12 for difference, _ in differences)


# ---- memory


def rank_peak(kind: str, pairs: int, width: int, tile: int) -> int:
    """Bytes of live tensors at the peak of forward and backward, the embeddings and their gradients included."""
    world = World(rank=dist.get_rank(), size=dist.get_world_size(), control=dist.group.WORLD)
    generator = torch.Generator().manual_seed(world.rank)
    with LiveBytes() as live:
        a, b = (torch.randn(pairs, width, generator=generator).requires_grad_() for _ in range(2))
        scale, bias = torch.ones(1, requires_grad=True), torch.zeros(1, requires_grad=True)
        found = torch.arange(pairs)[:, None] + world.rank * pairs
        ours(kind, a, b, scale, bias, found, world=world, tile=tile).loss.backward()
    return live.peak().total


@pytest.mark.parametrize("kind", KINDS)
def test_memory_follows_the_pairs_of_a_rank_and_not_those_of_all(kind):
    """With the same pairs a rank, three ranks need what four do. Twice the pairs need twice the bytes, not four times,
    and the same pairs in all on twice the ranks half of them; the tiles aside."""
    pairs, width, tile = 128, 256, 64
    tiles = 8 * 4 * tile * tile

    def peak(ranks: int, of_each: int) -> int:
        return max(on_ranks(ranks, rank_peak, kind, of_each, width, tile, init=True))

    four = peak(4, pairs)
    assert four == pytest.approx(peak(3, pairs), rel=0.02)
    assert four <= 9 * 4 * pairs * width + tiles  # a, b, their gradients twice, two blocks, a block's gradients twice
    assert peak(4, 2 * pairs) - four <= 1.05 * four
    assert peak(2, 2 * pairs) >= 1.8 * (four - tiles)


@pytest.mark.parametrize("kind", KINDS)
def test_the_size_of_a_tile_does_not_matter(kind):
    found = [ours(kind, *everything(), hashes(), world=World(), tile=tile) for tile in (1, 7, 64)]
    assert all(sums.loss.item() == pytest.approx(found[0].loss.item(), rel=1e-12) for sums in found)
    assert len({int(sums.hits) for sums in found}) == 1
