"""Checks what `make toy` promises, on the newest run: held-out loss that falls on every source, at least 2.0 nats below
a uniform guess and 1.0 nat below a unigram model of the same corpus. Prints the table of docs/training.md.
"""

import json
import sys
from pathlib import Path


def main() -> int:
    record = max(Path("runs").glob("toy-*/metrics.jsonl"), key=lambda path: path.stat().st_mtime)
    evaluations = [line for line in map(json.loads, record.open()) if line.get("event") == "evaluation"]
    first, last = evaluations[0], evaluations[-1]
    print(f"{record}\n\n| source | unigram | after {first['step']} steps | after {last['step']} steps |")
    print("|---|---|---|---|")
    short = []
    for source, loss in last["heldout"].items():
        print(f"| {source} | {last['unigram'][source]:.2f} | {first['heldout'][source]:.2f} | {loss:.2f} |")
        if loss > min(last["uniform"] - 2.0, last["unigram"][source] - 1.0) or loss >= first["heldout"][source]:
            short.append(source)
    print(f"\nuniform: {last['uniform']:.2f}")
    if short:
        print(f"held-out loss is not low enough on: {', '.join(short)}", file=sys.stderr)
    return 1 if short else 0


if __name__ == "__main__":
    sys.exit(main())
