"""The process that compares mathematical expressions: [answer, reference, tolerance] in, [verdict, reason] out.

math-verify parses both. Where both are numbers, their values are compared here in relation to the reference:
math-verify rounds to six decimals, so that all numbers near 0 are equal to it.
"""

from __future__ import annotations

import logging
from typing import Any

from trainer.evaluation.scorers.worker import serve

DIGITS = 30  # to which expressions are evaluated


def compare(question: list[Any]) -> list[Any]:
    """Its own time limits are off, as they use signals: the process that asks has the deadline."""
    from math_verify import parse, verify

    answer, reference, relative = question
    try:
        wanted, found = (parse(f"${text}$", parsing_timeout=None) for text in (reference, answer))
        if not wanted:
            return [None, "the reference cannot be parsed"]
        if not found:
            return [False, "no expression"]
        values = [_value(one[0]) for one in (found, wanted)]
        if None not in values:
            gap = abs(values[0] - values[1])
            same = gap <= relative * abs(values[1])
            return [bool(same), "" if same else "another number"]
        same = bool(verify(wanted, found, timeout_seconds=None))
        return [same, "" if same else "another expression"]
    except Exception as error:
        return [False, f"math-verify: {type(error).__name__}"]


def _value(expression: Any) -> Any:
    """The complex number that an expression is, as sympy's number; None for one with symbols, sets and equations."""
    from sympy import Basic, Expr

    if not isinstance(expression, Basic):
        return None
    expression = expression.doit()
    if not isinstance(expression, Expr) or expression.free_symbols:
        return None
    value = expression.evalf(DIGITS)
    return value if value.is_number and value.is_finite and (value.is_real or value.is_complex) else None


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)  # math-verify warns that its own time limits are off
    serve(compare)
