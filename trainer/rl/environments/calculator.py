"""A calculator: arithmetic of decimal numbers with brackets, powers and a few functions.

Expressions are parsed by Python's own parser and evaluated here, node by node: nothing of Python can be reached. Sizes
of numbers are bounded before a power is taken.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

from trainer.rl.environments.tools import Tool, ToolError

LONGEST = 200  # characters of an expression
MOST_BITS = 4_096  # of a whole number
DIGITS = 15  # of a result that is not whole

_BINARY: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod,
}  # fmt: skip
_FUNCTIONS: Mapping[str, Callable[[Any], Any]] = {
    "sqrt": math.sqrt, "exp": math.exp, "log": math.log, "log10": math.log10, "sin": math.sin, "cos": math.cos,
    "tan": math.tan, "abs": abs, "round": round,
}  # fmt: skip
_NAMES: Mapping[str, float] = {"pi": math.pi, "e": math.e}


def evaluate(expression: str) -> str:
    """The value of an expression such as `(3 + 4) * 2**-1`, as text: whole numbers exactly, others to 15 digits.

    `^` is a power, too, and × and ÷ are read. Raises ToolError."""
    if len(expression) > LONGEST:
        raise ToolError(f"the expression has more than {LONGEST} characters")
    text = expression.replace("^", "**").replace("×", "*").replace("÷", "/").replace("−", "-").strip()
    try:
        value = _value(ast.parse(text, mode="eval").body)
    except ToolError:
        raise
    except ZeroDivisionError:
        raise ToolError("division by zero") from None
    except (SyntaxError, RecursionError, MemoryError, ValueError, OverflowError, TypeError):
        raise ToolError("this is not an expression that can be computed") from None
    if isinstance(value, Fraction) and value.denominator == 1:
        return str(value.numerator)
    return f"{float(value):.{DIGITS}g}"


def _value(node: ast.expr) -> Fraction | float:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float) and not isinstance(node.value, bool):
        return _bounded(Fraction(str(node.value)) if math.isfinite(node.value) else math.inf)
    if isinstance(node, ast.Name) and node.id in _NAMES:
        return _NAMES[node.id]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        value = _value(node.operand)
        return -value if isinstance(node.op, ast.USub) else value
    if isinstance(node, ast.BinOp):
        left, right = _value(node.left), _value(node.right)
        if isinstance(node.op, ast.Pow):
            return _bounded(_power(left, right))
        if type(node.op) in _BINARY:
            return _bounded(_BINARY[type(node.op)](left, right))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and len(node.args) == 1 and not node.keywords:
        function = _FUNCTIONS.get(node.func.id)
        if function is not None:
            found = function(_value(node.args[0]))
            return _bounded(Fraction(found) if isinstance(found, int) else found)
    raise ToolError("this is not an expression that can be computed")


def _power(base: Fraction | float, exponent: Fraction | float) -> Fraction | float:
    if isinstance(base, Fraction) and isinstance(exponent, Fraction) and exponent.denominator == 1:
        bits = max(base.numerator.bit_length(), base.denominator.bit_length())
        if abs(exponent.numerator) * bits > MOST_BITS:
            raise ToolError("the number is too large")
        return base**exponent.numerator
    found = float(base) ** float(exponent)
    if isinstance(found, complex):
        raise ToolError("the result is not a real number")
    return found


def _bounded(value: Fraction | float) -> Fraction | float:
    large = (
        isinstance(value, Fraction) and max(value.numerator.bit_length(), value.denominator.bit_length()) > MOST_BITS
    )
    if large or not math.isfinite(value):
        raise ToolError("the number is too large")
    return value


CALCULATOR = Tool(
    "calculator",
    "Computes an arithmetic expression, such as (3 + 4) * 2**5 or sqrt(2) / pi.",
    {"expression": {"type": "string", "description": "the expression"}},
    lambda expression: evaluate(expression),
)
