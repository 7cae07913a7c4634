"""Learning to use a calculator: solve rates with and without it, for docs/rewards.md.

    python -m tests.bench.rl_tools [--seeds 3] [--steps N] [--runs DIR]     # CPU-minutes on one core for each seed

Two runs a seed, of recipe=rl_tools_toy, alike but for the calculator: one has it, the other answers in one turn, with
the same reward for its answer. Both start from the weights of recipe=rl_tools_toy_calls, which saw a quarter of the
dialogues. Solved is a held-out product that the most likely answer has right, to the last digit.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from trainer.api import export
from trainer.config.compose import compose
from trainer.run.process import train

RECIPE, CALLS = "rl_tools_toy", "rl_tools_toy_calls"
WITHOUT = ["rl.environment=", "rl.max_tokens=6"]  # four digits and the end of the answer fit


@dataclass(frozen=True)
class Result:
    """rates: of held-out questions solved, by step. calls: of the calculator for each rollout of the last step."""

    rates: dict[int, float]
    calls: float
    cpu_s: float

    @property
    def last(self) -> float:
        return self.rates[max(self.rates)]


def run(recipe: str, directory: Path, words: list[str]) -> float:
    """Train once. words: override the recipe. Returns the CPU-seconds."""
    started = time.process_time()
    given = [f"run.dir={directory}", f"data.cache_dir={directory.parent / 'cache'}", "train.device=cpu"]
    if train(compose([f"recipe={recipe}", "logging.console=off", *given, *words], world_size=1)):
        raise SystemExit(f"error: {directory} did not finish")
    return time.process_time() - started


def first_lesson(directory: Path, seed: int) -> Path:
    """Fine-tune on a quarter of the dialogues. Returns where the weights are."""
    weights = directory.with_name(f"{directory.name}-weights")
    run(CALLS, directory, [f"train.seed={seed}"])
    export(directory, weights, dtype="fp32")
    return weights


def learn(directory: Path, words: list[str]) -> Result:
    """Train on rewards. words: override the recipe."""
    spent = run(RECIPE, directory, words)
    records = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    rates = {one["step"]: one["heldout_accuracy"]["products"] for one in records if "heldout_accuracy" in one}
    steps = [one for one in records if "event" not in one]
    return Result(rates, steps[-1].get("tools/calls", 0.0), spent)


def table(results: list[tuple[int, Result, Result]]) -> Iterator[str]:
    """Markdown. results: seed, with the calculator, without it."""
    yield "| seed | solved with the calculator | calls a rollout | CPU-seconds | solved without it | CPU-seconds |"
    yield "|---|---|---|---|---|---|"
    for seed, tool, plain in results:
        yield (
            f"| {seed} | {tool.last:.0%} | {tool.calls:.2f} | {tool.cpu_s:.0f} | {plain.last:.0%} | {plain.cpu_s:.0f} |"
        )
    yield ""
    steps = sorted(results[0][1].rates)
    yield f"| solved at step | {' | '.join(map(str, steps))} |"
    yield f"|{'---|' * (len(steps) + 1)}"
    for seed, tool, plain in results:
        for name, one in (("with", tool), ("without", plain)):
            yield f"| seed {seed}, {name} | {' | '.join(f'{one.rates[step]:.0%}' for step in steps)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--runs", type=Path)
    options = parser.parse_args()
    words = [] if options.steps is None else [f"train.steps={options.steps}"]
    with tempfile.TemporaryDirectory() as scratch:
        runs = options.runs or Path(scratch)
        results = []
        for seed in range(options.seeds):
            start = first_lesson(runs / f"lesson-{seed}", seed)
            given = [*words, f"train.seed={seed}", f"checkpoint.init_from={start}"]
            tool = learn(runs / f"with-{seed}", given)
            results.append((seed, tool, learn(runs / f"without-{seed}", [*given, *WITHOUT])))
    print(f"{platform.processor() or platform.machine()}, one thread")
    print("\n".join(table(results)))


if __name__ == "__main__":
    main()
