"""The cost of exact arithmetic: a training step, and a forward pass, in it and in the usual one, on one CPU thread.

    python -m tests.bench.exact [--shapes toy,medium] [--rounds 7]

Both take turns in one process on the same weights and tokens, in fp32. Figures are CPU time; the ratios are medians of
the rounds' own ratios.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from tests.bench.step import Shape, cpu_name, median_ratio, shapes, tokens_of
from trainer.model.decoder import Decoder
from trainer.model.exact.switch import make_exact
from trainer.objectives.next_token import chunked_cross_entropy
from trainer.run.host_memory import prepare_host_memory


def models(shape: Shape) -> dict[str, Decoder]:
    made = {}
    for name in ("usual", "exact"):
        model = Decoder(shape.model)
        model.init_weights(0)
        made[name] = model if name == "usual" else make_exact(model)
    return made


def forward(model: Decoder, shape: Shape) -> None:
    with torch.no_grad():
        model(tokens_of(shape)[0])


def step(model: Decoder, shape: Shape) -> None:
    ids, labels = tokens_of(shape)
    assert model.lm_head is not None
    hidden = model(ids).hidden.flatten(0, 1)
    chunked_cross_entropy(hidden, model.lm_head, labels.flatten(), 512).backward()
    model.zero_grad(set_to_none=True)


WORK: dict[str, Callable[[Decoder, Shape], None]] = {"forward": forward, "forward and backward": step}


def measure(shape: Shape, rounds: int) -> dict[str, tuple[list[float], list[float]]]:
    """CPU-seconds of every round, usual and exact, by the work."""
    made, found = models(shape), {}
    for name, work in WORK.items():
        seconds: dict[str, list[float]] = {arm: [] for arm in made}
        for number in range(rounds + 1):
            for arm, model in made.items():
                start = time.process_time()
                work(model, shape)
                if number:  # the first round warms up
                    seconds[arm].append(time.process_time() - start)
        found[name] = (seconds["usual"], seconds["exact"])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="toy")
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(1)
    prepare_host_memory()
    print(f"{cpu_name()}, 1 thread, torch {torch.__version__}, fp32; CPU time, medians of {args.rounds} rounds")
    print("| shape | work | usual ms | exact ms | exact over usual |\n|---|---|---|---|---|")
    for name, shape in shapes().items():
        if name in args.shapes.split(","):
            for work, (usual, exact) in measure(shape, args.rounds).items():
                ms = [1e3 * statistics.median(values) for values in (usual, exact)]
                print(
                    f"| {name} | {work} | {ms[0]:.0f} | {ms[1]:.0f} | {median_ratio(exact, usual):.2f}x |", flush=True
                )


if __name__ == "__main__":
    main()
