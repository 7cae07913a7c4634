"""Training step on one CPU thread: Octavo against Hugging Face Qwen3-MoE, and against its own matmuls alone.

    python tests/bench/step.py [--shapes toy,medium,large] [--rounds 7] [--quick]

Both sides train a decoder of the same sizes in fp32 on the same random tokens: forward, backward and a fused AdamW
step. Hugging Face runs `Qwen3MoeForCausalLM` with SDPA attention and `grouped_mm` experts, plain top-K, RoPE and no
balance loss; Octavo runs what it trains with: grouped routing, FoPE, the straight-through estimator and the balance
loss. The limit is every matmul of Octavo's step into preallocated results (attention's as dense batched matmuls), rows
spread evenly over the experts.

Each of them runs in a process of its own, as it would in real life (one's allocations then do not change the other's),
and they take turns round by round. Figures are CPU time; the ratios are medians of the rounds' own ratios, so that
other work on the machine moves them little. Octavo's process sets up its memory as `python -m trainer` does on a CPU
(`trainer/run/host_memory.py`);
"against it, kept" is Hugging Face with that setting too. Peak memory is the largest resident
size less that before the model was built.

The lines below the table are about the gradient norm, which Octavo computes once a step: its own, which adds rows of
512 numbers in fp32 and their sums in fp64; torch's in fp32, which is too small by 1e-2 on 10^8 equal numbers; and one
in fp64 throughout. They run in turns on gradients of the model's shapes.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from trainer.config.model import ModelConfig
from trainer.data.batch import Batch
from trainer.metrics.rates import peak_memory
from trainer.model.decoder import Decoder
from trainer.objectives.next_token import NextToken
from trainer.objectives.scalars import GlobalBatch
from trainer.optim.norm import sum_of_squares
from trainer.run.host_memory import prepare_host_memory

Step = Callable[[], object]


@dataclass
class Shape:
    model: ModelConfig
    batch: int
    seq_len: int


def shapes() -> dict[str, Shape]:
    from trainer.config.compose import compose

    cfg = compose(["recipe=toy"])
    common = {"positions": "fope", "router_groups": 8, "experts_per_token": 8, "balance_coef": 1e-3}
    medium = ModelConfig(
        vocab_size=8192, hidden_size=512, num_layers=4, num_heads=8, num_kv_heads=4, head_dim=64,
        num_experts=32, expert_width=256, **common,
    )  # fmt: skip
    large = ModelConfig(
        vocab_size=16384, hidden_size=768, num_layers=4, num_heads=12, num_kv_heads=4, head_dim=64,
        num_experts=64, expert_width=384, **common,
    )  # fmt: skip
    return {
        "toy": Shape(cfg.model, cfg.train.micro_batch, cfg.data.seq_len),
        "medium": Shape(medium, 4, 512),
        "large": Shape(large, 4, 512),
    }


def tokens_of(shape: Shape) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, shape.model.vocab_size, (shape.batch, shape.seq_len), generator=generator)
    labels = torch.full_like(ids, -100)
    labels[:, :-1] = ids[:, 1:]
    return ids, labels


def optimizer_of(model: torch.nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)


def octavo_step(shape: Shape) -> Step:
    prepare_host_memory()
    with torch.device("meta"):
        model = Decoder(shape.model)
    model.to_empty(device="cpu")
    model.init_weights(0)
    ids, labels = tokens_of(shape)
    rows = torch.arange(0, ids.numel() + 1, shape.seq_len, dtype=torch.int32)
    positions = torch.arange(shape.seq_len).repeat(shape.batch, 1)
    count = int((labels >= 0).sum())
    batch = Batch({"ids": ids, "positions": positions}, labels, rows, count, list(range(shape.batch)))
    optimizer, objective = optimizer_of(model), NextToken(chunk=512)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        objective(model, batch, GlobalBatch(units=count)).total.backward()
        optimizer.step()

    return step


def qwen3_moe_config(cfg: ModelConfig, **more: Any) -> Any:
    """transformers' configuration of a model with one router group and RoPE. more: further keys of it."""
    from transformers import Qwen3MoeConfig

    return Qwen3MoeConfig(
        vocab_size=cfg.vocab_size,
        hidden_size=cfg.hidden_size,
        num_hidden_layers=cfg.num_layers,
        num_attention_heads=cfg.num_heads,
        num_key_value_heads=cfg.num_kv_heads,
        head_dim=cfg.head_dim,
        num_experts=cfg.num_experts,
        num_experts_per_tok=cfg.experts_per_token,
        moe_intermediate_size=cfg.expert_width,
        norm_topk_prob=True,
        tie_word_embeddings=False,
        **more,
    )


def huggingface_step(shape: Shape) -> Step:
    from transformers import Qwen3MoeForCausalLM

    config = qwen3_moe_config(shape.model, use_cache=False)
    torch.manual_seed(0)
    model = Qwen3MoeForCausalLM._from_config(
        config, attn_implementation="sdpa", experts_implementation="grouped_mm"
    ).train()
    ids, _ = tokens_of(shape)
    optimizer = optimizer_of(model)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()

    return step


def matmul_step(shape: Shape) -> Step:
    """Forward, input-gradient and weight-gradient matmuls of one step, nothing else.

    Every weight and every weight gradient is a tensor of its own, as in the model; activations the layers share.
    """
    prepare_host_memory()
    cfg, tokens = shape.model, shape.batch * shape.seq_len
    products: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []

    def add(x: torch.Tensor, y: torch.Tensor, weight: torch.Tensor) -> None:
        """y = x @ weight.T, and its two gradients."""
        products.append((x, weight.t(), torch.empty_like(y)))
        products.append((y, weight, torch.empty_like(x)))
        products.append((y.t(), x, torch.empty_like(weight)))

    rows, chunk = tokens * cfg.experts_per_token, min(512, tokens)
    x_TH, out_TD = torch.randn(tokens, cfg.hidden_size), torch.randn(tokens, cfg.num_heads * cfg.head_dim)
    qkv = torch.randn(tokens, (cfg.num_heads + 2 * cfg.num_kv_heads) * cfg.head_dim)
    z_TE, logits = torch.randn(tokens, cfg.num_experts), torch.randn(chunk, cfg.vocab_size)
    x_RH, hidden, act = (torch.randn(rows, n) for n in (cfg.hidden_size, 2 * cfg.expert_width, cfg.expert_width))
    for _ in range(cfg.num_layers):
        for x, y in ((x_TH, qkv), (out_TD, x_TH), (x_TH, z_TE)):
            add(x, y, torch.randn(y.shape[1], x.shape[1]))
        for x, y in ((x_RH, hidden), (act, x_RH)):
            weights = torch.randn(cfg.num_experts, y.shape[1], x.shape[1])
            for x_e, y_e, weight in zip(x.chunk(cfg.num_experts), y.chunk(cfg.num_experts), weights, strict=True):
                add(x_e, y_e, weight)
    head = torch.randn(cfg.vocab_size, cfg.hidden_size)
    for x in x_TH.split(chunk):
        add(x, logits, head)
    heads = shape.batch * cfg.num_heads
    q = torch.randn(heads, shape.seq_len, cfg.head_dim)
    scores, out = torch.randn(heads, shape.seq_len, shape.seq_len), torch.empty_like(q)

    def step() -> None:
        for a, b, result in products:
            torch.mm(a, b, out=result)
        for _ in range(3 * cfg.num_layers):  # forward; then the gradients of both matmuls
            torch.bmm(q, q.transpose(1, 2), out=scores)
            torch.bmm(scores, q, out=out)

    return step


def huggingface_kept(shape: Shape) -> Step:
    prepare_host_memory()
    return huggingface_step(shape)


ARMS = {"octavo": octavo_step, "huggingface": huggingface_step, "kept": huggingface_kept, "matmuls": matmul_step}


def restart_peak() -> int:
    """Let `peak_memory` forget what was freed, where Linux permits that. Returns the bytes that it now starts from."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return peak_memory()


def serve(arm: str, shape: Shape) -> None:
    """The child's side: a line with a number of steps comes in, a line with CPU-seconds a step and peak MB goes out."""
    import transformers  # noqa: F401  # every arm has paid the same imports before its memory counts

    before = restart_peak()
    step = ARMS[arm](shape)
    for _ in range(2):
        step()
    for line in sys.stdin:
        times = int(line)
        start = time.process_time()
        for _ in range(times):
            step()
        seconds = (time.process_time() - start) / times
        peak = (peak_memory() - before) / 2**20
        print(json.dumps([seconds, peak]), flush=True)


def measure(name: str, rounds: int, steps: int) -> tuple[dict[str, list[float]], dict[str, float]]:
    """CPU-seconds a step of every round, and peak MB, by arm."""
    seconds: dict[str, list[float]] = {arm: [] for arm in ARMS}
    peak: dict[str, float] = {}
    with ExitStack() as stack:
        children = {}
        for arm in ARMS:
            command = [sys.executable, __file__, "--serve", arm, "--shapes", name]
            children[arm] = stack.enter_context(
                subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            )
        for number in range(rounds + 1):
            arms = list(ARMS)
            for arm in arms[number % len(arms) :] + arms[: number % len(arms)]:
                child = children[arm]
                assert child.stdin is not None
                assert child.stdout is not None
                print(steps, file=child.stdin, flush=True)
                took, peak[arm] = json.loads(child.stdout.readline())
                if number:  # the first round warms up
                    seconds[arm].append(took)
    return seconds, peak


NORMS: dict[str, Callable[[list[torch.Tensor]], torch.Tensor]] = {
    "ours": lambda gradients: sum_of_squares(gradients, torch.device("cpu")).sqrt(),
    "torch's": lambda gradients: torch.nn.utils.get_total_norm(gradients),
    "fp64": lambda gradients: torch.stack([g.double().square().sum() for g in gradients]).sum().sqrt(),
}


def norm_ms(shape: Shape, rounds: int) -> dict[str, float]:
    """CPU-milliseconds of the norm over the gradients of one step, by the way it is computed; medians."""
    prepare_host_memory()
    with torch.device("meta"):
        shapes_of_parameters = [parameter.shape for parameter in Decoder(shape.model).parameters()]
    gradients = [torch.randn(size) for size in shapes_of_parameters]
    ms: dict[str, list[float]] = {name: [] for name in NORMS}
    for number in range(rounds + 1):
        for name, norm in NORMS.items():
            start = time.process_time()
            norm(gradients)
            if number:  # the first round warms up
                ms[name].append(1e3 * (time.process_time() - start))
    return {name: statistics.median(values) for name, values in ms.items()}


COLUMNS = [
    "shape",
    "parameters",
    "tokens a step",
    "Octavo ms",
    "Hugging Face ms",
    "matmuls alone ms",
    "tokens per CPU-second",
    "against Hugging Face",
    "against it, kept",
    "over its matmuls",
    "peak MB",
    "peak MB, Hugging Face",
]


def median_ratio(over: list[float], under: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(over, under, strict=True))


def norm_line(shape: str, norms: dict[str, float], step_ms: float) -> str:
    found = ", ".join(f"{name} {ms:.2f} ms" for name, ms in norms.items())
    more = {name: 100 * (norms[name] - norms["torch's"]) / step_ms for name in ("ours", "fp64")}
    return (
        f"gradient norm, {shape}: {found}; more than torch's in percent of a step: "
        f"ours {more['ours']:+.2f}, fp64 {more['fp64']:+.2f}"
    )


def cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="toy,medium,large")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=2, help="steps per arm and round")
    parser.add_argument("--quick", action="store_true", help="the toy's shape only, 3 rounds of 1 step")
    parser.add_argument("--serve", choices=list(ARMS), help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path, help="write the figures there")
    args = parser.parse_args()
    torch.set_num_threads(1)
    chosen = {name: shape for name, shape in shapes().items() if name in args.shapes.split(",")}
    if args.serve:
        serve(args.serve, next(iter(chosen.values())))
        return
    if args.quick:
        chosen, args.rounds, args.steps = {"toy": chosen["toy"]}, 3, 1
    print(f"{cpu_name()}, 1 thread, torch {torch.__version__}, fp32; CPU time, medians of {args.rounds} rounds")
    print("| " + " | ".join(COLUMNS) + " |")
    print("|---" * len(COLUMNS) + "|")
    results, lines = {}, []
    for name, shape in chosen.items():
        seconds, peak = measure(name, args.rounds, args.steps)
        ms = {arm: 1e3 * statistics.median(values) for arm, values in seconds.items()}
        tokens = shape.batch * shape.seq_len
        faster = median_ratio(seconds["huggingface"], seconds["octavo"])
        kept = median_ratio(seconds["kept"], seconds["octavo"])
        over = median_ratio(seconds["octavo"], seconds["matmuls"])
        cells = [
            name,
            f"{shape.model.num_params() / 1e6:.1f} M",
            f"{tokens}",
            *(f"{ms[arm]:.0f}" for arm in ("octavo", "huggingface", "matmuls")),
            f"{tokens / ms['octavo'] * 1e3:.0f}",
            f"{faster:.2f}x",
            f"{kept:.2f}x",
            f"{over:.2f}",
            *(f"{peak[arm]:.0f}" for arm in ("octavo", "huggingface")),
        ]
        print("| " + " | ".join(cells) + " |", flush=True)
        norms = norm_ms(shape, max(20, args.rounds))
        lines.append(norm_line(name, norms, ms["octavo"]))
        results[name] = {
            "ms": ms, "peak_mb": peak, "faster": faster, "faster_kept": kept, "over_matmuls": over, "norm_ms": norms,
        }  # fmt: skip
    print(*lines, sep="\n")
    if args.json:
        args.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
