"""The effect of prefixes on a run: the toy mixture with a prefix before every document, and without any.

    python -m tests.bench.prefixes [--steps 150] [--seeds 2] [--runs runs/prefixes] [data.cache_dir=DIR ...]

Both arms take as many windows of the same documents in the same order of sources; those with prefixes spend some of
their tokens on them, which are read and not trained on. Held-out documents are the same ones, and only their own tokens
count in both. Prints a table. A run that is done is not repeated. Further arguments are Octavo's own, for all runs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import mean
from typing import Any

from trainer.config.compose import compose, to_yaml


def train(directory: Path, prefixes: bool, seed: int, steps: int, overrides: list[str]) -> dict[str, Any]:
    """The last evaluation of a run, by source. Ends the program where the run cannot be had."""
    cfg = compose(["recipe=toy", f"train.steps={steps}", f"train.seed={seed}", "train.eval_every=0", *overrides])
    cfg.run.dir, cfg.train.sample_tokens, cfg.train.eval_batches, cfg.checkpoint.every = str(directory), 0, 16, 0
    if not prefixes:
        cfg.data.prefixes = {}
        for source in cfg.data.sources.values():
            source.prefix = ""
    directory.parent.mkdir(parents=True, exist_ok=True)
    resolved = directory.with_suffix(".yaml")
    resolved.write_text(to_yaml(cfg), encoding="utf-8")
    code = subprocess.run([sys.executable, "-m", "trainer", "--resolved", str(resolved)]).returncode
    if code:
        sys.exit(code)
    records = map(json.loads, (directory / "metrics.jsonl").read_text().splitlines())
    heldout: dict[str, Any] = [line["heldout"] for line in records if line.get("event") == "evaluation"][-1]
    return heldout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--runs", type=Path, default=Path("runs/prefixes"))
    options, overrides = parser.parse_known_args()
    arms = {
        prefixes: [
            train(
                options.runs / f"{'with' if prefixes else 'without'}-{seed}", prefixes, seed, options.steps, overrides
            )
            for seed in range(options.seeds)
        ]
        for prefixes in (True, False)
    }
    print(f"\nheld-out nats per token after {options.steps} steps, mean of {options.seeds} seeds (each)\n")
    print("| source | with prefixes | without | difference |")
    print("|---|---|---|---|")
    for source in arms[True][0]:
        each = {prefixes: [run[source] for run in runs] for prefixes, runs in arms.items()}
        cells = [
            f"{mean(values):.3f} ({', '.join(f'{value:.3f}' for value in values)})"
            for values in (each[True], each[False])
        ]
        print(f"| {source} | {cells[0]} | {cells[1]} | {mean(each[True]) - mean(each[False]):+.3f} |")


if __name__ == "__main__":
    main()
