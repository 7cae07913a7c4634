"""Patches of ranks whose images differ in size, with `parallel.balance_towers` and without.

    python -m tests.bench.balance [--seeds 200] [--ranks 8] [--images 16]     (a part of make bench-towers)

The area of an image is drawn: its log is normal with sigma 1, around the middle of the range that Intern-S1-Pro's
processor scales images into, and below and above it; areas outside are clamped to the range. Sides are up to 2:1, and
become whole patches by `PatchRule`. No division into whole images is below the largest image over the mean, or 1,
if that is more (`at least`). FLOPs are those of the tower of Intern-S1-Pro, attention included.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from parallel.balance.assign import assign, loads
from parallel.balance.moves import Grid
from trainer.config.model import VisionConfig
from trainer.data.media.balance import patches_cost
from trainer.data.media.images import PatchRule

RULE = PatchRule()
VISION = VisionConfig(
    width=1024, num_layers=24, num_heads=16, mlp_width=4096, channels=3, frames=2, patch_size=16, merge=2,
    position_side=48, out_width=4096,
)  # fmt: skip
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
    """Figures of one micro-batch: largest over mean of a rank without and with, and the least possible, of patches and
    of FLOPs; the share of the patches that move to another rank; CPU-seconds of the assignment."""

    patches: tuple[float, float, float]
    flops: tuple[float, float, float]
    moved: float
    seconds: float


def measure(grids: list[list[Grid]]) -> Spread:
    sizes = [[rows * columns for rows, columns in of_rank] for of_rank in grids]
    costs = [[patches_cost(VISION, patches) for patches in of_rank] for of_rank in sizes]
    start = time.process_time()
    owners = assign(sizes, costs)
    seconds = time.process_time() - start
    stays = [[rank] * len(of_rank) for rank, of_rank in enumerate(sizes)]
    moved = sum(
        size
        for rank, of_rank in enumerate(sizes)
        for size, owner in zip(of_rank, owners[rank], strict=True)
        if owner != rank
    )
    found = []
    for numbers in (sizes, costs):
        mean = sum(map(sum, numbers)) / len(numbers)
        before, after = (max(loads(numbers, of_items)) / mean for of_items in (stays, owners))
        found.append((before, after, max(1.0, max(map(max, numbers)) / mean)))
    return Spread(found[0], found[1], moved / sum(map(sum, sizes)), seconds)


def table(found: Sequence[Spread]) -> str:
    """Means, and the largest in brackets."""
    columns = [*zip(*(one.patches for one in found), strict=True), *zip(*(one.flops for one in found), strict=True)]
    means = [f"{statistics.mean(values):.2f} ({max(values):.2f})" for values in columns]
    within = sum(balanced <= max(1.05, image) for _, balanced, image in (one.patches for one in found))
    moved, seconds = (
        statistics.mean(values) for values in ([one.moved for one in found], [one.seconds for one in found])
    )
    return " | ".join([*means[:3], f"{within} of {len(found)}", *means[3:], f"{moved:.0%}", f"{seconds * 1e3:.1f}"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--images", type=int, default=16)
    args = parser.parse_args()
    print(f"{args.ranks} ranks, {args.images} images each, {args.seeds} draws; largest over mean: means (largest)")
    kinds = "without | balanced | at least"
    print(f"| median pixels | patches: {kinds} | within 1.05 or that | FLOPs: {kinds} | moved | CPU ms |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for median in MEDIANS:
        found = [measure(drawn(seed, args.ranks, args.images, median)) for seed in range(args.seeds)]
        print(f"| {median:,} | {table(found)} |", flush=True)


if __name__ == "__main__":
    main()
