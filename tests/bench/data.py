"""The data path beside Megatron-core's, on one CPU thread.

    python -m tests.bench.data [--sections index,reading,media] [--rounds 3] [--quick] [--json FILE]

index: what a run on six trillion tokens starts with (`tests/bench/data_index.py`).
reading: random packs of tokens with their document boundaries (`tests/bench/data_reading.py`).
media: images and signals in random order, and the memory that they take (`tests/bench/data_media.py`).
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Each prints a table and returns its figures: (quick, rounds).
Section = Callable[..., dict[str, Any]]


def index(*, quick: bool, rounds: int) -> dict[str, Any]:
    from tests.bench import data_index

    return data_index.report(quick=quick, rounds=rounds)


def reading(*, quick: bool, rounds: int) -> dict[str, Any]:
    from tests.bench import data_reading

    return data_reading.report(quick=quick, rounds=rounds)


def media(*, quick: bool, rounds: int) -> dict[str, Any]:
    from tests.bench import data_media

    return data_media.report(quick=quick, rounds=rounds)


SECTIONS: dict[str, Section] = {"index": index, "reading": reading, "media": media}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sections", default=",".join(SECTIONS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="small sizes, 1 round")
    parser.add_argument("--json", type=Path, help="write the figures there")
    args = parser.parse_args()
    unknown = set(args.sections.split(",")) - set(SECTIONS)
    if unknown:
        parser.error(f"no section {', '.join(sorted(unknown))}; use {', '.join(SECTIONS)}")
    os.environ["OMP_NUM_THREADS"] = "1"
    from tests.bench.step import cpu_name

    print(f"{cpu_name()}, {os.cpu_count()} cores, 1 thread", flush=True)
    rounds = 1 if args.quick else args.rounds
    results = {name: SECTIONS[name](quick=args.quick, rounds=rounds) for name in args.sections.split(",")}
    if args.json:
        args.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
