"""The CPU time in which the reinforcement toy solves its task, from random weights.

    python -m tests.bench.rl_toy [--seeds 5] [KEY=VALUE ...]

Each seed is a run of `recipe=rl_toy` in a process of its own, on one thread, with a held-out evaluation every 20 steps
on all held-out questions. Time is CPU time of the process from its first question on, evaluations included.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from tests.bench.step import cpu_name

SOLVED = 0.95
Evaluation = tuple[int, float, float]  # step, CPU-seconds, share of held-out answers that are right


def run(seed: int, directory: Path, words: list[str]) -> list[Evaluation]:
    """The evaluations of a run; in this process."""
    from trainer.config.compose import compose
    from trainer.rl.producer import Synchronous
    from trainer.run.process import train

    torch.set_num_threads(1)
    started: list[float] = []
    seconds: list[float] = []
    produce, answer = Synchronous.produce, Synchronous.answer

    def first(self: Synchronous, *args: Any, **more: Any) -> Any:
        if not started:
            started.append(time.process_time())
        return produce(self, *args, **more)

    def timed(self: Synchronous, *args: Any, **more: Any) -> Any:
        found = answer(self, *args, **more)
        seconds.append(time.process_time() - started[0])
        return found

    fixed = [f"run.dir={directory}", f"train.seed={seed}", "train.device=cpu", "logging.console=off"]
    with patch.multiple(Synchronous, produce=first, answer=timed):
        status = train(compose(["recipe=rl_toy", *fixed, *words], world_size=1))
    assert status == 0, status
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    found = [line for line in lines if line.get("event") == "evaluation"]
    return [
        (line["step"], spent, line["heldout_accuracy"]["reverse"]) for line, spent in zip(found, seconds, strict=True)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("words", nargs="*", help="overrides of the recipe")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    print(f"{cpu_name()}, 1 thread, torch {torch.__version__}; CPU time")
    print("| seed | step with 95 % | CPU-seconds | last step | CPU-seconds | right |")
    print("|---|---|---|---|---|---|")
    fresh = multiprocessing.get_context("spawn")
    for seed in range(args.seeds):
        with tempfile.TemporaryDirectory() as place, fresh.Pool(1) as pool:
            evaluations = pool.apply(run, (seed, Path(place) / "run", args.words))
        solved = [(step, f"{spent:.1f}") for step, spent, share in evaluations if share >= SOLVED]
        step, seconds = solved[0] if solved else ("-", "-")
        last, spent, share = evaluations[-1]
        print(f"| {seed} | {step} | {seconds} | {last} | {spent:.1f} | {100 * share:.0f} % |", flush=True)


if __name__ == "__main__":
    main()
