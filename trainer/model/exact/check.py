"""A check that this machine's products by blocks give a row the same bits wherever it is.

Libraries of matrix products promise it nowhere. On a CPU with one thread it has held for every shape tried; with
several threads small products may be cut between threads in ways that depend on the number of blocks.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from trainer.model.decoder import Decoder
from trainer.model.exact.attention import queries_of_block
from trainer.model.exact.blocks import EXPERT_ROWS, KEYS, ROWS, block_mm

BLOCKS = 5


def dependent_products(model: Decoder) -> list[str]:
    """The shapes of products of `model`, as "rows x inner x columns", in which a row's bits depend on its place, on
    its neighbours or on the number of blocks. Empty where exact arithmetic is exact."""
    weight = next(model.parameters())
    wide_shapes, shapes = set(_wide_shapes(model)), set(_shapes(model))
    return [
        " x ".join(map(str, shape))
        for dtype, group in ((torch.float32, wide_shapes), (model.activations, shapes))
        for shape in sorted(group)
        if _depends(*shape, dtype, weight.device)
    ]


def dependence_warning(model: Decoder) -> str | None:
    """The warning for a model whose answers may change with what runs beside them; None where they do not."""
    if not (dependent := dependent_products(model)):
        return None
    return (
        f"products of {', '.join(dependent[:3])} depend on the batch here: an answer may change with what runs beside "
        "it; on a CPU OMP_NUM_THREADS=1 avoids it"
    )


def _wide_shapes(model: Decoder) -> Iterator[tuple[int, int, int]]:
    """Products in fp32 whatever the compute dtype."""
    cfg = model.cfg
    rows = queries_of_block(cfg.num_heads // cfg.num_kv_heads) * (cfg.num_heads // cfg.num_kv_heads)
    yield from ((ROWS, cfg.hidden_size, cfg.num_experts), (ROWS, cfg.hidden_size, cfg.vocab_size))
    yield from ((rows, cfg.head_dim, KEYS), (rows, KEYS, cfg.head_dim))
    if cfg.positions == "fope":
        yield ROWS, cfg.fope_frequencies(), cfg.num_kv_heads * cfg.fope_frequencies()


def _shapes(model: Decoder) -> Iterator[tuple[int, int, int]]:
    cfg, heads = model.cfg, model.cfg.num_heads * model.cfg.head_dim
    yield from ((ROWS, cfg.hidden_size, heads + 2 * cfg.num_kv_heads * cfg.head_dim), (ROWS, heads, cfg.hidden_size))
    yield from (
        (EXPERT_ROWS, cfg.hidden_size, 2 * cfg.expert_width), (EXPERT_ROWS, cfg.expert_width, cfg.hidden_size)
    )  # fmt: skip


@torch.no_grad()
def _depends(rows: int, inner: int, columns: int, dtype: torch.dtype, device: torch.device) -> bool:
    generator = torch.Generator().manual_seed(rows + inner + columns)

    def numbers(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    x, matrix = numbers(BLOCKS * rows, inner), numbers(columns, inner).t()
    whole = block_mm(x, matrix, rows)
    moved = block_mm(x.roll(1, 0), matrix, rows).roll(-1, 0)
    alone = torch.cat([block_mm(row, matrix, rows) for row in x[: 2 * rows].split(1)])
    return not (torch.equal(moved, whole) and torch.equal(alone, whole[: 2 * rows]))
