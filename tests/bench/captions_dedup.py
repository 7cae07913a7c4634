"""Search for copies among crops: seconds and memory for many hashes, and copies found among drawn figures.

    python -m tests.bench.captions_dedup                         10^6 hashes, each distance in a fresh process
    python -m tests.bench.captions_dedup --hashes 1e7
    python -m tests.bench.captions_dedup --hashes 0 --figures 1  drawn figures; takes about five CPU-minutes

Hashes are random but for a quarter, which are within 4 bits of others, and a tenth, which are equal. The search of
10^4 is checked against a comparison of all pairs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from tests.trainer.corpora.captions.dedup import drawn
from tests.trainer.corpora.captions.dedup.hashed import collected, compared_all, hashes
from trainer.corpora.captions.dedup.stage import DISTANCES

CHECKED = 10_000
SEARCHED = sorted({4, *DISTANCES.values()})  # bits: of the goal, and of the stage
FIGURES = {"peak": 60, "spectrum": 12, "sines": 40, "bars": 12, "scatter": 12, "heat": 24, "logo": 12}
SEARCH = """
import sys, time
from pathlib import Path
import numpy as np
from trainer.corpora.captions.dedup.search import near_pairs

values, start = np.fromfile(sys.argv[1], np.uint64), time.process_time()
different = np.unique(values)
pairs = sum(len(first) for first, _ in near_pairs(different, int(sys.argv[2])))
status = Path("/proc/self/status").read_text().splitlines()
peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM:")) / 1024
print(len(values), len(different), pairs, time.process_time() - start, peak)
"""


def search(count: int, distance: int) -> dict[str, Any]:
    """Search in a fresh process. seconds: of CPU, sorting included. peak: MiB of the process."""
    found = hashes(count * 9 // 10, "even")
    random = np.random.default_rng(1)
    values = random.permutation(np.concatenate([found, found[random.integers(0, len(found), count - len(found))]]))
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "hashes")
        values.tofile(path)
        command = [sys.executable, "-c", SEARCH, str(path), str(distance)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    hashed, different, pairs, seconds, peak = map(json.loads, done.stdout.split())
    return {"hashes": hashed, "different": different, "pairs": pairs, "seconds": seconds, "peak": peak}


def all_found(distance: int, count: int = CHECKED) -> int:
    """Compare the pairs of a search with those of comparing all, and return their number."""
    found = hashes(count, "even")
    expected = compared_all(found, distance)
    assert collected(found, distance) == expected
    return len(expected)


def figures(share: float) -> None:
    """Print what the stage does with figures of each style. share: of FIGURES."""
    counts = {kind: max(1, round(count * share)) for kind, count in FIGURES.items()}
    print("\n| style | crops | copies removed | figures lost | CPU-s a crop, drawing included |\n|---|---|---|---|---|")
    held_out: list[drawn.Judged] = []
    for style in (*drawn.TUNED, *drawn.HELD_OUT):
        with tempfile.TemporaryDirectory() as directory:
            start = time.process_time()
            one = drawn.judged(Path(directory), [style], counts, drawn.COPIES)
            seconds = (time.process_time() - start) / one.crops
        if style in drawn.HELD_OUT:
            held_out.append(one)
        tuned = " (tuned on)" if style in drawn.TUNED else ""
        print(_row(f"{style}{tuned}", [one]), f"{seconds:.3f} |", flush=True)
        if one.left:
            print(f"  not removed: {one.left}", flush=True)
    print(_row("together, but for those tuned on", held_out), "|")


def _row(name: str, found: list[drawn.Judged]) -> str:
    crops, copies, removed = (sum(getattr(one, of) for one in found) for of in ("crops", "copies", "removed"))
    different, lost = sum(one.figures for one in found), sum(one.lost for one in found)
    shares = f"{removed} of {copies} ({removed / copies:.1%}) | {lost} of {different} ({lost / different:.1%})"
    return f"| {name} | {crops} | {shares} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hashes", type=float, default=1e6, help="default: 1e6")
    parser.add_argument("--figures", type=float, default=0.0, help="share of the figures that are drawn (default: 0)")
    options = parser.parse_args()
    if options.hashes:
        for distance in SEARCHED:
            print(f"{CHECKED:,} hashes: all {all_found(distance):,} pairs within {distance} bits found", flush=True)
            found = search(int(options.hashes), distance)
            hashed = f"{found['hashes']:,} hashes ({found['different']:,} different)"
            pairs = f"{found['pairs']:,} pairs within {distance} bits"
            cost = f"{found['seconds']:.1f} CPU-seconds, peak {found['peak']:.0f} MiB"
            print(f"{hashed}, {pairs}: {cost}", flush=True)
    if options.figures:
        figures(options.figures)


if __name__ == "__main__":
    main()
