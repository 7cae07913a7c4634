"""Run every layout, schedule and option against one process, and print a row for each layout and schedule: an hour or
two on two cores. docs/pipeline.md has the largest numbers of each layout. With --pairs only the covering set.

    make test-layouts
    make test-layouts ARGS=--pairs
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import defaultdict

from tests.trainer.stages.covering import cover, pairs_of
from tests.trainer.stages.layouts import Case, Errors
from tests.trainer.stages.matrix import REPLICATED, calls, case_of, faults, product_of_options, run_cases


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", action="store_true", help="each pair of two options once")
    choices = product_of_options()
    if parser.parse_args().pairs:
        choices = cover(choices, pairs_of)
    else:
        choices += cover(product_of_options(REPLICATED), pairs_of)
    cases, found, wrong = [case_of(choice) for choice in choices], [], []
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
    print(table(found))
    print(f"\n{len(found)} steps, {len(wrong)} faults, {time.monotonic() - start:.0f} s")
    print("\n".join(wrong), file=sys.stderr)
    return int(bool(wrong) or len(found) < len(cases))


def table(found: list[tuple[Case, Errors]]) -> str:
    """Rows in markdown: the largest differences of each layout under each schedule."""
    rows: dict[tuple[str, str], list[tuple[Case, Errors]]] = defaultdict(list)
    for case, of_case in found:
        name, per_rank = case.schedule
        rows[str(case.layout), name + (f", {per_rank} a rank" if case.layout.pp > 1 else "")].append((case, of_case))
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
