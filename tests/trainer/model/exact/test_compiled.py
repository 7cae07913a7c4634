"""Compiled products: values, and bits that do not depend on anything beside a row and its matrix."""

import logging

import pytest
import torch

from parallel.dispatch.base import RowOrder, sum_slots
from tests.trainer.model.tiny import relative
from trainer.model.exact import library
from trainer.model.exact.compiled import attend, expert_products, mixture, product, select, store, swiglu
from trainer.model.numerics import select_experts

GENERATOR = torch.Generator().manual_seed(0)
SIZES = [(1, 1), (7, 5), (24, 61), (64, 64), (300, 200)]  # inner, columns

pytestmark = pytest.mark.usefixtures("compiled")


def numbers(*shape):
    return torch.randn(shape, generator=GENERATOR)


@pytest.mark.parametrize(("inner", "columns"), SIZES)
def test_a_row_has_the_same_bits_in_any_product(inner, columns):
    x, matrix = numbers(23, inner), numbers(inner, columns)
    whole = product(x, matrix)
    assert relative(whole, x.double() @ matrix.double()) < 1e-6
    assert torch.equal(product(x, matrix.t().contiguous().t()), whole)  # stored by columns
    assert torch.equal(product(x.t().contiguous().t(), matrix), whole)
    wider = numbers(inner, columns + 9)
    wider[:, 4 : 4 + columns] = matrix
    assert torch.equal(product(x, wider[:, 4 : 4 + columns]), whole)
    assert torch.equal(product(x, wider)[:, 4 : 4 + columns], whole)  # at other columns
    for rows in range(1, 14):
        assert torch.equal(product(x[-rows:], matrix), whole[-rows:])
    assert product(x[:0], matrix).shape == (0, columns)


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_and_neighbours_change_no_bit_of_experts(threads):
    experts, inner, columns = 9, 40, 150
    x, matrices = numbers(70, inner), numbers(experts, columns, inner).mT
    ends = torch.tensor([3, 3, 20, 21, 40, 55, 55, 60, 64], dtype=torch.int32)
    index = torch.randint(70, (66,), generator=GENERATOR)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found, gathered = expert_products(x, matrices, ends), expert_products(x, matrices, ends, index)
        stored_otherwise = expert_products(x, matrices.contiguous(), ends)
    finally:
        torch.set_num_threads(before)
    assert found.shape == (70, columns)
    assert gathered.shape == (66, columns)
    start = 0
    for expert, end in enumerate(ends.tolist()):
        for row in range(start, end):
            assert torch.equal(found[row], product(x[row : row + 1], matrices[expert])[0])
            assert torch.equal(gathered[row], product(x[index[row]].unsqueeze(0), matrices[expert])[0])
        start = end
    assert torch.equal(stored_otherwise[:end], found[:end])


def test_a_mixture_has_the_bits_of_its_parts():
    tokens, slots, experts, hidden, width = 33, 3, 7, 24, 20
    x, weights = numbers(tokens, hidden), numbers(tokens, slots)
    first, second = numbers(experts, 2 * width, hidden).mT, numbers(experts, width, hidden)
    ids = torch.rand(tokens, experts, generator=GENERATOR).argsort(-1)[:, :slots]
    ids[ids == 5] = 2  # an expert without rows, and one twice for a token
    found, order = mixture(x, ids, weights, first, second), RowOrder(ids, experts)
    rows = expert_products(x, first, order.offsets, order.token_of_row)
    act = swiglu(rows, weights.flatten()[order.slot_of_row])
    assert torch.equal(found, sum_slots(expert_products(act, second, order.offsets), order.row_of_slot))
    for token in range(tokens):
        part = slice(token, token + 1)
        assert torch.equal(mixture(x[part], ids[part], weights[part], first, second), found[part])


@pytest.mark.parametrize("width", [3, 16, 37])
def test_the_gate_is_the_usual_one(width):
    hidden, weight = numbers(50, 2 * width) * 30, numbers(50)
    hidden[:, 0] = torch.linspace(-120, 120, 50)
    gate, up = hidden.double().chunk(2, -1)
    expected = torch.nn.functional.silu(gate) * up * weight.double().unsqueeze(-1)
    assert torch.allclose(swiglu(hidden, weight).double(), expected, rtol=1e-6, atol=1e-33)


@pytest.mark.parametrize(("groups", "picks"), [(1, 1), (1, 5), (4, 1), (4, 2)])
def test_selected_experts_are_the_usual_ones(groups, picks):
    logits = torch.randint(6, (200, 32), generator=GENERATOR).float()  # with many ties
    logits[0, 3] = logits[1, 20] = torch.nan
    logits[2] = -torch.inf
    assert torch.equal(select(logits, groups, groups * picks), select_experts(logits, groups, groups * picks))


def test_a_library_is_compiled_once_and_its_absence_is_reported(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    load = library.library.__wrapped__
    assert load() is not None
    (built,) = (tmp_path / "octavo").iterdir()
    time = built.stat().st_mtime_ns
    assert load() is not None
    assert built.stat().st_mtime_ns == time
    monkeypatch.setenv("CC", "compiler-that-is-missing")
    with caplog.at_level(logging.WARNING):
        assert load() is None
    assert "compiler-that-is-missing" in caplog.text
    for compiler in ("false", "cc 'open"):
        monkeypatch.setenv("CC", compiler)
        assert load() is None
    monkeypatch.setenv("CC", "")
    assert load() is not None


def test_a_library_that_others_may_write_is_not_loaded(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    load = library.library.__wrapped__
    assert load() is not None
    (built,) = (tmp_path / "octavo").iterdir()
    assert built.stat().st_mode & 0o022 == 0
    good = built.read_bytes()
    built.unlink()  # a file of its own: the one that is loaded stays as it is
    built.write_bytes(b"not a library")
    built.chmod(0o777)
    assert load() is not None
    assert built.read_bytes() == good
    assert built.stat().st_mode & 0o022 == 0


def test_a_user_without_a_home_computes_with_torch(monkeypatch, caplog):
    def homeless(path):
        raise RuntimeError("there is no home directory")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(library.Path, "expanduser", homeless)
    assert library.library.__wrapped__() is None
    assert "XDG_CACHE_HOME" in caplog.text


def test_numbers_of_experts_may_be_of_32_bits():
    x, first, second = numbers(5, 8), numbers(4, 8, 6), numbers(4, 3, 8)
    ids, weights = torch.randint(4, (5, 2), generator=GENERATOR), numbers(5, 2)
    assert torch.equal(mixture(x, ids.int(), weights, first, second), mixture(x, ids, weights, first, second))


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path, monkeypatch):
    (tmp_path / "octavo").write_text("a file")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = library.library.__wrapped__()
    assert found is not None


@pytest.mark.parametrize(("shared", "width"), [(1, 64), (2, 70), (3, 8)])
def test_queries_see_the_first_keys_of_their_pages(shared, width):
    page, slots, heads, tokens = 5, 9, 2, 4
    q, k, v = numbers(tokens, heads * shared, width), numbers(8, heads, width), numbers(8, heads, width)
    keys, values = (torch.full((slots, heads, page, width), torch.nan) for _ in range(2))
    order = [7, 2]  # slots of the one request's pages
    place = torch.tensor(
        [[(order[at // page] * heads + head) * page + at % page for head in range(2)] for at in range(8)]
    )
    qkv = torch.cat([numbers(8, 3), v.flatten(1)], 1)
    store(k, qkv[:, 3:].unflatten(1, (heads, width)), place, keys, values)
    pages = torch.tensor([8, *order]) * keys.stride(0)
    seen = torch.tensor([8, 1, 5, 6])
    layout = keys, values, pages, torch.ones(tokens, dtype=torch.int64), seen, page, (keys.stride(1), width)
    found = attend(q, *layout)
    for token, count in enumerate(seen.tolist()):
        for head in range(heads * shared):
            a, b = (x[:count, head // shared].double() for x in (k, v))
            weights = torch.softmax(a @ q[token, head].double() * width**-0.5, 0)
            assert relative(found[token, head], weights @ b) < 1e-6
    assert torch.equal(attend(q[2:3], *layout[:3], layout[3][:1], seen[2:3], *layout[5:])[0], found[2])
