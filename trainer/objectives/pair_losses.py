"""Contrastive losses over the pairs of all ranks, without a matrix of all pairs on any.

For N pairs of vectors a_i, b_i and logits z_ij = scale * a_i . b_j:

softmax (CLIP: Radford et al. 2021, arXiv:2103.00020, fig. 3; InfoNCE: van den Oord et al. 2018, arXiv:1807.03748)
    sum_i -1/2 [ log softmax_j(z_ij) at j=i  +  log softmax_j(z_ji) at j=i ]
sigmoid (SigLIP: Zhai et al. 2023, arXiv:2303.15343, algorithm 1)
    sum_ij -log sigmoid(+-(z_ij + bias)), + where i = j

A rank keeps its a, and the b of all ranks come to it in turn (`pair_ring`); of a block it computes one tile at a time.
The gradients are made in the forward pass and travel home with the rows that they are of, so that backward, where
FSDP's collectives run, has none. A rank holds a few tensors of the size of its own rows, and tiles.

Pairs i and j with a hash in common are not each other's negatives: they take no part in each other's sums.

Legend: P pairs on this rank · Q pairs of a block · N pairs on all ranks · D width of an embedding · C kinds of hashes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from parallel.world import World
from trainer.objectives.pair_ring import Block, PairRing

TILE = 1024  # rows and columns of the logits that exist at one time


class PairSums(NamedTuple):
    """Sums over this rank's pairs, 0-dim; over the ranks they add up to those of all pairs.

    loss: in nats; in a tensor's gradient the losses of all ranks count. hits: embeddings, of a and of b, that are
    closer to their own counterpart than to any other that is not masked.
    """

    loss: Tensor
    hits: Tensor


def softmax_pairs(
    a_PD: Tensor, b_PD: Tensor, scale: Tensor, world: World, hashes_PC: Tensor | None = None, *, tile: int = TILE
) -> PairSums:
    """The softmax loss in both directions; the mean of the two.

    Args:
        a_PD, b_PD: embeddings in fp32 or fp64; row i of a and row i of b are a pair. Ranks may differ in P.
        scale: 0-dim or of one element; of the same value on all ranks.
        hashes_PC: int64; pairs that share a value in a column are not negatives of each other. None: all are.
        tile: rows and columns of the logits that exist at one time.
    Gradients of the scale are those of this rank's rows of a: their sum over the ranks is the whole. Collective over
    `world`; every rank must call backward with the same gradient of `loss`.
    """
    return PairSums(*_Softmax.apply(a_PD, b_PD, scale, *_plan(a_PD, b_PD, world, hashes_PC, tile, scale)))


def sigmoid_pairs(
    a_PD: Tensor,
    b_PD: Tensor,
    scale: Tensor,
    bias: Tensor,
    world: World,
    hashes_PC: Tensor | None = None,
    *,
    tile: int = TILE,
) -> PairSums:
    """The sigmoid loss. bias: as `scale`. The rest as for `softmax_pairs`."""
    return PairSums(*_Sigmoid.apply(a_PD, b_PD, scale, bias, *_plan(a_PD, b_PD, world, hashes_PC, tile, scale, bias)))


def _plan(
    a_PD: Tensor, b_PD: Tensor, world: World, hashes_PC: Tensor | None, tile: int, *others: Tensor
) -> tuple[PairRing, Tensor, int, bool]:
    """The arguments of both functions that carry no gradient."""
    if hashes_PC is None:
        hashes_PC = torch.empty(len(a_PD), 0, dtype=torch.int64, device=a_PD.device)
    with_grad = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (a_PD, b_PD, *others))
    return PairRing(len(a_PD), world), hashes_PC, tile, with_grad


class _Tile(NamedTuple):
    """rows, columns: of the logits, within this rank's a and the block's b. diagonal: True where they are pairs.
    masked: [rows, columns], or None where nothing is. products: a . b of each."""

    rows: slice
    columns: slice
    diagonal: bool
    masked: Tensor | None
    products: Tensor


def _tiles(a_PD: Tensor, hashes_PC: Tensor, block: Block, size: int) -> Iterator[_Tile]:
    """The tiles of one block. fixed[:2] of the block: b [Q, D], hashes [Q, C]."""
    b_QD, hashes_QC = block.fixed[:2]
    for top in range(0, len(a_PD), size):
        rows = slice(top, top + size)
        for left in range(0, len(b_QD), size):
            columns, diagonal = slice(left, left + size), block.own and top == left
            masked = None
            if hashes_PC.shape[1]:
                masked = (hashes_PC[rows, None] == hashes_QC[None, columns]).any(-1)
                if diagonal:
                    masked.fill_diagonal_(False)
            yield _Tile(rows, columns, diagonal, masked, a_PD[rows] @ b_QD[columns].t())


class _Best:
    """The largest product of each row, and of each column of the blocks, that is not a pair and not masked."""

    def __init__(self, like: Tensor) -> None:
        self.of_a = like.new_full((len(like),), -torch.inf)
        self.of_b = self.of_a.clone()  # travels
        self.own = self.of_a.clone()

    def see(self, tile: _Tile, of_block: Tensor) -> None:
        others = tile.products if tile.masked is None else tile.products.masked_fill(tile.masked, -torch.inf)
        if tile.diagonal:
            self.own[tile.rows] = others.diagonal()
            others = others.clone() if others is tile.products else others
            others.fill_diagonal_(-torch.inf)
        for best, found in ((self.of_a[tile.rows], others.amax(1)), (of_block[tile.columns], others.amax(0))):
            torch.maximum(best, found, out=best)

    def hits(self) -> Tensor:
        """In the dtype of the logits: torch divides whole numbers in fp32."""
        return ((self.own > self.of_a).sum() + (self.own > self.of_b).sum()).to(self.own.dtype)


class _MadeInForward(torch.autograd.Function):
    """A function of tensors and four other arguments that has saved its gradients for a gradient of 1."""

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return *(grads[0] * grad for grad in ctx.saved_tensors), None, None, None, None


class _Softmax(_MadeInForward):
    @staticmethod
    def forward(
        ctx: Any,
        a_PD: Tensor,
        b_PD: Tensor,
        scale: Tensor,
        ring: PairRing,
        hashes_PC: Tensor,
        size: int,
        with_grad: bool,
    ) -> tuple[Tensor, Tensor]:
        best, times = _Best(a_PD), scale.to(a_PD.dtype)
        log_z_a = a_PD.new_full((len(a_PD),), -torch.inf)
        log_z_b = log_z_a.clone()

        def add_up(block: Block) -> None:
            of_block, best_of_block = block.written
            for tile in _tiles(a_PD, hashes_PC, block, size):
                best.see(tile, best_of_block)
                logits = _logits(tile, times)
                for log_z, dim in ((log_z_a[tile.rows], 1), (of_block[tile.columns], 0)):
                    torch.logaddexp(log_z, logits.logsumexp(dim), out=log_z)

        ring.tour(add_up, [b_PD, hashes_PC], [log_z_b, best.of_b])
        loss = (log_z_a.double().sum() + log_z_b.double().sum()) / 2 - (best.own.double() * times).sum()
        if with_grad:
            d_a, d_b, d_scale = torch.zeros_like(a_PD), torch.zeros_like(b_PD), scale.new_zeros((), dtype=torch.float64)

            def add_gradients(block: Block) -> None:
                b_QD, _, log_z_Q = block.fixed
                for tile in _tiles(a_PD, hashes_PC, block, size):
                    logits = _logits(tile, times)
                    grad = (logits - log_z_a[tile.rows, None]).exp_()
                    grad += logits.sub_(log_z_Q[tile.columns]).exp_()
                    grad /= 2
                    if tile.diagonal:
                        grad.diagonal().sub_(1)
                    d_scale.add_((grad * tile.products).sum())
                    grad *= times
                    d_a[tile.rows] += grad @ b_QD[tile.columns]
                    block.written[0][tile.columns] += grad.t() @ a_PD[tile.rows]

            ring.tour(add_gradients, [b_PD, hashes_PC, log_z_b], [d_b])
            ctx.save_for_backward(d_a, d_b, d_scale.to(scale.dtype).view_as(scale))
        hits = best.hits()
        ctx.mark_non_differentiable(hits)
        return loss.to(a_PD.dtype), hits


class _Sigmoid(_MadeInForward):
    @staticmethod
    def forward(
        ctx: Any,
        a_PD: Tensor,
        b_PD: Tensor,
        scale: Tensor,
        bias: Tensor,
        ring: PairRing,
        hashes_PC: Tensor,
        size: int,
        with_grad: bool,
    ) -> tuple[Tensor, Tensor]:
        best, times, shift = _Best(a_PD), scale.to(a_PD.dtype), bias.to(a_PD.dtype)
        loss, d_scale, d_bias = torch.zeros(3, dtype=torch.float64, device=a_PD.device).unbind()
        d_a, d_b = torch.zeros_like(a_PD), torch.zeros_like(b_PD)

        def add_up(block: Block) -> None:
            best_of_block = block.written[0]
            for tile in _tiles(a_PD, hashes_PC, block, size):
                best.see(tile, best_of_block)
                wrong = _logits(tile, times, shift)  # the larger, the worse
                if tile.diagonal:
                    wrong.diagonal().neg_()
                loss.add_(F.softplus(wrong).sum(dtype=torch.float64))
                if with_grad:
                    grad = wrong.sigmoid_()
                    if tile.diagonal:
                        grad.diagonal().neg_()
                    d_bias.add_(grad.sum())
                    d_scale.add_((grad * tile.products).sum())
                    grad *= times
                    d_a[tile.rows] += grad @ block.fixed[0][tile.columns]
                    block.written[1][tile.columns] += grad.t() @ a_PD[tile.rows]

        ring.tour(add_up, [b_PD, hashes_PC], [best.of_b, d_b] if with_grad else [best.of_b])
        if with_grad:
            of_scale, of_bias = d_scale.to(scale.dtype).view_as(scale), d_bias.to(bias.dtype).view_as(bias)
            ctx.save_for_backward(d_a, d_b, of_scale, of_bias)
        hits = best.hits()
        ctx.mark_non_differentiable(hits)
        return loss.to(a_PD.dtype), hits


def _logits(tile: _Tile, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """Minus infinity where masked."""
    logits = tile.products * scale
    if bias is not None:
        logits += bias
    return logits if tile.masked is None else logits.masked_fill_(tile.masked, -torch.inf)
