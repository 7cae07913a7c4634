"""Compiled products: values, and bits that do not depend on anything beside a row and its matrix."""

import logging

import pytest
import torch

from parallel.dispatch.base import RowOrder
from tests.trainer.model.tiny import relative
from trainer.model.exact import compiled
from trainer.model.exact.compiled import Order, expert_products, product

GENERATOR = torch.Generator().manual_seed(0)
SIZES = [(1, 1), (7, 5), (24, 61), (64, 64), (300, 200)]  # inner, columns

pytestmark = pytest.mark.skipif(compiled.library() is None, reason="there is no C compiler")


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


def test_the_order_is_that_of_a_stable_sort():
    ids = torch.randint(7, (50, 3), generator=GENERATOR)
    ids[ids == 5] = 2
    found, expected = Order.of(ids, 7), RowOrder(ids, 7)
    assert torch.equal(found.slot_of_row, expected.slot_of_row)
    assert torch.equal(found.row_of_slot, expected.row_of_slot)
    assert torch.equal(found.ends, expected.offsets)


def test_a_library_is_compiled_once_and_its_absence_is_reported(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    load = compiled.library.__wrapped__
    assert load() is not None
    (built,) = (tmp_path / "octavo").iterdir()
    time = built.stat().st_mtime_ns
    assert load() is not None
    assert built.stat().st_mtime_ns == time
    monkeypatch.setenv("CC", "compiler-that-is-missing")
    with caplog.at_level(logging.WARNING):
        assert load() is None
    assert "compiler-that-is-missing" in caplog.text
    monkeypatch.setenv("CC", "false")
    assert load() is None


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path, monkeypatch):
    (tmp_path / "octavo").write_text("a file")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = compiled.library.__wrapped__()
    assert found is not None
