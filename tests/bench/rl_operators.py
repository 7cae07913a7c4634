"""The table of docs/rl_servers.md: LMDeploy's operators beside Octavo's on equal bf16 inputs.

python -m tests.bench.rl_operators   3 CPU-seconds

Both sides run here in plain torch on a CPU, LMDeploy's as `tests/bench/lmdeploy_operators.py` restates them. "equal" is
the share of equal elements, "largest gap" the largest absolute difference.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from parallel.dispatch.base import sum_slots
from parallel.fp8 import dequantize_tiles, quantize_tiles
from tests.bench import lmdeploy_operators as theirs
from trainer.config.model import ModelConfig
from trainer.model.numerics import rms_norm, rotary, router_weights, select_experts
from trainer.model.rotary import Rotary

BF16 = torch.bfloat16
TILE = (128, 128)


class Sizes(NamedTuple):
    T: int = 256  # tokens
    H: int = 2048  # hidden size
    E: int = 512  # experts
    K: int = 8  # of a token
    G: int = 8  # router groups
    d: int = 128  # head dimension
    n: int = 8  # kv heads
    I: int = 256  # noqa: E741  expert width
    V: int = 8192  # vocabulary


class Row(NamedTuple):
    operator: str
    lmdeploy: str
    octavo: str
    equal: float
    gap: float
    remedy: str = ""


def rows(sizes: Sizes) -> Iterator[Row]:
    yield from _norms(sizes)
    yield from _router(sizes)
    yield from _positions(sizes)
    yield from _experts(sizes)
    yield from _head(sizes)
    yield from _quantisers(sizes)


def row(operator: str, found: Tensor, ours: Tensor, lmdeploy: str, octavo: str, remedy: str = "") -> Row:
    a, b = found.double(), ours.double()
    return Row(operator, lmdeploy, octavo, float((a == b).double().mean()), float((a - b).abs().max()), remedy)


def _normal(seed: int, *shape: int, std: float = 1.0) -> Tensor:
    """bf16."""
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * std).to(BF16)


def _norms(s: Sizes) -> Iterator[Row]:
    x, weight = _normal(1, s.T, s.H), (1 + 0.1 * _normal(2, s.H).float()).to(BF16)
    once = "fp32, one rounding at the end"
    yield row("RMSNorm", theirs.rms_norm(x, weight, 1e-6), rms_norm(x, weight, 1e-6), once, once)


def _router(s: Sizes) -> Iterator[Row]:
    x, gate = _normal(3, s.T, s.H), _normal(4, s.E, s.H, std=0.02)
    ours = x.float() @ gate.float().T
    logits = ours.to(BF16)  # a GEMM that accumulates in fp32 and rounds its result
    replay = "routes are replayed; weights keep the gap"
    yield row("router logits", logits, ours, "bf16", "fp32", replay)
    expected = select_experts(ours, s.G, s.K)
    _, ids = theirs.route(logits, s.G, s.K)
    yield row("experts, of these logits", ids, expected, "top-k of an fp32 softmax", "argmax of the logits", replay)
    _, ids = theirs.route(ours, s.G, s.K)
    yield row("experts, of equal logits", ids, expected, "top-k of an fp32 softmax", "argmax of the logits")
    weights = router_weights(ours, expected, "conventional")
    found = theirs.renormalise(torch.softmax(ours, -1).gather(-1, expected))
    over = "fp32 softmax over all, divided by the sum"
    yield row("weights, of equal logits and experts", found, weights, over, "fp32 softmax over the selected")
    found = theirs.renormalise(torch.softmax(logits, -1, dtype=torch.float32).gather(-1, expected))
    yield row(
        "weights, of own logits, experts replayed", found, weights, over, "fp32 softmax over the selected", replay
    )


def _positions(s: Sizes) -> Iterator[Row]:
    positions = torch.arange(0, s.T * 128, 128)
    frequencies = theirs.inverse_frequencies(10_000.0, s.d)
    base = {"hidden_size": s.n * s.d, "num_heads": s.n, "num_kv_heads": s.n, "head_dim": s.d, "max_position": 40_960}
    base |= {"vocab_size": 64, "num_layers": 1, "num_experts": 8, "experts_per_token": 8, "router_groups": 8}
    base |= {"expert_width": 128, "rope_theta": 10_000.0}
    plain = Rotary(ModelConfig(**base, positions="rope"))
    cos, sin = (table.flatten(1) for table in plain(positions, BF16))
    ours = torch.stack((cos, sin))
    full = torch.stack(theirs.rope_tables(positions, frequencies, torch.float32))
    table = torch.stack(theirs.rope_tables(positions, frequencies, BF16))
    rounded = "fp32 angles, tables rounded to bf16"
    yield row("RoPE tables, before rounding", full, ours, "fp32", "fp32")
    yield row("RoPE tables", table, ours, rounded, "fp32", "none in LMDeploy 0.18")
    fope = Rotary(ModelConfig(**base, positions="fope"))
    for at, coefficients in enumerate((fope.cos_coef, fope.sin_coef)):
        matrix = torch.eye(coefficients.shape[-1]) + 0.05 * _normal(5 + at, *coefficients.shape).float()
        coefficients.copy_(matrix)
    ours = torch.stack([table.squeeze(2) for table in fope(positions, BF16)])
    for name, dtype, said, remedy in (
        ("FoPE tables, before rounding", torch.float32, "fp32", ""),
        ("FoPE tables", BF16, rounded, "none in LMDeploy 0.18"),
    ):
        found = theirs.fope_tables(positions, frequencies, fope.cos_coef, fope.sin_coef, s.d // 2, dtype)
        yield row(name, torch.stack(found), ours, said, "fp32", remedy)
    x = _normal(7, s.T, s.n, s.d)
    found = theirs.rotate(x, *(table.unsqueeze(1) for table in (cos, sin)))
    expected = rotary(x, cos.unsqueeze(1), sin.unsqueeze(1))
    steps = "bf16: tables, both products, sum"
    yield row("rotation", found, expected, steps, "fp32, one rounding at the end", "none in LMDeploy 0.18")


def _experts(s: Sizes) -> Iterator[Row]:
    gate, up = _normal(8, s.T * s.K, s.I), _normal(9, s.T * s.K, s.I)
    activated = torch.nn.functional.silu(gate) * up
    said = "silu in fp32, rounded; product rounded"
    yield row("SwiGLU", theirs.gated(gate, up), activated, said, said)
    matrices = _normal(10, s.K, s.H, s.I, std=0.05)
    weights = torch.softmax(_normal(11, s.T, s.K).float(), -1)
    act = activated.view(s.T, s.K, s.I)

    def second(given: Tensor) -> Tensor:
        """[T, K, I] -> [T, K, H]: an fp32-accumulating GEMM, its result rounded."""
        return torch.einsum("tki,khi->tkh", given.float(), matrices.float()).to(BF16)

    slots = torch.arange(s.T * s.K).view(s.T, s.K)
    ours = sum_slots(second(act * weights.to(BF16).unsqueeze(-1)).flatten(0, 1), slots)
    yield row(
        "weighted sum of experts", theirs.combine(second(act), weights), ours,
        "weights after the second matrix", "weights before it", "none in LMDeploy 0.18",
    )  # fmt: skip


def _head(s: Sizes) -> Iterator[Row]:
    hidden, head = _normal(12, s.T, s.H), _normal(13, s.V, s.H, std=0.02)
    ours = (hidden.float() @ head.float().T).log_softmax(-1)
    rounded = (hidden.float() @ head.float().T).to(BF16).log_softmax(-1)
    flag = '--hf-overrides {"fp32_lm_head": true}'
    yield row("log-probabilities", rounded, ours, "bf16 logits and log-softmax", "fp32", flag)
    fp32 = theirs.log_probs(hidden, head, fp32_head=True)
    yield row("log-probabilities, fp32 head", fp32, ours, "fp32", "fp32")


def _quantisers(s: Sizes) -> Iterator[Row]:
    weight, x = _normal(14, s.H, s.H, std=0.02), _normal(15, s.T, s.H)
    powers = "power-of-two scale, exact division"
    for name, tile, quantise, given in (
        ("weights", TILE, theirs.quantise_weight, weight),
        ("activations", (1, 128), theirs.quantise_activation, x),
    ):
        codes, scale = quantize_tiles(given, tile)
        ours = dequantize_tiles(codes, scale, tile, torch.float32)
        for fmt, said, remedy in (
            (None, "scale = largest / 448", '"scale_fmt": "ue8m0" in quantization_config'),
            ("ue8m0", powers, ""),
        ):
            found, factor = quantise(given, fmt)
            value = dequantize_tiles(found, 1 / factor, tile, torch.float32)
            label = f"FP8 {name}" + (f", scale_fmt {fmt}" if fmt else "")
            yield row(label, value, ours, said, powers, remedy)


def as_markdown(found: list[Row]) -> str:
    """The table as it is in the documentation."""
    lines = [
        "| operator | LMDeploy 0.18 | Octavo | equal | largest gap | brings them together |",
        "|---|---|---|---|---|---|",
    ]
    for one in found:
        remedy = f"`{one.remedy}`" if one.remedy.startswith(("--", '"')) else one.remedy
        equal = f"{100 * one.equal:.4f}".rstrip("0").rstrip(".")
        gap = "ids" if one.operator.startswith("experts,") else f"{one.gap:.1e}" if one.gap else "0"
        lines.append(f"| {one.operator} | {one.lmdeploy} | {one.octavo} | {equal} % | {gap} | {remedy} |")
    return "\n".join(lines)


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(f"torch {torch.__version__} on one thread of a CPU ({platform.machine()}); {Sizes()}")
    print(as_markdown(list(rows(Sizes()))))
