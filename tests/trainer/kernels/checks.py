"""Each Triton kernel against plain torch on a given device: CUDA, or a CPU in Triton's interpreter.

TRITON_INTERPRET=1 python -m tests.trainer.kernels.checks [CHECK ...]     prints which failed and how, as JSON
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from parallel.dispatch.base import RowOrder
from trainer.config.model import ModelConfig
from trainer.kernels.choose import make_ops
from trainer.model.experts.choose import choose_backend
from trainer.model.experts.fused_grouped_mm import FusedSwiGLU
from trainer.model.moe import MoE
from trainer.model.numerics import router_weights, select_experts
from trainer.model.ops import TORCH, Ops

Device = str
BF16, FP32 = torch.bfloat16, torch.float32
INF, NAN = float("inf"), float("nan")


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def outputs(function: Callable[..., Tensor], inputs: list[Tensor], seed: int = 1) -> list[Tensor]:
    """The value and the gradient of each input, for a random gradient of the value."""
    leaves = [t.detach().requires_grad_() for t in inputs]
    y = function(*leaves)
    dy = randn(*y.shape, seed=seed).to(y)
    return [y.detach(), *torch.autograd.grad(y, leaves, dy)]


def by_both(run: Callable[..., Any], *args: Any) -> tuple[Any, Any]:
    """The results of `run(ops, *args)` with Triton's operations and with torch's."""
    return run(make_ops("triton"), *args), run(TORCH, *args)


def near(found: Sequence[Tensor], expected: Sequence[Tensor], narrow: float = 0.0) -> None:
    """Equal but for the rounding of a few fp32 operations, and one in bf16. `narrow`: the atol of bf16."""
    for a, b in zip(found, expected, strict=True):
        rtol, atol = (2**-7, narrow) if a.dtype == BF16 else (1e-5, 1e-5)
        torch.testing.assert_close(a, b, rtol=rtol, atol=atol, equal_nan=True)


def same(found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    for a, b in zip(found, expected, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        bytes_a, bytes_b = (t.flatten().view(torch.uint8) for t in (a, b))
        assert torch.equal(bytes_a, bytes_b), f"{(bytes_a != bytes_b).sum()} bytes differ"


def swiglu(device: Device, hidden_dtype: torch.dtype, weight_dtype: torch.dtype) -> None:
    for rows, width in ((13, 37), (3, 600), (1, 1), (5, 512), (0, 8)):
        hidden = (3 * randn(rows, 2 * width)).to(device, hidden_dtype)
        weight = randn(rows, seed=2).abs().to(device, weight_dtype)
        weight[1:2] = 0
        inputs = [hidden, weight]
        near(*by_both(lambda ops, leaves: outputs(ops.weighted_swiglu, leaves), inputs), narrow=1e-6)
        dy = randn(rows, width, seed=3).to(hidden)
        near(*by_both(lambda ops, *given: ops.swiglu_gradients(*given), *inputs, dy), narrow=1e-6)
    # a gradient and rows that are not dense
    hidden, weight = randn(4, 3 * 16).to(device, hidden_dtype)[:, 8:24], randn(8).to(device, weight_dtype)[::2]
    near(*by_both(lambda ops: outputs(lambda h, w: ops.weighted_swiglu(h, w).t(), [hidden, weight])), narrow=1e-6)


def swiglu_extremes(device: Device) -> None:
    extremes = torch.tensor([INF, -INF, NAN, 0.0, 100.0, -100.0, 1e30, -1e30])
    hidden = torch.cartesian_prod(extremes, extremes).to(device)
    near(*by_both(lambda ops: outputs(ops.weighted_swiglu, [hidden, torch.ones(64, device=device)])))


def routes() -> dict[str, tuple[Tensor, int]]:
    def ids_of(tokens: int, k: int, experts: int) -> Tensor:
        return randn(tokens, experts, seed=tokens).argsort(dim=-1)[:, :k]

    return {
        "spread over fewer than a block": (ids_of(9, 3, 8), 8),
        "several blocks, the last one short": (ids_of(150, 8, 64), 64),
        "experts without rows": (ids_of(20, 2, 3) * 3 + 1, 10),
        "all to one": (torch.full((300, 1), 2), 4),
        "full tiles": (torch.arange(4).repeat_interleave(128).view(-1, 1), 4),
        "as many experts as ids": (torch.arange(6).view(3, 2), 6),
        "one expert": (torch.zeros(7, 1, dtype=torch.int64), 1),
        "no tokens": (torch.zeros(0, 2, dtype=torch.int64), 3),
    }


def order(device: Device) -> None:
    """Bitwise, so also stable: torch's sort is."""
    from trainer.kernels import triton_order

    at_once = triton_order.SCANNED
    for ids, experts in routes().values():
        for align, triton_order.SCANNED in ((1, at_once), (16, 2)):  # 2: the scan takes several turns
            found, expected = by_both(
                lambda ops, *given: ops.pad_order(*given), RowOrder(ids.to(device), experts), align
            )
            assert type(found) is not type(expected)
            assert found.rows == expected.rows
            names = ("token_of_row", "slot_of_row", "row_of_slot", "offsets")
            same([getattr(found, n) for n in names], [getattr(expected, n) for n in names])
    triton_order.SCANNED = at_once


def order_of_unknown_ids(device: Device) -> None:
    """A replayed id that is out of range counts as the nearest valid one, so that every index stays within the rows."""
    ids, experts = torch.randint(-3, 9, (150, 2), generator=torch.Generator().manual_seed(0)), 6
    ids[0, 0], ids[1, 0] = 2**32 + 1, -(2**40)
    pad_order = make_ops("triton").pad_order
    found, known = (pad_order(RowOrder(i.to(device), experts), 16) for i in (ids, ids.clamp(0, experts - 1)))
    same(*([getattr(o, n) for n in ("token_of_row", "slot_of_row", "row_of_slot", "offsets")] for o in (found, known)))


def gathers(ops: Ops, order: RowOrder, x: Tensor, weights: Tensor) -> list[Tensor]:
    padded = ops.pad_order(order, 4)
    spread = outputs(padded.gather, [x])
    return [
        *spread,
        padded.gather_weights(weights),
        *outputs(padded.gather_weights, [weights]),
        *outputs(padded.combine, [spread[0]]),
    ]


def rows(device: Device, dtype: torch.dtype) -> None:
    for name, width in (("spread over fewer than a block", 21), ("experts without rows", 1100)):
        ids, experts = routes()[name]
        order = RowOrder(ids.to(device), experts)
        # Parts of larger tensors, where an index of -1 would find something.
        x, weights = (randn(len(ids) + 1, n).to(device)[1:] for n in (width, ids.shape[1]))
        found, expected = by_both(gathers, order, x.to(dtype), weights)
        if dtype == FP32:
            same(found, expected)
        else:  # torch may add in another precision than fp32 and round once
            near(found, expected, narrow=2**-6)


def experts(device: Device, dtype: torch.dtype) -> None:
    """Everything around the grouped GEMM, which needs rows of 16 bytes."""
    ids, count = routes()["experts without rows"]
    order, (tokens, k) = RowOrder(ids.to(device), count), ids.shape
    sizes = ((tokens, 16), (tokens, k), (count, 2, 24, 16), (count, 16, 24))
    inputs = [randn(*size, seed=n).to(device, FP32 if n == 1 else dtype) for n, size in enumerate(sizes)]
    found, expected = by_both(lambda ops: outputs(lambda *leaves: FusedSwiGLU.apply(*leaves, order, ops), inputs))
    near(found, expected, narrow=2**-4)


def block(device: Device) -> None:
    """The whole mixture-of-experts block as a model calls it, with ids from a rollout too."""
    sizes = {"vocab_size": 8, "hidden_size": 16, "num_layers": 1, "num_heads": 1, "num_kv_heads": 1, "head_dim": 8}
    cfg = ModelConfig(**sizes, num_experts=8, expert_width=24, router_groups=2, experts_per_token=4)
    ids = torch.tensor([[1, 0, 7, 4]], device=device).expand(6, 4)

    def run(ops: Ops) -> list[Tensor]:
        moe = MoE(cfg, ops, choose_backend("fp32", "grouped_mm", ops)()).to(device)
        values = [randn(*p.shape, seed=n).to(device) / 4 for n, p in enumerate(moe.parameters())]

        def both(x: Tensor, *values: Tensor) -> Tensor:
            named = dict(zip(dict(moe.named_parameters()), values, strict=True))
            results = [torch.func.functional_call(moe, named, (x, given)) for given in (None, ids)]
            return torch.cat([y + stats.probabilities.square().sum() for y, stats in results])

        return outputs(both, [randn(6, 16, seed=9).to(device), *values])

    near(*by_both(run))


def routing(device: Device, gradient: str, temperature: float) -> None:
    route = make_ops("triton").route
    for experts, groups, k in ((16, 4, 4), (15, 3, 6), (24, 1, 5), (512, 8, 8), (64, 8, 64)):
        z = (randn(14, experts) * 4).round() / 4  # ties
        z[1], z[2], z[2, 1] = 0.0, -0.0, 0.0
        z[3], z[4, 3], z[5, 2], z[6] = -INF, NAN, INF, NAN
        z[7, 5:8], z[8], z[9], z[10, 0], z[11, 0] = NAN, 3e38, -3e38, -NAN, -INF
        z = z.to(device)
        expected_ids = select_experts(z, groups, k)

        def weights_of(logits: Tensor, ids: Tensor = expected_ids, options: tuple = (groups, k)) -> Tensor:
            found_ids, weights = route(logits, *options, gradient, temperature)
            assert torch.equal(found_ids, ids)
            return weights

        near(
            outputs(weights_of, [z]),
            outputs(lambda z, i=expected_ids: router_weights(z, i, gradient, temperature), [z]),
        )
    ids, weights = route(torch.zeros(0, 8, device=device), 2, 4, gradient)
    assert ids.shape == weights.shape == (0, 4)


def payload(device: Device, dtype: torch.dtype) -> None:
    for tokens, hidden in ((3, 128), (5, 300), (6, 77), (17, 1), (4, 2600), (2, 2044), (0, 128)):
        x = (randn(tokens, hidden) * randn(tokens, 1, seed=3).mul(20).exp()).to(dtype)
        x.view(-1)[::97] = 0
        if hidden == 300:
            x[0, :128], x[1, 5], x[2, 3], x[3, 0], x[4, :128] = 0, INF, NAN, -INF, 1e-45
            x[0, 128:256] = torch.linspace(0, 448, 128)  # every code and the middles between some
            x[1, 6:8], x[4, 128:] = torch.tensor([500.0, -500.0]), torch.linspace(-448, 447, 172)
        packed, expected = by_both(lambda ops, given: ops.fp8_payload().pack(given), x.to(device))
        same([packed], [expected])
        beside = torch.cat([packed, packed[:, :3]], dim=1)[:, : packed.shape[1]]  # as it comes out of a gather
        for wanted in (FP32, BF16):
            unpack = lambda ops, *given: ops.fp8_payload().unpack(*given)  # noqa: E731
            values, exact = by_both(unpack, beside, hidden, wanted)
            same([values.nan_to_num(7.0)], [exact.nan_to_num(7.0)])


CHECKS: dict[str, Callable[[Device], None]] = {
    "swiglu, fp32": lambda device: swiglu(device, FP32, FP32),
    "swiglu, bf16 with fp32 weights": lambda device: swiglu(device, BF16, FP32),
    "swiglu, bf16": lambda device: swiglu(device, BF16, BF16),
    "swiglu, infinities and NaN": swiglu_extremes,
    "index build": order,
    "index build, ids out of range": order_of_unknown_ids,
    "gathers and sums, fp32": lambda device: rows(device, FP32),
    "gathers and sums, bf16": lambda device: rows(device, BF16),
    "experts, fp32": lambda device: experts(device, FP32),
    "experts, bf16": lambda device: experts(device, BF16),
    "block": block,
    "router, straight-through gradient": lambda device: routing(device, "ste", 0.7),
    "router, conventional gradient": lambda device: routing(device, "conventional", 1.0),
    "payload, fp32": lambda device: payload(device, FP32),
    "payload, bf16": lambda device: payload(device, BF16),
}


def round_as_the_device_does() -> None:
    """Triton's interpreter cuts numbers off where it narrows them to bf16 or e4m3; a GPU rounds to the nearest, ties
    to even, and so does torch."""
    import numpy as np
    import triton.language as tl
    from triton.runtime import interpreter

    dtypes = {tl.float32: FP32, tl.bfloat16: BF16, tl.float8e4nv: torch.float8_e4m3fn}
    whole = {1: torch.uint8, 2: torch.uint16, 4: torch.uint32}

    def convert(data: Any, source: Any, target: Any, rounding: Any) -> Any:
        numbers = torch.from_numpy(np.ascontiguousarray(data)).view(dtypes[source]).to(dtypes[target])
        return numbers.view(whole[numbers.itemsize]).numpy()

    assert hasattr(interpreter, "_convert_float")
    interpreter._convert_float = convert


if __name__ == "__main__":
    assert not any(name.startswith("trainer.kernels.triton") for name in sys.modules), "imported before it is asked for"
    round_as_the_device_does()
    failures = {}
    for check in sys.argv[1:] or CHECKS:
        try:
            CHECKS[check]("cpu")
        except Exception:
            failures[check] = traceback.format_exc()
    json.dump(failures, sys.stdout)
