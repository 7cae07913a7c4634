"""Patches of ranks whose images differ in size, with `parallel.balance_towers` and without.

    python -m tests.bench.balance [--seeds 200] [--ranks 8] [--images 16]     (a part of make bench-towers)

The area of an image is drawn: its log is normal with sigma 1, around the middle of the range that Intern-S1-Pro's
processor scales images into, and below and above it; areas outside are clamped to the range. Sides are up to 2:1, and
become whole patches by `PatchRule`. The least that any division into whole images can reach is the larger of 1 and the
largest image over the mean.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from parallel.balance.assign import assign
from parallel.balance.moves import Grid
from trainer.data.media.images import PatchRule

RULE = PatchRule()
MIDDLE = 1 << 20  # pixels; 256 patches of 64 x 64 to 65,536 are in the range
MEDIANS = (1 << 18, MIDDLE, 1 << 22)


def drawn(seed: int, ranks: int = 8, images: int = 16, median: int = MIDDLE) -> list[list[Grid]]:
    """The grids of each rank's images."""
    random = np.random.default_rng(seed)
    areas = np.clip(median * np.exp(random.standard_normal((ranks, images))), RULE.min_pixels, RULE.max_pixels)
    shapes = 2 ** random.uniform(-1, 1, areas.shape)
    heights = np.sqrt(areas * shapes)
    return [
        [RULE.grid(round(height), round(area / height)) for height, area in zip(*of_rank, strict=True)]
        for of_rank in zip(heights, areas, strict=True)
    ]


class Spread(NamedTuple):
    """Figures of one micro-batch: largest over mean patches of a rank without and with, the largest image over the
    mean, the share of the patches that move to another rank, and CPU-seconds of the assignment."""

    without: float
    balanced: float
    largest_image: float
    moved: float
    seconds: float


def measure(grids: list[list[Grid]]) -> Spread:
    sizes = [[rows * columns for rows, columns in of_rank] for of_rank in grids]
    start = time.process_time()
    owners = assign(sizes)
    seconds = time.process_time() - start
    loads, moved = [0] * len(sizes), 0
    for home, of_rank in enumerate(sizes):
        for size, rank in zip(of_rank, owners[home], strict=True):
            loads[rank] += size
            moved += size * (rank != home)
    mean, largest = sum(loads) / len(loads), max(max(of_rank) for of_rank in sizes)
    return Spread(max(map(sum, sizes)) / mean, max(loads) / mean, largest / mean, moved / sum(loads), seconds)


def table(found: Iterable[Spread]) -> str:
    """Means, and the largest in brackets."""
    columns = [*zip(*found, strict=True)]
    loads = [f"{statistics.mean(values):.3f} ({max(values):.3f})" for values in columns[:3]]
    within = sum(load <= max(1.05, image) for load, image in zip(columns[1], columns[2], strict=True))
    moved, ms = statistics.mean(columns[3]), statistics.mean(columns[4]) * 1e3
    return f"{' | '.join(loads)} | {within} of {len(columns[1])} | {moved:.0%} | {ms:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--images", type=int, default=16)
    args = parser.parse_args()
    print(f"{args.ranks} ranks, {args.images} images each, {args.seeds} draws; largest over mean, means (largest)")
    print("| median pixels | without | balanced | largest image | within 1.05 or it | moved patches | CPU ms |")
    print("|---|---|---|---|---|---|---|")
    for median in MEDIANS:
        found = [measure(drawn(seed, args.ranks, args.images, median)) for seed in range(args.seeds)]
        print(f"| {median:,} | {table(found)} |", flush=True)


if __name__ == "__main__":
    main()
