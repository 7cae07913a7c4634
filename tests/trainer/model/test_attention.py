"""Attention inside documents: packed is one by one, and nothing passes from one document to another."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from parallel.context.base import Documents
from tests.trainer.model.tiny import assert_close, build, gradients, logits, model_config, random_ids, relative
from trainer.model.attention import Attention, DocumentAttention, document_attention
from trainer.model.decoder import Decoder
from trainer.model.rotary import Rotary

LENGTHS = [5, 1, 9, 7]  # one of a single token
TOKENS = sum(LENGTHS)


def bounds(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)


def restarting_positions(lengths: list[int]) -> Tensor:
    return torch.cat([torch.arange(n) for n in lengths])


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def masked_attention(q: Tensor, k: Tensor, v: Tensor, lengths: list[int]) -> Tensor:
    """All scores, then a mask: causal, and within a document. q [T, h, d]; k, v [T, n, d]; head i reads i // (h/n)."""
    h, d = q.shape[1:]
    document_T = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    allowed_TT = (document_T[:, None] == document_T[None, :]).tril()
    heads = []
    for i in range(h):
        source = i // (h // k.shape[1])
        scores_TT = (q[:, i] @ k[:, source].T / d**0.5).masked_fill(~allowed_TT, float("-inf"))
        heads.append(torch.softmax(scores_TT, dim=-1) @ v[:, source])
    return torch.stack(heads, dim=1)


@pytest.mark.parametrize("lengths", [LENGTHS, [7, 4], [5, 4, 6], [6, 6, 6], [11], [1], [1, 1, 1],
                                     [3, 70, 5, *[7, 1, 20] * 6, 65, 64]])  # fmt: skip
def test_document_attention_is_softmax_under_a_block_mask(lengths):
    tokens = sum(lengths)
    leaves = [normal(tokens, heads, 8, seed=heads).requires_grad_() for heads in (6, 2, 3)]
    q, k, v = leaves[0], leaves[1], leaves[2][:, :2]  # v as a strided view, as the model gives it
    y = document_attention(q, k, v, Documents.from_cu_seqlens(bounds(lengths), tokens, q.device))
    expected = masked_attention(q, k, v, lengths)
    assert relative(y, expected) <= 1e-13
    upstream = normal(*y.shape, seed=5)
    found = torch.autograd.grad(y, leaves, upstream)
    for grad, expected_grad in zip(found, torch.autograd.grad(expected, leaves, upstream), strict=True):
        if expected_grad.norm() > 1e-10:  # with one token there is nothing to weigh: 0, up to rounding
            assert relative(grad, expected_grad) <= 1e-12
        else:
            assert grad.norm() <= 1e-10


def fp64_model() -> Decoder:
    return build(model_config(positions="fope"), dtype=torch.float64)


def test_packed_documents_are_the_documents_one_by_one():
    """Logits and every gradient; FoPE, so that the positions' restart matters and not only their differences."""
    model = fp64_model()
    ids = random_ids(model.cfg, 1, TOKENS)
    upstream = normal(1, TOKENS, model.cfg.vocab_size)
    positions = restarting_positions(LENGTHS).unsqueeze(0)
    packed = logits(model, ids, positions, bounds(LENGTHS))
    packed.backward(upstream)
    packed_gradients = gradients(model)
    parts = [logits(model, part) for part in ids.split(LENGTHS, dim=1)]
    torch.cat(parts, dim=1).backward(upstream)
    assert relative(packed, torch.cat(parts, dim=1)) <= 1e-12
    assert_close(packed_gradients, gradients(model), 1e-11)
    without_restart = logits(model, ids, None, bounds(LENGTHS))
    assert relative(without_restart, packed) > 1e-3


def test_rows_are_documents_by_default_and_may_be_cut_further():
    """[B, S] without bounds, the same with bounds, and cut so that a document ends inside each row."""
    model = fp64_model()
    ids = random_ids(model.cfg, 3, 8)
    rows = logits(model, ids)
    assert torch.equal(logits(model, ids, None, bounds([8, 8, 8])), rows)
    for row, one in zip(rows, ids, strict=True):
        assert relative(row, logits(model, one.unsqueeze(0))[0]) <= 1e-12
    lengths = [3, 5, 8, 7, 1]
    cut = logits(model, ids, restarting_positions(lengths).view(3, 8), bounds(lengths)).flatten(0, 1)
    for part, one in zip(cut.split(lengths), ids.flatten().split(lengths), strict=True):
        assert relative(part, logits(model, one.unsqueeze(0))[0]) <= 1e-12


@pytest.mark.parametrize("lengths", [LENGTHS, [11, 11]])
def test_a_document_does_not_move_another_bitwise(lengths):
    """In fp32, at the attention's output: beyond it the experts' rows share matrix multiplications."""
    cfg = model_config()
    attention, rotary = Attention(cfg), Rotary(cfg)
    with torch.no_grad():
        for seed, tensor in enumerate([*attention.parameters(), *rotary.buffers()]):
            tensor.copy_(normal(*tensor.shape, seed=seed, dtype=torch.float32))
    tokens = sum(lengths)
    docs = Documents.from_cu_seqlens(bounds(lengths), tokens, torch.device("cpu"))
    cos, sin = rotary(restarting_positions(lengths), torch.float32)
    x = normal(tokens, cfg.hidden_size, dtype=torch.float32)
    before = attention(x, cos, sin, docs).split(lengths)
    for changed in range(len(lengths)):
        other = x.clone()
        other.split(lengths)[changed].add_(1.0)
        after = attention(other, cos, sin, docs).split(lengths)
        for number, (old, new) in enumerate(zip(before, after, strict=True)):
            assert torch.equal(old, new) == (number != changed), f"document {number} when {changed} changes"


def test_no_gradient_reaches_another_document_or_a_later_token():
    """Exactly zero through the whole model, for one token of each document."""
    model = fp64_model()
    x = normal(1, TOKENS, model.cfg.hidden_size).requires_grad_()
    found = logits(model, None, restarting_positions(LENGTHS).unsqueeze(0), bounds(LENGTHS), embeds=x)[0]
    start = 0
    for length in LENGTHS:
        token = start + length // 2
        (grad,) = torch.autograd.grad(found[token].square().sum(), x, retain_graph=True)
        touched = grad[0].abs().sum(-1) > 0
        assert touched.nonzero().flatten().tolist() == list(range(start, token + 1))
        start += length


@pytest.mark.parametrize(
    "impossible",
    [[0, 5, TOKENS - 1], [0, 5, TOKENS + 1], [1, TOKENS], [0, 9, 5, TOKENS], [0, 5, 5, TOKENS], [TOKENS], [0], []],
)
def test_impossible_cu_seqlens_raise(impossible):
    model = build(model_config())
    with pytest.raises(ValueError, match=f"cu_seqlens must increase from 0 to the {TOKENS} tokens"):
        model(random_ids(model.cfg, 1, TOKENS), None, torch.tensor(impossible, dtype=torch.int32))


def test_slices_of_a_sequence_need_their_positions_and_the_bounds_of_the_whole():
    model = fp64_model()

    class Two(DocumentAttention):
        ranks = 2

    for block in model.blocks:
        block.attention.core = Two()
    ids = random_ids(model.cfg, 1, TOKENS)
    positions = restarting_positions(LENGTHS).unsqueeze(0)
    for missing in ((None, bounds(LENGTHS)), (positions, None)):
        with pytest.raises(ValueError, match="positions and the cu_seqlens of the whole"):
            model(ids, *missing)
    with pytest.raises(ValueError, match=f"from 0 to the {2 * TOKENS} tokens"):
        model(ids, positions, bounds(LENGTHS))
