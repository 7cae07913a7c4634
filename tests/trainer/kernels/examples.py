"""A call of each kernel at the sizes of one expert-parallel rank of the 1T model, to be timed under torch and Triton.

for example in EXAMPLES:
    call = example.build(tokens, device)
    for name in ("torch", "triton"):
        call(make_ops(name))  # forward, and backward where `example.name` has it
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from parallel.dispatch.base import RowOrder
from parallel.dispatch.padding import PaddedOrder, padded_rows
from trainer.kernels.choose import make_ops
from trainer.model.ops import TORCH, Ops

H, WIDTH, E, ALL, G, K, ALIGN = 4096, 1536, 64, 512, 8, 8, 128
Call = Callable[[Ops], Any]


@dataclass(frozen=True)
class Example:
    """name; build(tokens, device) -> a call with an `Ops`; bytes(tokens): the least that one call can move."""

    name: str
    build: Callable[[int, torch.device], Call]
    bytes: Callable[[int], int]


def rows_of(tokens: int) -> int:
    return padded_rows(tokens * K, E, ALIGN)


def _ids(tokens: int, device: torch.device, experts: int = E) -> Tensor:
    """One expert of each of 8 groups a token, as the router gives them."""
    group = torch.arange(0, experts, experts // G, device=device)
    return torch.randint(experts // G, (tokens, G), device=device) + group


def _hidden(tokens: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    rows = rows_of(tokens)
    hidden, dy = (torch.randn(rows, n * WIDTH, device=device, dtype=torch.bfloat16) for n in (2, 1))
    return hidden, torch.rand(rows, device=device), dy


def _swiglu_forward(tokens: int, device: torch.device) -> Call:
    hidden, weight, _ = _hidden(tokens, device)
    return lambda ops: ops.weighted_swiglu(hidden, weight)


def _swiglu_backward(tokens: int, device: torch.device) -> Call:
    arguments = _hidden(tokens, device)
    return lambda ops: ops.swiglu_gradients(*arguments)


def _order(tokens: int, device: torch.device) -> Call:
    ids = _ids(tokens, device)
    return lambda ops: ops.pad_order(RowOrder(ids, E), ALIGN)


def _gather(tokens: int, device: torch.device) -> Call:
    ids, x = _ids(tokens, device), torch.randn(tokens, H, device=device, dtype=torch.bfloat16)
    order = _prepared_orders(ids)
    return lambda ops: order[type(ops)].gather(x)


def _sum(tokens: int, device: torch.device) -> Call:
    ids, y = _ids(tokens, device), torch.randn(rows_of(tokens), H, device=device, dtype=torch.bfloat16)
    order = _prepared_orders(ids)
    return lambda ops: order[type(ops)].combine(y)


def _prepared_orders(ids: Tensor) -> dict[type[Ops], PaddedOrder]:
    """The padded order of either implementation, built before anything is timed."""
    available = ("torch", "triton") if ids.is_cuda else ("torch",)
    return {type(ops): ops.pad_order(RowOrder(ids, E), ALIGN) for ops in map(make_ops, available)}


def _router_forward(tokens: int, device: torch.device) -> Call:
    logits = torch.randn(tokens, ALL, device=device)
    return lambda ops: ops.route(logits, G, K, "ste")


def _router_both(tokens: int, device: torch.device) -> Call:
    logits, s = torch.randn(tokens, ALL, device=device).requires_grad_(), torch.randn(tokens, K, device=device)
    return lambda ops: torch.autograd.grad(ops.route(logits, G, K, "ste")[1], logits, s)


def _pack(tokens: int, device: torch.device) -> Call:
    x = torch.randn(tokens, H, device=device, dtype=torch.bfloat16)
    return lambda ops: ops.fp8_payload().pack(x)


def _unpack(tokens: int, device: torch.device) -> Call:
    packed = TORCH.fp8_payload().pack(torch.randn(tokens, H, device=device, dtype=torch.bfloat16))
    return lambda ops: ops.fp8_payload().unpack(packed, H, torch.bfloat16)


EXAMPLES = [
    Example("swiglu, forward", _swiglu_forward, lambda t: rows_of(t) * (6 * WIDTH + 4)),
    Example("swiglu, backward", _swiglu_backward, lambda t: rows_of(t) * (12 * WIDTH + 8)),
    Example("index build", _order, lambda t: t * K * 8 * 3 + rows_of(t) * 16),
    Example("gather", _gather, lambda t: t * 2 * H + rows_of(t) * (2 * H + 8)),
    Example("sum of each token's rows", _sum, lambda t: t * K * (2 * H + 8) + t * 2 * H),
    Example("router, forward", _router_forward, lambda t: t * (4 * ALL + 12 * K)),
    Example("router, forward and backward", _router_both, lambda t: t * (12 * ALL + 24 * K)),
    Example("FP8 payload, pack", _pack, lambda t: t * (3 * H + H // 128)),
    Example("FP8 payload, unpack", _unpack, lambda t: t * (3 * H + H // 128)),
]
