"""Exact arithmetic in fp32 on a CPU, in C (`products.c`, `experts.c`, `attention.c`).

A result's bits depend on nothing but its own row: neither on the rows beside it, nor on the number of threads, nor on
how a matrix is stored. Sums of products are taken in the order of the inner index. Few rows take the time of reading
the matrix, which torch's products of few rows take twice.

All functions work outside autograd.

Legend: T tokens or rows · M inner dimension · N columns · E experts · K experts per token · R rows of all experts ·
H hidden size · I expert width · h query heads · n kv heads · d head dimension · P pages.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from trainer.model.exact.library import library


def compiles(x: Tensor) -> bool:
    """True where products of `x` are compiled ones."""
    return x.dtype is torch.float32 and x.device.type == "cpu" and type(x) is Tensor and library() is not None


@torch.compiler.disable
def product(x: Tensor, matrix: Tensor) -> Tensor:
    """x [T, M] @ matrix [M, N] -> [T, N], both fp32 on the CPU; outside autograd. The matrix may have any strides, and
    one whose columns are adjacent is not copied."""
    x = x if x.stride(1) == 1 else x.contiguous()
    (rows, inner), columns = x.shape, matrix.shape[1]
    assert (matrix.dtype, matrix.device, len(matrix)) == (x.dtype, x.device, inner)
    y = x.new_empty(rows, columns)
    strides = x.stride(0), matrix.data_ptr(), *matrix.stride()
    _check(_library().octavo_rows(x.data_ptr(), *strides, y.data_ptr(), rows, inner, columns))
    return y


@torch.compiler.disable
def expert_products(x: Tensor, matrices: Tensor, ends: Tensor, index: Tensor | None = None) -> Tensor:
    """Each expert's rows times its matrix, all fp32 on the CPU; outside autograd.

    Args: x: [R, M], or with `index` [R] int64 any rows: index[r] is the one at place r. matrices: [E, M, N].
        ends: [E] int32, the end of each expert's rows.
    Returns: [R, N]; rows behind ends[-1] hold what the memory held.
    """
    x = x if x.stride(1) == 1 else x.contiguous()
    experts, inner, columns = matrices.shape
    assert (matrices.dtype, matrices.device, x.shape[1]) == (x.dtype, x.device, inner)
    assert ends.dtype == torch.int32
    assert index is None or index.dtype == torch.int64
    y = x.new_empty(len(x) if index is None else len(index), columns)
    chosen = None if index is None else index.data_ptr()
    given = x.data_ptr(), x.stride(0), chosen, matrices.data_ptr(), *matrices.stride()
    _check(_library().octavo_experts(*given, y.data_ptr(), ends.data_ptr(), experts, inner, columns))
    return y


@torch.compiler.disable
def swiglu(hidden: Tensor, weight: Tensor) -> Tensor:
    """silu(gate) * up * weight. hidden: [R, 2I], gate before up; weight: [R] -> [R, I]."""
    hidden, weight = hidden.contiguous(), weight.contiguous()
    rows, width = len(hidden), hidden.shape[1] // 2
    y = hidden.new_empty(rows, width)
    _library().octavo_swiglu(hidden.data_ptr(), weight.data_ptr(), None, y.data_ptr(), rows, width)
    return y


@torch.compiler.disable
def select(logits: Tensor, groups: int, experts_per_token: int) -> Tensor:
    """As `numerics.select_experts`: [T, E] -> [T, K] int64."""
    logits = logits.contiguous()
    tokens, experts = logits.shape
    ids = logits.new_empty(tokens, experts_per_token, dtype=torch.int64)
    sizes = tokens, groups, experts // groups, experts_per_token // groups
    _library().octavo_select(logits.data_ptr(), *sizes, ids.data_ptr())
    return ids


def mixture(x: Tensor, ids: Tensor, weights: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """The sum over each token's experts, in the order of its slots, with the bits of the functions above.

    Args: x: [T, H]. ids: [T, K] of integers; weights: [T, K]. first: [E, H, 2I]; second: [E, I, H].
    Returns: [T, H].
    """
    x = x if x.stride(1) == 1 else x.contiguous()
    ids, weights, y = ids.to(torch.int64).contiguous(), weights.contiguous(), x.new_empty(x.shape)
    assert weights.dtype == first.dtype == second.dtype == x.dtype
    assert first.shape[1] == x.shape[1]
    strides = [(ctypes.c_int64 * 3)(*matrices.stride()) for matrices in (first, second)]
    given = x.data_ptr(), x.stride(0), ids.data_ptr(), weights.data_ptr()
    matrices = first.data_ptr(), strides[0], second.data_ptr(), strides[1]
    sizes = *ids.shape, len(first), x.shape[1], second.shape[1]
    _check(_library().octavo_mixture(*given, *matrices, y.data_ptr(), *sizes))
    return y


def store(k: Tensor, v: Tensor, rows: Tensor, keys: Tensor, values: Tensor) -> None:
    """Copy the keys and values of tokens to their places.

    Args: k, v: [T, n, d], the heads of a token adjacent. rows: [T, n] int64, of each head among the rows [., d] of
        `keys` and `values`, which are contiguous.
    """
    assert k.dtype == v.dtype == keys.dtype == values.dtype
    assert rows.dtype == torch.int64
    assert rows.is_contiguous()
    assert k.shape[2:] == v.shape[2:]
    assert k.stride()[1:] == v.stride()[1:] == (k.shape[2], 1)
    given = k.data_ptr(), k.stride(0), v.data_ptr(), v.stride(0), rows.data_ptr()
    _library().octavo_store(*given, keys.data_ptr(), values.data_ptr(), *k.shape)


def attend(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    pages: Tensor,
    table: Tensor,
    seen: Tensor,
    page: int,
    strides: tuple[int, int],
) -> Tensor:
    """Attention of queries that each see the first keys of a list of pages.

    Args:
        q: [T, h, d]. keys, values: the memory that pages are in.
        pages: [P] int64, the numbers of their first elements in that memory. page: number of keys in one.
        table: [T] int64, the number of each query's first page. seen: [T] int64, how many keys it sees.
        strides: elements from one kv head's keys to the next one's, and from one key to the next.
    Returns: [T, h, d].
    """
    q = q.contiguous()
    (tokens, heads, width), y = q.shape, torch.empty_like(q)
    kv_heads = keys.shape[1]
    given = (x.data_ptr() for x in (q, keys, values, pages, table, seen, y))
    sizes = tokens, kv_heads, heads // kv_heads, width, page, *strides
    _check(_library().octavo_attend(*given, *sizes))
    return y


def _library() -> ctypes.CDLL:
    found = library()
    assert found is not None
    return found


def _check(failed: int) -> None:
    if failed:
        raise MemoryError("exact arithmetic has no memory left for its scratch")
