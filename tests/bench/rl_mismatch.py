"""The effect of a rollout engine that does not compute as training does, with and without mask and router replay.

    python -m tests.bench.rl_mismatch [--seeds 3] [--out docs/rl_mismatch] [KEY=VALUE ...]

Runs `recipe=rl_toy` from random weights, each cell in a process of its own, on one thread. The embedded engine is
disturbed while it answers, in training and in evaluations, and only then:

    router in bf16    inputs, weights and logits of the routers are rounded to bf16
    masters in FP8    experts are quantised in rollouts from the bf16 rounding of their weights, in training from fp32
    selection noise   normal noise of NOISE is added to the logits that experts are selected by, not to their weights

Every disturbance is trained with the mask of the ratio of the engines and without it, and with the experts of the
rollout and without them; the ratio weighs every token in any case. `aligned` runs have no disturbance. Every step's k3,
share of masked tokens, flip rate and solve rate go to OUT.json, means of the seeds to the picture OUT.svg. A cell that
is done is not run again. Further arguments are overrides of all runs.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from statistics import fmean
from typing import Any
from unittest.mock import patch

import torch

from tests.bench.panel import COLOURS, panel
from tests.bench.step import cpu_name

NOISE = 0.3
BLOCK, LAST = 10, 50  # steps of means in the table and the picture, and of the solve rate at the end
LOWEST = 1e-16  # k3 below it is drawn there
PLAIN, FP8 = (), ("precision=fp8_reference",)
NO_MASK = ("rl.alpha=0", "rl.beta=1e8", "rl.off_alpha=0", "rl.off_beta=1e8")
NO_REPLAY = ("rl.replay=record",)
WHOLE = "mask and replay"
ARMS: dict[str, tuple[str, ...]] = {
    "neither": (*NO_MASK, *NO_REPLAY),
    "mask": NO_REPLAY,
    "replay": NO_MASK,
    WHOLE: (),
}
Disturb = Callable[[Any, torch.Generator], AbstractContextManager[None]]


@contextmanager
def bf16_router(moe: Any, generator: torch.Generator) -> Iterator[None]:
    def rounded(x: torch.Tensor) -> torch.Tensor:
        return x.to(torch.bfloat16).float()

    router = moe.router
    router.logits = lambda x: rounded(rounded(x) @ rounded(router.weight).T)  # as a GEMM in bf16, which adds in fp32
    try:
        yield
    finally:
        del router.logits


@contextmanager
def noisy_router(moe: Any, generator: torch.Generator) -> Iterator[None]:
    from trainer.model.numerics import router_weights

    router, genuine = moe.router, moe.router.route

    def route(z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        ids, _ = genuine(z + NOISE * torch.randn(z.shape, generator=generator))
        return ids, router_weights(z, ids, router.gradient, router.temperature)

    router.route = route
    try:
        yield
    finally:
        del router.route


@contextmanager
def bf16_experts(moe: Any, generator: torch.Generator) -> Iterator[None]:
    backend = moe.experts.backend
    assert backend.rounding is None
    backend.rounding = torch.bfloat16
    try:
        yield
    finally:
        backend.rounding = None


# name -> (overrides, what disturbs a layer of the engine)
DISTURBED: dict[str, tuple[tuple[str, ...], Disturb]] = {
    "router in bf16": (PLAIN, bf16_router),
    "masters in FP8": ((*FP8, "rl.fp8_weights=masters"), bf16_experts),
    "selection noise": (PLAIN, noisy_router),
}
ALIGNED: dict[str, tuple[str, ...]] = {"aligned": PLAIN, "aligned, FP8": FP8}
# of a step's line -> name in OUT.json
CURVES = {"mismatch/k3": "k3", "masked": "masked", "replay/flip_rate": "flips", "solve_rate": "solved"}
Curves = dict[str, list[float | None]]


def cells(seeds: int) -> list[tuple[str, str, int]]:
    """(disturbance or name of aligned runs, arm, seed) of every run; all cells of a seed before those of the next."""
    return [
        cell
        for seed in range(seeds)
        for cell in (
            *((name, WHOLE, seed) for name in ALIGNED),
            *((name, arm, seed) for name in DISTURBED for arm in ARMS),
        )
    ]


def words_of(name: str, arm: str, seed: int) -> list[str]:
    """The overrides of `recipe=rl_toy` for a cell."""
    of_name = ALIGNED[name] if name in ALIGNED else DISTURBED[name][0]
    return [*of_name, *ARMS[arm], f"train.seed={seed}"]


def run(name: str, arm: str, seed: int, words: Sequence[str], directory: Path) -> dict[str, Any]:
    """Train a cell in this process. Returns its curves, its held-out accuracy at the end and its CPU-seconds."""
    from trainer.config.compose import compose
    from trainer.run.process import train

    torch.set_num_threads(1)
    fixed = ["train.device=cpu", "logging.console=off", "train.eval_every=0", f"run.dir={directory}"]
    fixed += ["train.steps=200", "optim.lr=3e-3", "model.vocab_size=16"]
    started = time.process_time()
    cfg = compose(["recipe=rl_toy", *fixed, *words_of(name, arm, seed), *words], world_size=1)
    with disturbed(DISTURBED[name][1], seed) if name in DISTURBED else nullcontext():
        status = train(cfg)
    assert status == 0, status
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    evaluation = next(line for line in reversed(lines) if line.get("event") == "evaluation")
    return {
        "curves": curves_of(line for line in lines if "event" not in line),
        "heldout": evaluation["heldout_accuracy"]["reverse"],
        "seconds": round(time.process_time() - started, 1),
    }


@contextmanager
def disturbed(disturb: Disturb, seed: int) -> Iterator[None]:
    """The embedded engine answers with every layer disturbed."""
    from trainer.rl.rollout.embedded import Embedded

    genuine, generator = Embedded.generate, torch.Generator().manual_seed(seed)

    def generate(self: Embedded, *args: Any, **more: Any) -> Any:
        with ExitStack() as stack:
            for block in (block for stage in self.stages for block in stage.blocks):
                stack.enter_context(disturb(block.moe, generator))
            return genuine(self, *args, **more)

    with patch.object(Embedded, "generate", generate):
        yield


def curves_of(lines: Iterable[Mapping[str, Any]]) -> Curves:
    """The curves of a run, three digits of each number; None for a step without trained tokens."""
    found: Curves = {name: [] for name in CURVES.values()}
    for line in lines:
        masked = [line["masked/mis_low"], line["masked/mis_high"]]
        values = {**line, "masked": None if None in masked else sum(masked)}
        for name, short in CURVES.items():
            value = values[name]
            found[short].append(None if value is None else float(f"{value:.3g}"))
    return found


# ---- table and picture


def mean(values: Iterable[float | None]) -> float:
    """The mean of those that there are; nan for none."""
    there = [value for value in values if value is not None]
    return fmean(there) if there else float("nan")


def solved_at(curve: Sequence[float | None]) -> int | None:
    """The last step of the first BLOCK steps with a mean solve rate of 0.9."""
    ends = range(BLOCK, len(curve) + 1)
    return next((end for end in ends if mean(curve[end - BLOCK : end]) >= 0.9), None)


def alarmed_at(curve: Sequence[float | None]) -> int | None:
    """The first step with the alarm of `trainer.rl.alarm`."""
    from trainer.rl.alarm import K3, MismatchAlarm

    alarm = MismatchAlarm()
    return next(
        (step for step, k3 in enumerate(curve, 1) if alarm.fields({"step": step, K3: k3})["mismatch/alarm"]), None
    )


def table(runs: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[str]:
    """Markdown. runs: name -> arm -> seed -> what `run` returns."""
    rows = [
        f"| engine | correction | k3, first {BLOCK} steps | all | largest | alarm at step | masked | flips | "
        f"0.9 solved at step | solved, last {LAST} | held out |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, arms in runs.items():
        for arm, of_seeds in arms.items():
            every = list(of_seeds.values())
            curves = [one["curves"] for one in every]

            def over(short: str, part: slice, curves: list[Curves] = curves) -> float:
                return mean(value for one in curves for value in one[short][part])

            k3 = [f"{over('k3', part):.1e}" for part in (slice(BLOCK), slice(None))]
            largest = max(value for one in curves for value in one["k3"] if value is not None)
            shares = [f"{100 * over(short, slice(None)):.2g} %" for short in ("masked", "flips")]
            alarms, steps = (
                ", ".join(str(find(one[short]) or "-") for one in curves)
                for find, short in ((alarmed_at, "k3"), (solved_at, "solved"))
            )
            ends = [", ".join(f"{value:.2f}" for value in values) for values in (
                [mean(one["solved"][-LAST:]) for one in curves], [one["heldout"] for one in every]
            )]  # fmt: skip
            cells = [
                name,
                "as the recipe" if name in ALIGNED else arm,
                *k3,
                f"{largest:.1e}",
                alarms,
                *shares,
                steps,
                *ends,
            ]
            rows.append(f"| {' | '.join(cells)} |")
    return rows


def picture(runs: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """A row of panels for each disturbance: means over the seeds and BLOCK steps."""
    panels: tuple[tuple[str, str, float | None, Callable[[float], float]], ...] = (
        ("k3", "log10 of k3", 2.0, lambda value: math.log10(max(value, LOWEST))),
        ("masked", "tokens masked, per cent", None, lambda value: 100 * value),
        ("flips", "other sets of experts, per cent", None, lambda value: 100 * value),
        ("solved", "solve rate", 0.2, lambda value: value),
    )
    height, wide = 350, 480
    parts = []
    for row, name in enumerate(DISTURBED):
        parts.append(f'<g transform="translate(0,{40 + row * height})">')
        for column, (short, title, tick, scale) in enumerate(panels):
            shown, curves = {**runs[name]}, {}
            if short == "solved":
                shown["aligned"] = runs["aligned, FP8" if FP8[0] in DISTURBED[name][0] else "aligned"][WHOLE]
            for arm, of_seeds in shown.items():
                every = [one["curves"][short] for one in of_seeds.values()]
                ends = range(BLOCK, len(every[0]) + 1, BLOCK)
                points = [(end, mean(value for one in every for value in one[end - BLOCK : end])) for end in ends]
                curves[arm] = [(end, scale(value)) for end, value in points if value == value]
            most = max(value for curve in curves.values() for _, value in curve)
            between = tick or (10 ** math.floor(math.log10(most)) / 2 if most > 0 else 1.0)
            parts += panel(curves, 50 + column * wide, f"{name}: {title}", between, COLOURS)
        parts.append("</g>")
    legend, left = [], 50
    for arm, colour in zip((*ARMS, "aligned"), COLOURS, strict=False):
        legend.append(f'<text x="{left}" y="25" fill="{colour}" font-weight="bold">{arm}</text>')
        left += 40 + 8 * len(arm)
    size = f"{50 + len(panels) * wide} {40 + len(DISTURBED) * height}"
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size}" font-family="sans-serif" font-size="13">',
            f'<rect width="{size.split()[0]}" height="{size.split()[1]}" fill="white"/>',
            *legend,
            *parts,
            "</svg>\n",
        ]
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", default="", help="of the names of the cells, such as 'aligned'; all if empty")
    parser.add_argument("--out", type=Path, default=Path("docs/rl_mismatch"), help="overwritten, .json and .svg")
    parser.add_argument(
        "--runs", type=Path, default=Path("runs/rl_mismatch"), help="where cells that are done are kept"
    )
    parser.add_argument("words", nargs="*", help="overrides of all runs")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    args.runs.mkdir(parents=True, exist_ok=True)
    fresh = multiprocessing.get_context("spawn")
    runs: dict[str, dict[str, dict[str, Any]]] = {}
    for name, arm, seed in cells(args.seeds):
        if args.only and args.only not in name:
            continue
        kept = args.runs / f"{name}, {arm}, {seed}.json".replace(" ", "_")
        if not kept.exists():
            with tempfile.TemporaryDirectory() as place, fresh.Pool(1) as pool:
                found = pool.apply(run, (name, arm, seed, args.words, Path(place) / "run"))
            finished = kept.with_suffix(".tmp")
            finished.write_text(json.dumps(found))
            finished.replace(kept)
            k3, solved = (found["curves"][short] for short in ("k3", "solved"))
            print(f"{name}, {arm}, seed {seed}: k3 {mean(k3):.1e}, solved {mean(solved[-BLOCK:]):.2f}, "
                  f"{found['seconds']} CPU-s", flush=True)  # fmt: skip
        runs.setdefault(name, {}).setdefault(arm, {})[str(seed)] = json.loads(kept.read_text())
    print(*table(runs), sep="\n")
    if not args.only:
        device = f"{cpu_name()}, torch {torch.__version__}"
        whole = {"device": device, "noise": NOISE, "words": args.words, "runs": runs}
        args.out.with_suffix(".json").write_text(json.dumps(whole) + "\n")
        args.out.with_suffix(".svg").write_text(picture(runs))
    return 0


if __name__ == "__main__":
    sys.exit(main())
