"""Run every layout, schedule and option against one process, and print a row for each layout and schedule: two hours or
more on two cores. docs/pipeline.md has the largest numbers of each layout.

    make test-layouts
    make test-layouts ARGS="--sets halves,kinds"
    make test-layouts ARGS="--sets towers --part 2/4"
    make test-layouts ARGS=--pairs

--sets: parts of the whole. blocks: the whole product of layouts and options, but for recomputing half a block and
without towers. halves: each pair of these and another option. kinds: layouts of context parallelism with the other
kind, each pair of options. towers: up to 8 ranks, each pair of options, with images and signals in all steps. replicas:
more layouts on 12 and 16 ranks, each pair.
--part: the second of four parts of these steps.
--pairs: each pair of two options once. It fails if it takes more CPU-seconds than two cores have in three minutes.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import defaultdict
from itertools import chain

from tests.distributed.pool import on_ranks
from tests.trainer.stages.layouts import Case, Errors
from tests.trainer.stages.matrix import HALVES, SETS, calls, case_of, faults, pairs_of_options, run_cases

CORES, MOST_S = 2, 180  # on which, and in how many seconds, CI runs each pair


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", action="store_true", help="each pair of two options once")
    parser.add_argument("--sets", default=",".join(SETS), help="parts of the whole (default: all)")
    parser.add_argument("--part", default="1/1", help="such as 2/4: the second of four parts (default: all)")
    options = parser.parse_args()
    part, parts = (int(number) for number in options.part.split("/"))
    if unknown := [name for name in options.sets.split(",") if name not in SETS]:
        parser.error(f"--sets={','.join(unknown)}; use {', '.join(SETS)}")
    choices = chain.from_iterable(SETS[name]() for name in options.sets.split(","))
    cases = [*map(case_of, pairs_of_options() if options.pairs else choices)]
    cases.sort(key=lambda case: case.layout)  # so that a part has all steps of most of its layouts
    cases = cases[len(cases) * (part - 1) // parts : len(cases) * part // parts]
    found: list[tuple[Case, Errors]] = []
    wrong: list[str] = []
    start = time.monotonic()
    for alike in calls(cases):
        try:
            results = run_cases(alike, timeout_s=600.0)
        except AssertionError as error:
            wrong.append(f"{[*map(str, alike)]}: {error}")
            continue
        found += results
        wrong += [fault for case, of_case in results for fault in faults(case, of_case)]
        print(f"{len(found)} of {len(cases)}, {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
    cpu = cpu_seconds(max(case.layout.ranks for case in cases))
    print(table(found))
    print(f"\n{len(found)} steps, {len(wrong)} faults, {time.monotonic() - start:.0f} s, {cpu:.0f} CPU-seconds")
    if options.pairs and cpu > CORES * MOST_S:
        wrong.append(f"{cpu:.0f} CPU-seconds are more than the {CORES * MOST_S} of {CORES} cores in {MOST_S} s")
    print("\n".join(wrong), file=sys.stderr)
    return int(bool(wrong) or len(found) < len(cases))


def cpu_seconds(ranks: int) -> float:
    """CPU-seconds of this process and of the ranks of all steps so far."""
    of_ranks = dict(on_ranks(ranks, _process_seconds))
    return sum((of_ranks | dict([_process_seconds()])).values())


def _process_seconds() -> tuple[int, float]:
    return os.getpid(), time.process_time()


def table(found: list[tuple[Case, Errors]]) -> str:
    """Rows in markdown: the largest differences of each layout under each schedule."""
    rows: dict[tuple[str, str], list[tuple[Case, Errors]]] = defaultdict(list)
    for case, of_case in found:
        name, per_rank = case.schedule
        half = ", half a block recomputed" if case.recompute in HALVES else ""
        schedule = name + (f", {per_rank} a rank" if case.layout.pp > 1 else "")
        rows[str(case.layout) + half, schedule].append((case, of_case))
    lines = [
        "| layout | schedule | steps | loss | norm | gradients | of fp8_reference |",
        "|---|---|---|---|---|---|---|",
    ]
    for (layout, schedule), results in rows.items():
        exact = [of_case for case, of_case in results if case.experts == "fp32"]
        rounded = [of_case.grads for case, of_case in results if case.experts != "fp32"]
        shown = [f"{max(values):.0e}" if values else "" for values in (*zip(*(e[:3] for e in exact), strict=True),)]
        shown = shown or ["", "", ""]
        last = f"{max(rounded):.0e}" if rounded else ""
        lines.append(f"| {layout} | {schedule} | {len(results)} | {' | '.join(shown)} | {last} |")
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
