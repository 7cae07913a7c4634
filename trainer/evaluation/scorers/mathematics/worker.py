"""The process that compares answers: [answer, reference] in, true, false or null out.

null: no mathematical expression was found in the answer.
"""

from __future__ import annotations

import logging

from trainer.evaluation.scorers.worker import serve


def equal(question: list[str]) -> bool | None:
    """math-verify's verdict. Its own time limits use signals; here the process that asks has the deadline."""
    from math_verify import parse, verify

    answer, reference = question
    try:
        wanted = parse(f"${reference}$", parsing_timeout=None) or parse(reference, parsing_timeout=None)
        found = parse(answer, parsing_timeout=None)
        return bool(verify(wanted, found, timeout_seconds=None)) if found else None
    except Exception:
        return False


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)  # math-verify warns that its own time limits are off
    serve(equal)
