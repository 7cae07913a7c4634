"""The mixture-of-experts layer on one GPU: what one expert-parallel rank of the 1T model computes, in bf16.

    python -m tests.bench.gpu [--tokens 4096,8192,16384] [--rounds 20] [--json FILE]

64 experts of hidden size 4096 and width 1536 in 8 router groups, 8 experts a token, all on this device: as many rows
and the same experts as a rank of `model=intern_s1_pro` at `parallel.ep=8` has. Measured are the whole layer (router,
gather, grouped GEMMs, sum) forward and forward with backward, and dense bf16 matmuls of the same FLOPs: the same
number of rows through one weight in place of 64. The three take turns; times are CUDA events', figures medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from trainer.config import ModelConfig
from trainer.model.moe import MoE

Step = Callable[[], object]


@dataclass(frozen=True)
class Slice:
    """The experts of one rank."""

    hidden: int = 4096
    width: int = 1536
    experts: int = 64
    groups: int = 8
    per_token: int = 8

    def config(self) -> ModelConfig:
        return ModelConfig(
            vocab_size=8, hidden_size=self.hidden, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=8,
            num_experts=self.experts, expert_width=self.width, router_groups=self.groups,
            experts_per_token=self.per_token,
        )  # fmt: skip

    def forward_flops(self, tokens: int) -> int:
        """Of the experts' three matrices, 2 a multiply-add; backward takes twice as many."""
        return 2 * 3 * self.hidden * self.width * tokens * self.per_token


@dataclass(frozen=True)
class Result:
    """Milliseconds, TFLOP/s of the experts' matrices, and the most memory that was allocated."""

    tokens: int
    forward_ms: float
    forward_tflops: float
    dense_forward_tflops: float
    both_ms: float
    both_tflops: float
    dense_both_tflops: float
    peak_gb: float


def build(part: Slice, device: torch.device) -> MoE:
    """Weights in bf16, as FSDP's mixed precision hands them to the layer."""
    moe = MoE(part.config())
    generator = torch.Generator(device).manual_seed(0)
    for name, parameter in list(moe.named_parameters()):
        owner = moe.get_submodule(name.rpartition(".")[0])
        weight = torch.empty(parameter.shape, dtype=torch.bfloat16, device=device)
        nn.init.normal_(weight, std=parameter.shape[-1] ** -0.5, generator=generator)
        setattr(owner, name.rpartition(".")[2], nn.Parameter(weight))
    return moe


def dense_matmuls(part: Slice, tokens: int, device: torch.device) -> tuple[Step, Step]:
    """All rows through one weight, into preallocated results: forward; and with the gradients of rows and weights."""
    rows, hidden, width = tokens * part.per_token, part.hidden, part.width

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.bfloat16, device=device)

    x, dy, d_gated, act = random(rows, hidden), random(rows, hidden), random(rows, 2 * width), random(rows, width)
    into, out_of = random(2 * width, hidden), random(hidden, width)
    like_x, like_gated, like_act, d_into, d_out_of = map(torch.empty_like, (x, d_gated, act, into, out_of))

    def forward() -> None:
        torch.mm(x, into.t(), out=like_gated)
        torch.mm(act, out_of.t(), out=like_x)

    def both() -> None:
        forward()
        torch.mm(dy, out_of, out=like_act)
        torch.mm(dy.t(), act, out=d_out_of)
        torch.mm(d_gated, into, out=like_x)
        torch.mm(d_gated.t(), x, out=d_into)

    return forward, both


def milliseconds(step: Step, device: torch.device) -> float:
    """Between CUDA events, from an idle device; on a CPU, where only tests run this, by the clock."""
    if device.type != "cuda":
        begin = time.perf_counter()
        step()
        return 1e3 * (time.perf_counter() - begin)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    start.record()
    step()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def measure(part: Slice, tokens: int, rounds: int, device: torch.device) -> Result:
    """Medians of `rounds` turns, after two that warm up."""
    moe = build(part, device)
    x = torch.randn(tokens, part.hidden, dtype=torch.bfloat16, device=device).requires_grad_()
    dy = torch.randn_like(x)

    def forward() -> Tensor:
        return moe(x)[0]  # saves for backward what training saves

    def both() -> None:
        x.grad = None
        moe.zero_grad(set_to_none=True)
        forward().backward(dy)

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        both()
        peak = torch.cuda.max_memory_allocated(device)
    else:
        peak = 0
    dense_forward, dense_both = dense_matmuls(part, tokens, device)
    arms: dict[str, Step] = {"forward": forward, "dense f": dense_forward, "both": both, "dense both": dense_both}
    times: dict[str, list[float]] = {name: [] for name in arms}
    for number in range(rounds + 2):
        for name, step in arms.items():
            took = milliseconds(step, device)
            if number >= 2:
                times[name].append(took)
    ms = {name: statistics.median(values) for name, values in times.items()}
    flops = part.forward_flops(tokens)
    rate = {name: flops * (3 if "both" in name else 1) / ms[name] / 1e9 for name in arms}
    return Result(
        tokens,
        ms["forward"], rate["forward"], rate["dense f"],
        ms["both"], rate["both"], rate["dense both"],
        peak / 1e9,
    )  # fmt: skip


def cells(result: Result) -> list[str]:
    return [
        f"{result.tokens}",
        f"{result.forward_ms:.2f}",
        f"{result.forward_tflops:.0f}",
        f"{result.forward_tflops / result.dense_forward_tflops:.0%}",
        f"{result.both_ms:.2f}",
        f"{result.both_tflops:.0f}",
        f"{result.both_tflops / result.dense_both_tflops:.0%}",
        f"{result.dense_both_tflops:.0f}",
        f"{result.peak_gb:.1f}",
    ]


COLUMNS = [
    "tokens", "forward ms", "TFLOP/s", "of dense matmuls", "forward + backward ms", "TFLOP/s", "of dense matmuls",
    "dense matmuls, TFLOP/s", "peak GB",
]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", default="4096,8192,16384")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", type=Path, help="write the figures there")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit(
            f"bench-gpu needs a CUDA device, and torch {torch.__version__} sees none here; `make bench` is the CPU's"
        )
    device, part = torch.device("cuda"), Slice()
    print(
        f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}, bf16; {part.experts} experts, hidden "
        f"{part.hidden}, width {part.width}; medians of {args.rounds} rounds"
    )
    print("| " + " | ".join(COLUMNS) + " |")
    print("|---" * len(COLUMNS) + "|")
    results = []
    for tokens in map(int, args.tokens.split(",")):
        results.append(measure(part, tokens, args.rounds, device))
        print("| " + " | ".join(cells(results[-1])) + " |", flush=True)
    if args.json:
        args.json.write_text(json.dumps([asdict(result) for result in results], indent=1))


if __name__ == "__main__":
    main()
