"""Muon against AdamW on one CPU thread: the time of a step, and the held-out losses of small runs.

    python -m tests.bench.muon step [--rounds 5] [--tokens 16384] [--quick]
    python -m tests.bench.muon study DIR [KEY=VALUE ...] [--steps 200] [--shorter 0.75] [--rates 2e-3,4e-3,8e-3]

`step`: whole steps of the toy, forward, backward and the engine's update, in fp32 on synthetic tokens. Both models are
in one process and take turns; figures are CPU time, the ratio is the median of the rounds' own ratios.

`study`: recipe=toy, changed by the overrides, with AdamW for `steps` steps and with Muon for `shorter` of them, each at
every rate with its whole schedule, from one seed on one corpus. A run that is finished in DIR is not repeated. The
table has the mean over the sources of the held-out losses in nats after the last step.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from parallel.world import World
from tests.bench.step import cpu_name
from trainer.config.compose import compose
from trainer.config.keys import Config
from trainer.data.synthetic import open_synthetic
from trainer.model.decoder import Decoder
from trainer.objectives.base import GlobalBatch
from trainer.objectives.next_token import NextToken
from trainer.optim.native import NativeEngine
from trainer.run.host_memory import prepare_host_memory
from trainer.run.process import train

ARMS = ("adamw", "muon")


class Arm:
    """One model with its engine."""

    def __init__(self, cfg: Config) -> None:
        with torch.device("meta"):
            self.model = Decoder(cfg.model)
        self.model.to_empty(device="cpu")
        self.model.init_weights(0)
        self.engine = NativeEngine(self.model, cfg.optim, World())
        self.engine.prepare()
        self.cfg, self.steps = cfg, 0

    def step(self) -> tuple[float, float]:
        """CPU-seconds of one step, and of its update alone."""
        train, data = (
            self.cfg.train,
            open_synthetic(vocab_size=self.cfg.model.vocab_size, seq_len=self.cfg.data.seq_len, seed=0),
        )
        batches = [
            data.stream.batch(first, train.micro_batch) for first in range(0, train.global_batch, train.micro_batch)
        ]
        whole, objective = GlobalBatch(train.global_batch * self.cfg.data.seq_len, len(batches)), NextToken(chunk=512)
        self.steps += 1
        start = time.process_time()
        for batch in batches:
            self.engine.backward(objective(self.model, batch, whole).total)
        middle = time.process_time()
        self.engine.step(self.steps, 1000)
        end = time.process_time()
        return end - start, end - middle


def measure(rounds: int, tokens: int) -> dict[str, list[tuple[float, float]]]:
    """CPU-seconds of a step and of its update, of every round, by arm."""
    sequences = tokens // compose(["recipe=toy"]).data.seq_len
    arms = {name: Arm(compose(["recipe=toy", f"optim={name}", f"train.global_batch={sequences}"])) for name in ARMS}
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in ARMS}
    for number in range(rounds + 1):
        for name in ARMS if number % 2 else reversed(ARMS):
            found = arms[name].step()
            if number:  # the first round warms up
                taken[name].append(found)
    return taken


def bench_step(rounds: int, tokens: int) -> None:
    prepare_host_memory()
    taken = measure(rounds, tokens)
    print(f"{cpu_name()}, 1 thread, torch {torch.__version__}, fp32; CPU time, medians of {rounds} rounds")
    for name, figures in taken.items():
        step, update = (1e3 * statistics.median(column) for column in zip(*figures, strict=True))
        print(f"{name:<8}{step:>10.0f} ms a step of {tokens} tokens{update:>10.0f} ms its update", flush=True)
    ratios = [muon[0] / adamw[0] for muon, adamw in zip(taken["muon"], taken["adamw"], strict=True)]
    print(f"muon over adamw: {statistics.median(ratios):.3f} (rounds {min(ratios):.3f} to {max(ratios):.3f})")


def final_loss(directory: Path, words: Sequence[str]) -> float:
    """The mean of the held-out losses at the end of the run in `directory`, which is trained if it is not there."""
    options = ["train.eval_every=0", "train.sample_tokens=0", "checkpoint.every=0", "logging.console=off"]
    cfg = compose(["recipe=toy", *options, f"run.dir={directory}", *words])
    log = directory / "metrics.jsonl"
    if not (log.exists() and '"event": "evaluation"' in log.read_text()):
        assert train(cfg) == 0, f"the run in {directory} failed"
    records = [json.loads(line) for line in log.read_text().splitlines()]
    last = [record for record in records if record.get("event") == "evaluation"][-1]
    return statistics.fmean(last["heldout"].values())


def study(directory: Path, steps: int, shorter: float, rates: Sequence[str], words: Sequence[str]) -> None:
    print("| learning rate | " + " | ".join(f"{name}, {n} steps" for name, n in lengths(steps, shorter)) + " |")
    print("|---" * (1 + len(ARMS)) + "|")
    best = dict.fromkeys(ARMS, float("inf"))
    for rate in rates:
        row = []
        for name, count in lengths(steps, shorter):
            chosen = [f"optim={name}", f"optim.lr={rate}", f"train.steps={count}", *words]
            row.append(final_loss(directory / f"{name}-{count}-{rate}", chosen))
            best[name] = min(best[name], row[-1])
        print(f"| {rate} | " + " | ".join(f"{loss:.3f}" for loss in row) + " |", flush=True)
    print("| best | " + " | ".join(f"{best[name]:.3f}" for name in ARMS) + " |")


def lengths(steps: int, shorter: float) -> list[tuple[str, int]]:
    """Steps of each arm."""
    return [("adamw", steps), ("muon", round(shorter * steps))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    of_step = commands.add_parser("step")
    of_step.add_argument("--rounds", type=int, default=5)
    of_step.add_argument("--tokens", type=int, default=16384)
    of_step.add_argument("--quick", action="store_true", help="1 round of 2048 tokens")
    of_study = commands.add_parser("study")
    of_study.add_argument("directory", type=Path)
    of_study.add_argument("--steps", type=int, default=200)
    of_study.add_argument("--shorter", type=float, default=0.75)
    of_study.add_argument("--rates", default="2e-3,4e-3,8e-3")
    of_study.add_argument("words", nargs="*", metavar="KEY=VALUE")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.command == "step":
        bench_step(1 if args.quick else args.rounds, 2048 if args.quick else args.tokens)
    else:
        study(args.directory, args.steps, args.shorter, args.rates.split(","), args.words)


if __name__ == "__main__":
    main()
