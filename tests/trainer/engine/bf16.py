"""Generation in exact arithmetic with bf16 activations, beside training forward passes over the same tokens.

    python -m tests.trainer.engine.bf16

Prints a table of the differences of log-probabilities. k3 is the mean of exp(d) - 1 - d, with d the difference.

Experts are 20 or 24 wide. A block of experts 20 wide is too small a product for the bf16 instructions of some CPUs, and
is computed without them where it is alone (`trainer.model.exact.check`).
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
import torch

from tests.bench.step import cpu_name
from tests.trainer.engine.asked import Trained, requests, serve
from tests.trainer.model.tiny import build, model_config
from trainer.engine.engine import Engine
from trainer.model.decoder import Decoder
from trainer.model.exact.switch import make_exact

REQUESTS, WIDTHS = 64, (20, 24)


@dataclass(frozen=True)
class Differences:
    """Differences of log-probabilities. tokens: the number of generated ones. differing: those whose bits differ. mean,
    largest: of absolute differences. routes: the share of tokens, prompts' too, whose routes are equal."""

    tokens: int
    differing: int
    mean: float
    largest: float
    k3: float
    routes: float


def usual(width: int) -> Decoder:
    """width: of an expert."""
    cfg = model_config(max_position=400, expert_width=width)
    return build(cfg, compute_dtype=torch.bfloat16).requires_grad_(False)


def compare(width: int) -> dict[str, Differences]:
    """By the arithmetic of the training pass."""
    rng = random.Random(2)
    exact = make_exact(usual(width))
    answers = serve(Engine(exact, batch=9, chunk=40), requests(exact.cfg, REQUESTS, rng, longest=30), rng)
    sequences = [[*answers[one].prompt, *answers[one].ids] for one in range(REQUESTS)]
    found = {}
    for name, model in (("exact", exact), ("usual", usual(width))):
        trained, parts, equal = Trained(model, sequences), [], []
        for one in range(REQUESTS):
            log_probs, routes = trained.of(one, len(answers[one].prompt))
            parts.append(log_probs - answers[one].log_probs)
            equal.append((routes == answers[one].routes).all((1, 2)))
        difference = np.concatenate(parts).astype(np.float64)
        found[name] = Differences(
            len(difference),
            int((difference != 0).sum()),
            float(np.abs(difference).mean()),
            float(np.abs(difference).max()),
            float((np.exp(difference) - 1 - difference).mean()),
            float(np.concatenate(equal).mean()),
        )
    return found


def main() -> None:
    torch.set_num_threads(1)
    print(f"{cpu_name()}, 1 thread, torch {torch.__version__}; {REQUESTS} sequences")
    print("| expert width | training pass | tokens | that differ | mean of abs(d) | largest | k3 | equal routes |")
    print("|---|---|---|---|---|---|---|---|")
    for width in WIDTHS:
        for name, of in compare(width).items():
            print(
                f"| {width} | {name} arithmetic | {of.tokens} | {of.differing} | {of.mean:.1e} | {of.largest:.2g} "
                f"| {of.k3:.1e} | {100 * of.routes:.2f} % |"
            )


if __name__ == "__main__":
    main()
