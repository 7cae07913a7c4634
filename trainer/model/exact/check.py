"""A check that this machine's products by blocks give a row the same bits wherever it is.

Libraries of matrix products promise it nowhere. On a CPU with one thread it has held in fp32 for every shape tried;
with several threads small products may be cut between threads in ways that depend on the number of blocks. In bf16,
torch uses a CPU's own instructions for more than 4096 multiplications in all blocks together: fewer in one block
depend on the number of blocks there. Only tiny models have such products.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from trainer.model.decoder import Decoder
from trainer.model.exact.attention import queries_of_block
from trainer.model.exact.blocks import EXPERT_ROWS, KEYS, ROWS, block_mm
from trainer.model.exact.compiled import compiles

BLOCKS = 5


def dependent_products(model: Decoder) -> list[str]:
    """The shapes of products of `model`, as "rows x inner x columns", in which a row's bits depend on its place, on
    its neighbours or on the number of blocks. Empty where exact arithmetic is exact."""
    weight = next(model.parameters())

    def compiled(dtype: torch.dtype) -> bool:
        return compiles(torch.empty(0, dtype=dtype, device=weight.device))

    groups = []  # products of torch: compiled ones depend on nothing
    if not compiled(model.activations):
        groups += [(torch.float32, _attention_shapes(model)), (model.activations, _shapes(model))]
    if not compiled(torch.float32):
        groups.append((torch.float32, _wide_shapes(model)))
    found = [
        " x ".join(map(str, shape[:3]))
        for dtype, shapes in groups
        for shape in sorted(set(shapes))
        if _depends(*shape, dtype, weight.device)
    ]
    return list(dict.fromkeys(found))


def dependence_warning(model: Decoder) -> str | None:
    """The warning for a model whose answers may change with what runs beside them; None where they do not."""
    if not (dependent := dependent_products(model)):
        return None
    return (
        f"products of {', '.join(dependent[:3])} depend on the batch here: an answer may change with what runs beside "
        "it; on a CPU in fp32 OMP_NUM_THREADS=1 avoids it"
    )


# Each shape: rows, inner, columns, and whether blocks also have a matrix each in one product.


def _attention_shapes(model: Decoder) -> Iterator[tuple[int, int, int, bool]]:
    """Products of attention, in fp32 whatever the compute dtype."""
    cfg = model.cfg
    rows = queries_of_block(cfg.num_heads // cfg.num_kv_heads) * (cfg.num_heads // cfg.num_kv_heads)
    yield from ((rows, cfg.head_dim, KEYS, True), (rows, KEYS, cfg.head_dim, True))


def _wide_shapes(model: Decoder) -> Iterator[tuple[int, int, int, bool]]:
    """Other products in fp32 whatever the compute dtype."""
    cfg = model.cfg
    yield from ((ROWS, cfg.hidden_size, cfg.num_experts, False), (ROWS, cfg.hidden_size, cfg.vocab_size, False))
    if cfg.positions == "fope":
        yield ROWS, cfg.fope_frequencies(), cfg.num_kv_heads * cfg.fope_frequencies(), False


def _shapes(model: Decoder) -> Iterator[tuple[int, int, int, bool]]:
    cfg, heads = model.cfg, model.cfg.num_heads * model.cfg.head_dim
    yield ROWS, cfg.hidden_size, heads + 2 * cfg.num_kv_heads * cfg.head_dim, False
    yield ROWS, heads, cfg.hidden_size, False
    yield EXPERT_ROWS, cfg.hidden_size, 2 * cfg.expert_width, True
    yield EXPERT_ROWS, cfg.expert_width, cfg.hidden_size, True


@torch.no_grad()
def _depends(rows: int, inner: int, columns: int, several: bool, dtype: torch.dtype, device: torch.device) -> bool:
    generator = torch.Generator().manual_seed(rows + inner + columns)
    order = torch.randperm(inner, generator=generator)

    def numbers(*shape: int, sign: int) -> Tensor:
        """Rows whose second half cancels the first, so that what remains of a product is how its sum was rounded: bf16
        would hide that of other numbers nearly always."""
        half = torch.randn(*shape, inner // 2, generator=generator)
        half = half * torch.exp2(torch.randint(-6, 7, half.shape, generator=generator))
        whole = torch.cat([half, sign * half, torch.zeros(*shape, inner % 2)], -1)
        return whole[..., order].to(device, dtype)

    x = numbers(BLOCKS * rows, sign=-1)
    matrices = numbers(BLOCKS if several else 1, columns, sign=1).mT
    whole = block_mm(x, matrices[0], rows)
    moved = block_mm(x.roll(1, 0), matrices[0], rows).roll(-1, 0)
    alone = torch.cat([block_mm(row, matrices[0], rows) for row in x[: 2 * rows].split(1)])
    if not (torch.equal(moved, whole) and torch.equal(alone, whole[: 2 * rows])):
        return True
    if not several:
        return False
    # As few rows of many experts are multiplied, and the pages of keys of many requests.
    blocks = x.view(BLOCKS, rows, inner)
    each = [block_mm(block, matrix, rows) for block, matrix in zip(blocks, matrices, strict=True)]
    return not torch.equal(torch.bmm(blocks, matrices), torch.stack(each))
