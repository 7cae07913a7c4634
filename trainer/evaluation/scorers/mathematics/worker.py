"""The process that compares answers: a JSON list [answer, reference] on each line in, true, false or null out.

null: no mathematical expression was found in the answer. It ends when its input does, hence with the
process that started it.
"""

from __future__ import annotations

import json
import sys


def equal(answer: str, reference: str) -> bool | None:
    """math-verify's verdict. Its own time limits use signals; here the process that asks has the deadline."""
    from math_verify import parse, verify

    wanted = parse(f"${reference}$", parsing_timeout=None) or parse(reference, parsing_timeout=None)
    found = parse(answer, parsing_timeout=None)
    if not found:
        return None
    return bool(verify(wanted, found, timeout_seconds=None))


def main() -> None:
    import logging

    logging.disable(logging.CRITICAL)  # math-verify warns that its own time limits are off
    for line in sys.stdin:
        answer, reference = json.loads(line)
        try:
            verdict = equal(answer, reference)
        except Exception:
            verdict = False
        print(json.dumps(verdict), flush=True)


if __name__ == "__main__":
    main()
