"""The matrices inside a model's layers, which Muon orthogonalises."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from trainer.model.attention import Attention
from trainer.model.experts.module import Experts


def hidden_matrices(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Map the name of each parameter that Muon updates to the rows of each matrix that it holds, one below the other.

    Queries, keys and values are three matrices, each of all its heads: they are maps of their own that one product
    computes, and heads of one map share its scale. Each expert has three: gate, up and down, as the last two dimensions
    of its parameters. All other weights are left out: norms, and the maps from and to tokens and experts (embedding, LM
    head, router), whose rows are looked up or compared one by one.
    """
    rows = {id(weight): heights for module in model.modules() for weight, heights in _matrices(module)}
    return {name: rows[id(weight)] for name, weight in model.named_parameters() if id(weight) in rows}


def _matrices(module: nn.Module) -> Iterator[tuple[Tensor, tuple[int, ...]]]:
    if isinstance(module, Attention):
        queries, keys = module.heads * module.head_dim, module.kv_heads * module.head_dim
        yield module.qkv, (queries, keys, keys)
        yield module.out, (module.out.shape[0],)
    elif isinstance(module, Experts):
        yield module.w13, (module.w13.shape[-2],)
        yield module.w2, (module.w2.shape[-2],)
