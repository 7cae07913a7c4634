"""`recipe=toy_gpu`, trained as it is trained: tokens a second, share of the peak, memory, and the loss of every step.

    python -m tests.bench.gpu.end_to_end --precision fp8_block --into DIR [KEY=VALUE ...]

One process for each precision, so that each has the GPU to itself. It is `octavo train`, but for the checkpoint at the
end: three numbers of 3.5 billion parameters are 43 GB of disk.

Legend: T tokens of a micro-batch · H hidden size · h, n heads of queries and of keys · d head dimension · E experts ·
K experts per token · I expert width.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainer.config.compose import compose
from trainer.config.keys import Config

RECIPE = "recipe=toy_gpu"


def memory(cfg: Config) -> dict[str, int]:
    """Bytes that a step on one GPU holds at its peak, without recomputation: where forward ends in all but the first
    micro-batch. The rest, a few GB, comes and goes: a layer's gradients, a chunk's logits, CUDA's context."""
    model = cfg.model
    parameters, moment = model.num_params(), {"fp32": 4, "bf16": 2}[cfg.precision.moments]
    tokens = cfg.train.micro_batch * cfg.data.seq_len
    h, n, d = model.num_heads, model.num_kv_heads, model.head_dim
    of_blocks = parameters - 2 * model.vocab_size * model.hidden_size
    # bf16: inputs of norms, attention and experts; q, k, v before and after norm and rotary; attention's result; what
    # is between the experts' matrices, gate and up and silu(gate). fp32: the router's input and its two softmaxes.
    bf16 = 4 * model.hidden_size + 3 * (h + n) * d + 3 * model.expert_width * model.experts_per_token
    fp32 = model.hidden_size + 2 * model.num_experts
    per_layer = tokens * (2 * bf16 + 4 * fp32)
    outside = tokens * (2 + 4) * model.hidden_size + 4 * model.vocab_size * model.hidden_size
    return {
        "masters": 4 * parameters,
        "moments": 2 * moment * parameters,
        "gradients": 4 * parameters,
        "bf16 weights": 2 * of_blocks,  # as many bytes as e4m3 weights by rows and by columns
        "activations": model.num_layers * per_layer + outside,
    }


def train(overrides: Sequence[str]) -> None:
    """In this process; what it says goes to metrics.jsonl of run.dir."""
    from parallel.world import start_world
    from trainer.run import directory as rundir
    from trainer.run.build import build
    from trainer.run.loop import Trainer

    class WithoutCheckpoint(Trainer):
        def _finish(self) -> int:
            self._evaluate(final=True)
            return 0

    cfg = compose([RECIPE, *overrides])
    world = start_world(cfg.train.device, cfg.parallel.timeout_s)
    try:
        run = rundir.choose(cfg)
        rundir.prepare(run, cfg)
        WithoutCheckpoint(cfg, run, world, build(cfg, run, world)).run()
    finally:
        world.close()


def figures(directory: Path) -> dict[str, Any]:
    """Figures of a run's record. Rates are medians over the reads of its metrics but for the first, which warms up."""
    records = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    steps = [record for record in records if "event" not in record]
    reads = [record for record in steps if "tokens_per_second" in record]
    held_out = next(record["heldout"] for record in records if record.get("event") == "evaluation")

    def median(key: str) -> float | None:
        values = [record[key] for record in reads[1:] or reads if key in record]
        return statistics.median(values) if values else None

    return {
        "tokens_per_second": median("tokens_per_second"),
        "peak_share": median("peak_share"),  # of the bf16 peak, whatever the experts compute in
        "peak_memory_bytes": max(record["peak_memory_bytes"] for record in reads),
        "loss": [float(record["loss"]) for record in steps],
        "held_out": held_out,
    }


COLUMNS = (
    "experts in", "tokens/s", "of bf16's", "MFU (bf16 peak)", "peak GB", "loss, last 20 steps", "against bf16's",
    "held out, nats",
)  # fmt: skip


def table(runs: dict[str, dict[str, Any]]) -> str:
    """In Markdown, of `figures` or {"skipped": reason} by precision."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|"]
    base = runs.get("bf16", {})
    for precision, run in runs.items():
        if "skipped" in run:
            lines.append(f"| {precision} | not run: {run['skipped']}" + " |" * (len(COLUMNS) - 1))
            continue
        loss = statistics.fmean(run["loss"][-20:])
        against = loss / statistics.fmean(base["loss"][-20:]) - 1 if "loss" in base else None
        faster = run["tokens_per_second"] / base["tokens_per_second"] if "loss" in base else None
        cells = [
            precision,
            f"{run['tokens_per_second']:.0f}",
            "" if faster is None else f"{faster:.2f}x",
            "" if run["peak_share"] is None else f"{run['peak_share']:.1%}",
            f"{run['peak_memory_bytes'] / 1e9:.1f}",
            f"{loss:.4f}",
            "" if against is None else f"{against:+.2%}",
            f"{statistics.fmean(run['held_out'].values()):.4f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def measure(precisions: Sequence[str], into: Path, overrides: Sequence[str]) -> dict[str, dict[str, Any]]:
    """A run for each precision, one after another, in a process of its own; into: where their directories go."""
    import torch

    from trainer.precision import experts_unavailable

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    runs: dict[str, dict[str, Any]] = {}
    for precision in precisions:
        if reason := experts_unavailable(compose([RECIPE, f"precision={precision}"]).precision.experts, device):
            runs[precision] = {"skipped": reason}
            continue
        directory = into / precision
        command = [sys.executable, "-m", "tests.bench.gpu.end_to_end", "--precision", precision, "--into", str(into)]
        done = subprocess.run([*command, *overrides], stdout=sys.stderr)
        if done.returncode == 0:
            runs[precision] = figures(directory)
        else:
            runs[precision] = {"skipped": f"FAILED: exit code {done.returncode}; its record is in {directory}"}
    return runs


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", required=True, help="an option of recipes/precision")
    parser.add_argument("--into", type=Path, required=True)
    parser.add_argument("overrides", nargs="*", help="as for octavo train")
    args = parser.parse_args(arguments)
    fixed = [f"precision={args.precision}", f"run.dir={args.into / args.precision}", "train.sample_tokens=0"]
    train([*fixed, *args.overrides])


if __name__ == "__main__":
    main()
