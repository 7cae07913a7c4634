"""Exact arithmetic: a row's bits depend on the row alone, and values and gradients are those of the usual one."""

import pytest
import torch

from parallel.context.base import Documents
from tests.trainer.model.tiny import (
    build,
    gradients,
    logits,
    model_config,
    next_tokens,
    random_ids,
    relative,
    summed_loss,
)
from trainer.model.attention import document_attention
from trainer.model.exact.attention import ExactAttention, _key_blocks, attend
from trainer.model.exact.blocks import KEYS
from trainer.model.exact.check import dependent_products
from trainer.model.exact.ops import EXACT
from trainer.model.exact.switch import compiled_for_few_rows, make_exact, store_for_few_rows
from trainer.model.experts.fp8_reference import Fp8Reference

GENERATOR = torch.Generator().manual_seed(0)


def numbers(*shape):
    return torch.randn(shape, generator=GENERATOR)


def packed(*lengths):
    positions = torch.cat([torch.arange(length) for length in lengths]).unsqueeze(0)
    bounds = torch.tensor([0, *torch.tensor(lengths).cumsum(0)], dtype=torch.int32)
    return positions, bounds


@pytest.mark.parametrize("fp8", [False, True])
@pytest.mark.parametrize("kv_heads", [1, 2, 6])
def test_values_and_gradients_are_the_usual_ones(kv_heads, fp8):
    model = build(model_config(max_position=400, num_kv_heads=kv_heads))
    if fp8:
        for block in model.blocks:
            block.moe.experts.backend = Fp8Reference()
    ids = random_ids(model.cfg, 2, 90)
    usual = logits(model, ids)
    summed_loss(model, ids, next_tokens(ids))[0].backward()
    expected = gradients(model)
    make_exact(model)
    assert relative(logits(model, ids), usual) < 1e-6
    summed_loss(model, ids, next_tokens(ids))[0].backward()
    for name, gradient in gradients(model).items():  # a last bit may decide how a number is rounded to FP8
        assert relative(gradient, expected[name]) < (1e-2 if fp8 else 1e-5), name


@pytest.mark.parametrize(
    ("dtype", "compiler"),
    [(torch.float32, True), (torch.float32, False), (torch.bfloat16, True), (torch.float64, True)],
)
def test_documents_have_the_same_bits_alone_and_packed(dtype, compiler, monkeypatch):
    if not compiler:
        monkeypatch.setattr("trainer.model.exact.compiled.library", lambda: None)
    wide = torch.float64 if dtype is torch.float64 else torch.float32
    model = make_exact(build(model_config(max_position=400), dtype=wide, compute_dtype=dtype))
    lengths = (100, 1, 129, 70)
    ids = random_ids(model.cfg, 1, 300)
    together = logits(model, ids, *packed(*lengths))[0]
    start = 0
    for length in lengths:
        alone = logits(model, ids[:, start : start + length])[0]
        assert torch.equal(alone, together[start : start + length])
        start += length
    assert torch.equal(logits(model, ids[:, :40])[0], together[:40])  # the start of a document


@pytest.mark.parametrize("width", [21, 64])
def test_the_gate_has_the_same_bits_wherever_it_is(width):
    """With several threads too: each gets a part of the numbers, whose last few are computed by themselves."""
    hidden, weight = numbers(2000, 2 * width), numbers(2000)
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        whole = EXACT.weighted_swiglu(hidden, weight)
    finally:
        torch.set_num_threads(threads)
    for row in range(2000):
        assert torch.equal(EXACT.weighted_swiglu(hidden[row : row + 1], weight[row : row + 1])[0], whole[row])


@pytest.mark.parametrize("shared", [1, 3, 16])
def test_attention_of_a_piece_is_that_of_the_whole(shared):
    """From any position, with keys behind the last query, and in chunks of queries."""
    tokens, heads, width = 700, 2, 8
    q, k, v = numbers(tokens, heads, shared, width), *(numbers(tokens + 68, heads, width) for _ in range(2))
    keys, values = (list(x.unflatten(0, (-1, KEYS)).transpose(1, 2)) for x in (k, v))
    whole = attend(q, keys, values, 0)
    for start, end in ((0, 1), (63, 64), (64, 65), (10, 300), (511, 700), (699, 700)):
        assert torch.equal(attend(q[start:end], keys, values, start), whole[start:end])
    mask = torch.ones(tokens, tokens, dtype=torch.bool).tril()
    heads_first = [x[:tokens].transpose(0, 1).double() for x in (k, v)]
    for member in range(shared):
        reference = torch.nn.functional.scaled_dot_product_attention(
            q[:, :, member].transpose(0, 1).double(), *heads_first, attn_mask=mask
        )
        assert relative(whole[:, :, member].transpose(0, 1), reference) < 1e-6


def test_products_of_this_machine_are_exact_and_others_are_found(monkeypatch):
    model = build(model_config())
    assert dependent_products(model) == []
    monkeypatch.setattr("trainer.model.exact.compiled.library", lambda: None)  # as without a compiler
    assert dependent_products(model) == []

    def by_size(x, matrix, rows):  # as a library that adds up in another way for few rows
        return x @ matrix + 2**-10 if len(x) < 5 else x @ matrix

    monkeypatch.setattr("trainer.model.exact.check.block_mm", by_size)
    found = dependent_products(model)
    assert f"16 x 24 x {model.cfg.vocab_size}" in found
    assert len(found) == 9


def test_experts_stored_for_few_rows_are_the_same():
    model = make_exact(build(model_config(max_position=400)).requires_grad_(False))
    ids, before = random_ids(model.cfg, 2, 90), {name: weight.clone() for name, weight in model.named_parameters()}
    expected = logits(model, ids)
    store_for_few_rows(model)
    assert not model.blocks[0].moe.experts.w2.is_contiguous()
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())
    assert torch.equal(logits(model, ids), expected)


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("exact", [False, True])
def test_a_model_computes_in_compiled_products_for_a_while(exact):
    model = build(model_config(max_position=400))
    if exact:
        make_exact(model)
    ids, before = random_ids(model.cfg, 2, 90), {name: weight.data for name, weight in model.named_parameters()}
    experts, attention = model.blocks[0].moe.experts, model.blocks[0].attention
    backend, ops = experts.backend, attention.ops
    expected = logits(model, ids)
    with torch.no_grad(), compiled_for_few_rows(model):
        assert not experts.w2.is_contiguous()
        assert torch.equal(experts.w2, before["layers.0.moe.experts.w2"])
        inside = logits(model, ids)
    assert torch.equal(inside, expected) if exact else 0 < relative(inside, expected) < 1e-5
    assert torch.equal(logits(model, ids), expected)
    for name, weight in model.named_parameters():
        assert weight.data_ptr() == before[name].data_ptr()
        assert weight.stride() == before[name].stride()
    assert (experts.backend, attention.ops) == (backend, ops)


def test_ranks_that_share_a_sequence_are_refused():
    model = build(model_config())

    class Two:
        ranks = 2

    model.blocks[0].attention.core = Two()
    with pytest.raises(ValueError):
        make_exact(model)


@pytest.mark.parametrize(("dtype", "compiler"), [(torch.float32, True), (torch.float32, None), (torch.bfloat16, None)])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 2), (6, 2), (4, 4), (9, 1)])
def test_short_documents_attended_together_have_the_bits_of_each_alone(heads, kv_heads, dtype, compiler, monkeypatch):
    if compiler is None:
        monkeypatch.setattr("trainer.model.exact.compiled.library", lambda: None)
    lengths = [7, 7, 5, 1, KEYS, KEYS + 1, 3, 2 * KEYS + 2, 33, 2, *[7] * 60]
    q, k, v = (numbers(sum(lengths), some, 16).to(dtype) for some in (heads, kv_heads, kv_heads))
    docs = Documents.from_cu_seqlens(packed(*lengths)[1], sum(lengths), q.device)
    leaves = [x.requires_grad_() for x in (q, k, v)]
    y, usual = ExactAttention()(*leaves, docs), document_attention(*leaves, docs)
    documents = [*zip(*(x.detach().split(lengths) for x in leaves), strict=True)]
    alone = [ExactAttention()(*one, Documents.rows(1, len(one[0]), q.device)) for one in documents]
    assert torch.equal(y, torch.cat(alone))
    assert relative(y.double(), usual.double()) < (1e-6 if dtype is torch.float32 else 1e-2)
    if compiler is None:
        parts = [
            attend(a.unflatten(1, (kv_heads, -1)), _key_blocks(b), _key_blocks(c), 0).flatten(1, 2)
            for a, b, c in documents
        ]
        assert torch.equal(y, torch.cat(parts))
    d_y = numbers(*y.shape).to(dtype)
    for found, wanted in zip(*(torch.autograd.grad(of, leaves, d_y) for of in (y, usual)), strict=True):
        assert relative(found.double(), wanted.double()) < (1e-6 if dtype is torch.float32 else 1e-2)
