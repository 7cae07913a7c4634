"""Octavo on one GPU: what one expert-parallel rank of the 1T model computes, beside what others make of the same.

    python -m tests.bench.gpu [--sections gemms,experts,...] [--tokens 1024,2048,...] [--rounds 20] [--json FILE]

64 experts of hidden size 4096 and width 1536 in 8 router groups, 8 experts a token, all on this device: as many rows
and as many experts as a rank of `model=intern_s1_pro` has at `parallel.ep=8`. All arms of a size are in this process,
on the same random numbers, and take turns round by round, each behind a write over the L2 cache; times are CUDA
events', figures medians. Rates count the FLOPs that the routing asks for, padding left out. Routing: uniform over each
group's experts, or Zipf (the most wanted of 8 gets 36.8 %, 2.94 times its share); drawn from a fixed seed. TE is
Transformer Engine's GroupedLinear as shipped, by row counts on the host or on the device, with its weight cache or not.

"of target" is forward + backward against what is aimed at from 8192 tokens on; "host syncs" are waits of the host that
torch itself makes in forward + backward; "GB more" is what the arm takes at its peak beyond the start; "off by"
is the relative distance of its results, gradients included, from the first arm's.

Then each of our Triton kernels against its twin in torch. Last comes `recipe=toy_gpu`, 500 steps of a model that fills
an 80 GB GPU, with bf16 experts and with FP8 ones, each in a process of its own: tokens a second, share of the peak,
memory and losses. After it generation beside transformers', the memory of a step of adapters on a base in FP8, and the
parts of a step of reinforcement learning (tests/bench/gpu/after.py).
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tests.bench.fp8_curves import picture
from tests.bench.gpu import after, end_to_end, kernels
from tests.bench.gpu.clock import Clock
from tests.bench.gpu.kernels import KernelRow
from tests.bench.gpu.layer import DOCUMENT
from tests.bench.gpu.routing import Size, Slice
from tests.bench.gpu.sections import SECTIONS, measure
from tests.bench.gpu.table import LARGE, LAYER_BF16, Row, header, line, machine, not_run, with_fp8_targets
from trainer.kernels.choose import make_ops
from trainer.model.ops import TORCH, Ops

KERNELS, TRAIN = "kernels", "train"
NAMES = (*SECTIONS, KERNELS, TRAIN, *after.PARTS)
AFTER = {"lora": ("fp8_block", "bf16"), "rl": ("bf16", "fp8_block")}  # precisions


def run(
    names: list[str], tokens: list[int], rounds: int, part: Slice, dtype: torch.dtype, clock: Clock, rows: list[Row],
    ops: Ops = TORCH,
) -> None:  # fmt: skip
    """Measure the sections, printing each as it comes and adding it to `rows`."""
    for name in names:
        section, of_section = SECTIONS[name], len(rows)
        print(f"\n### {section.title}\n\n{header()}")
        for count in tokens:
            for skew in section.skews:
                found = list(measure(name, Size(part, count, skew, dtype, clock.device, ops), rounds, clock))
                rows += with_fp8_targets(found) if count >= LARGE and section.bf16_target == LAYER_BF16 else found
                print("\n".join(line(row) for row in rows[-len(found) :] if row.timing), flush=True)
                gc.collect()
                if clock.device.type == "cuda":
                    torch.cuda.empty_cache()
        print("\n".join(not_run(rows[of_section:])))


def run_kernels(tokens: list[int], rounds: int, clock: Clock, rows: list[KernelRow]) -> None:
    """Measure each of our Triton kernels, likewise."""
    print("\n### Triton kernels against their twins in torch; GB/s of what has to move at least\n")
    print("| " + " | ".join(kernels.COLUMNS) + " |\n" + "|---" * len(kernels.COLUMNS) + "|")
    for count in tokens:
        for row in kernels.measure(count, rounds, clock):
            print(kernels.line(row), flush=True)
            rows.append(row)


def bench(args: argparse.Namespace, device: torch.device, part: Slice, dtype: torch.dtype) -> list[str]:
    """All that `args` ask for; returns what failed."""
    names, tokens = args.sections.split(","), [int(count) for count in args.tokens.split(",")]
    if unknown := set(names) - set(NAMES):
        sys.exit(f"--sections {','.join(sorted(unknown))}: there are {', '.join(NAMES)}")
    if unknown := set(args.sizes.split(",")) - set(after.SIZES):
        sys.exit(f"--sizes {','.join(sorted(unknown))}: there are {', '.join(after.SIZES)}")
    if odd := [count for count in tokens if count < 8 or count % 8 or count % min(DOCUMENT, count)]:
        sys.exit(f"--tokens {odd[0]}: multiples of 8 work, and above {DOCUMENT} multiples of it")
    about = machine(device) | {"our kernels": args.kernels}
    rows, of_kernels = list[Row](), list[KernelRow]()
    runs, beyond = dict[str, dict[str, Any]](), dict[str, dict[str, Any]]()
    print("; ".join(f"{key} {value}" for key, value in about.items()) + f"; medians of {args.rounds} rounds")
    try:
        clock = Clock(device)
        run(
            [name for name in names if name in SECTIONS],
            tokens,
            args.rounds,
            part,
            dtype,
            clock,
            rows,
            make_ops(args.kernels),
        )
        if KERNELS in names:
            run_kernels(tokens, args.rounds, clock, of_kernels)
        if TRAIN in names:
            into = Path(tempfile.mkdtemp(prefix="bench-gpu-"))
            print(f"\n### {end_to_end.RECIPE}, a run for each precision; their records are in {into}\n", flush=True)
            overrides = [f"train.kernels={args.kernels}", *args.overrides.split()]
            runs = end_to_end.measure(args.precisions.split(","), into, overrides)
            print(end_to_end.table(runs))
        if parts := [name for name in names if name in after.PARTS]:
            into = Path(tempfile.mkdtemp(prefix="bench-gpu-"))
            print(f"\n### After pre-training; records are in {into}\n", flush=True)
            beyond |= after.measure(parts, args.sizes.split(","), clock, into, dtype, args.rounds, AFTER)
    finally:  # what there is, whatever came after it
        if args.json:
            measured = [row.record() for row in rows] + [row.record() for row in of_kernels]
            args.json.write_text(
                json.dumps({"machine": about, "rows": measured, "train": runs, "after": beyond}, indent=1)
            )
            if curves := {name: of_run for name, of_run in runs.items() if "loss" in of_run}:
                args.json.with_suffix(".svg").write_text(picture(curves))
    skipped = [(row.arm, row.skipped or "") for row in rows] + [(row.arm, row.skipped or "") for row in of_kernels]
    skipped += [(name, of_run.get("skipped", "")) for name, of_run in (*runs.items(), *beyond.items())]
    return [f"{name}: {reason}" for name, reason in skipped if reason.startswith("FAILED")]


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sections", default=",".join(NAMES), help="default: %(default)s")
    parser.add_argument("--tokens", default="1024,2048,4096,8192,16384", help="of the rank; default: %(default)s")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--kernels", choices=("torch", "triton"), default="torch", help="that our own arms run on")
    parser.add_argument("--precisions", default="bf16,fp8_block", help="that recipe=toy_gpu is trained in")
    parser.add_argument("--sizes", default="small,medium", help="of generation, lora and rl; default: %(default)s")
    parser.add_argument("--overrides", default="", help="of recipe=toy_gpu, as for octavo train, in one argument")
    parser.add_argument("--json", type=Path, help="write figures and losses there, and the losses as a picture beside")
    return parser.parse_args(arguments)


def main() -> None:
    args = parse()
    if not torch.cuda.is_available():
        sys.exit(
            f"bench-gpu needs a CUDA device, and torch {torch.__version__} sees none here; `make bench` is the CPU's"
        )
    if failed := bench(args, torch.device("cuda"), Slice(), torch.bfloat16):
        sys.exit(f"{len(failed)} arms failed; the first is {failed[0]}")


if __name__ == "__main__":
    main()
