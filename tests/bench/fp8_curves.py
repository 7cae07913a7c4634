"""The effect of FP8 on a run: the toy in fp32, with FP8 experts, and on two ranks with FP8 between them as well.

    python -m tests.bench.fp8_curves [--steps 300] [--out docs/fp8_curves] [train.global_batch=2 ...]

Trains `recipe=toy` (`octavo train`, on the CPU) four times from one seed on the same tokens, as fp32 on two
ranks shows how far apart runs end that differ in the order of their sums alone. Writes every step's loss to OUT.json
and the picture OUT.svg. A run that is done is not repeated, one that was cut off resumes. The end of a curve is the
mean of its last 20 losses; held-out texts are read once at the end. Exits with 1 where a run ends more than 1 % above
the fp32 run. Further arguments are Octavo's own and go to all runs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from tests.bench.panel import COLOURS, panel
from tests.bench.step import cpu_name

LAST = 20  # steps whose mean is a curve's end
ALLOWED = 1.01
ON_TWO_RANKS = ["parallel=ep", "parallel.ep=2", "train.micro_batch=4"]
# name -> (processes, what differs from recipe=toy); the first is what the others are compared with
RUNS: dict[str, tuple[int, list[str]]] = {
    "fp32": (1, ["precision=fp32"]),
    "fp32, 2 ranks": (2, ["precision=fp32", *ON_TWO_RANKS]),
    "FP8 experts": (1, ["precision=fp8_reference"]),
    "FP8 experts and payload, 2 ranks": (2, ["precision=fp8_reference", "precision.payload=fp8", *ON_TWO_RANKS]),
}


def train(directory: Path, ranks: int, steps: int, overrides: list[str]) -> dict[str, Any]:
    """The run's losses by step, and those on held-out texts by source. Ends the program where the run cannot be had."""
    command = [
        *(sys.executable, "-m", "launch.cli", "train", "--nproc-per-node", str(ranks), "recipe=toy"),
        *("train.device=cpu", "train.log_every=1", "train.eval_every=0", "train.sample_tokens=0", "checkpoint.keep=1"),
        *("logging.console=plain", f"run.dir={directory}", *overrides),
    ]
    done = [line["step"] for line in records(directory) if line.get("event") == "done"]
    if done and done[-1] != steps:  # resuming would be another schedule
        sys.exit(f"error: {directory} is a run of {done[-1]} steps, not of {steps}; use another --runs")
    code = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}).returncode
    if code:
        sys.exit(code)
    lines = records(directory)
    losses = {line["step"]: round(line["loss"], 5) for line in lines if "loss" in line}
    heldout = next(line["heldout"] for line in reversed(lines) if line.get("event") == "evaluation")
    return {
        "ranks": ranks,
        "overrides": overrides,
        "loss": [losses[step] for step in sorted(losses)],
        "heldout": {source: round(loss, 5) for source, loss in heldout.items()},
    }


def records(directory: Path) -> list[dict[str, Any]]:
    path = directory / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def end_of(run: dict[str, Any]) -> float:
    return fmean(run["loss"][-LAST:])


def table(runs: dict[str, dict[str, Any]]) -> list[str]:
    """Markdown: where the curves end, absolutely and against the first."""
    first = next(iter(runs.values()))
    rows = [
        f"| run | loss, mean of the last {LAST} steps | to fp32 | held-out loss | to fp32 |",
        "|---|---|---|---|---|",
    ]
    for name, run in runs.items():
        cells = [name]
        for value, reference in (
            (end_of(run), end_of(first)),
            (fmean(run["heldout"].values()), fmean(first["heldout"].values())),
        ):
            cells += [f"{value:.4f}", f"{100 * (value / reference - 1):+.2f} %"]
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def picture(runs: dict[str, dict[str, Any]]) -> str:
    """Two panels, of means over LAST steps: the losses, and in per cent how far each is above the first."""
    means = {
        name: [fmean(run["loss"][:n][-LAST:]) for n in range(1, len(run["loss"]) + 1)] for name, run in runs.items()
    }
    reference, first = next(iter(means.items()))
    above = {name: [100 * (y / x - 1) for x, y in zip(first, mean, strict=False)] for name, mean in means.items()}
    curves = [{name: list(enumerate(values, 1)) for name, values in both.items()} for both in (means, above)]
    legend, left = [], 50
    for name, colour in zip(runs, COLOURS, strict=False):
        legend.append(f'<text x="{left}" y="352" fill="{colour}" font-weight="bold">{name}</text>')
        left += 40 + 8 * len(name)
    return "\n".join(
        [
            '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 960 365" font-family="sans-serif" font-size="13">',
            '<rect width="960" height="365" fill="white"/>',
            *panel(curves[0], 50, f"loss by step, means of {LAST}", 1.0, COLOURS),
            *panel(curves[1], 530, f"per cent above {reference}", 0.5, COLOURS),
            *legend,
            "</svg>\n",
        ]
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300, help="of each run (default: 300)")
    parser.add_argument(
        "--out", type=Path, default=Path("docs/fp8_curves"), help="overwritten, .json and .svg (default: %(default)s)"
    )
    parser.add_argument(
        "--runs", type=Path, default=Path("runs/fp8_curves"), help="where the runs are kept (default: %(default)s)"
    )
    options, more = parser.parse_known_args()
    if not options.out.parent.is_dir():
        sys.exit(f"error: --out {options.out}: there is no directory {options.out.parent}")
    runs = {}
    for name, (ranks, overrides) in RUNS.items():
        directory = options.runs / name.replace(" ", "_").replace(",", "")
        runs[name] = train(directory, ranks, options.steps, [*overrides, f"train.steps={options.steps}", *more])
    device = f"{cpu_name()}, torch {torch.__version__}"
    options.out.with_suffix(".json").write_text(json.dumps({"device": device, "last": LAST, "runs": runs}) + "\n")
    options.out.with_suffix(".svg").write_text(picture(runs))
    print(f"{options.steps} steps on {device}", *table(runs), sep="\n")
    first = next(iter(runs.values()))
    too_high = [name for name, run in runs.items() if end_of(run) > ALLOWED * end_of(first)]
    for name in too_high:
        print(f"error: {name} ends more than {ALLOWED - 1:.0%} above {next(iter(runs))}", file=sys.stderr)
    return int(bool(too_high))


if __name__ == "__main__":
    sys.exit(main())
