"""Finds the tests that depend on the sentences of errors for a user, instead of on their fields."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

# Three or more lower-case words in a row, as in a text or in a regular expression.
SENTENCE = re.compile(r"(?<![\w./'-])[a-z]+(?:(?:\\? |\\s[+*]?)+[a-z]+){2,}(?![\w/]|\.\w)")


def last_name(node: ast.expr) -> str:
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def has_sentence(node: ast.AST) -> bool:
    """True if a text in this expression is a sentence."""
    texts = [part.value for part in ast.walk(node) if isinstance(part, ast.Constant) and isinstance(part.value, str)]
    return any(map(SENTENCE.search, texts))


def names_errors(node: ast.expr | None, errors: set[str]) -> bool:
    """True for a class among `errors`, or a tuple with one."""
    return node is not None and any(last_name(one) in errors for one in getattr(node, "elts", [node]))


def raises_errors(node: ast.AST, errors: set[str]) -> bool:
    """True for `pytest.raises(E)` of a class among `errors`."""
    called = isinstance(node, ast.Call) and last_name(node.func) == "raises"
    return called and bool(node.args) and names_errors(node.args[0], errors)


def caught_names(function: ast.AST, errors: set[str]) -> set[str]:
    """Names that hold an error for a user, or pytest's record of one, anywhere in a function."""
    found: set[str] = set()
    for node in ast.walk(function):
        if isinstance(node, ast.withitem) and raises_errors(node.context_expr, errors) and node.optional_vars:
            found.add(last_name(node.optional_vars))
        elif isinstance(node, ast.ExceptHandler) and node.name and names_errors(node.type, errors):
            found.add(node.name)
    for node in ast.walk(function):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Attribute) and node.value.attr == "value":
            found |= {last_name(target) for target in node.targets if last_name(node.value.value) in found}
    return found


def is_text_of(node: ast.AST, caught: set[str]) -> bool:
    """True for `str(error)` and `str(record.value)` of a caught error."""
    if not isinstance(node, ast.Call) or last_name(node.func) != "str" or len(node.args) != 1:
        return False
    given = node.args[0]
    if isinstance(given, ast.Attribute) and given.attr == "value":
        given = given.value
    return isinstance(given, ast.Name) and given.id in caught


def reads_text_of(node: ast.AST, caught: set[str]) -> bool:
    """True for `.lines` and `.text` of a caught error, its record or one of its faults."""
    if not isinstance(node, ast.Attribute) or node.attr not in ("lines", "text"):
        return False
    return any(isinstance(part, ast.Name) and part.id in caught for part in ast.walk(node))


def found_in(tree: ast.Module, errors: set[str]) -> Iterator[tuple[int, str]]:
    """Line, and what to mend, for each place of a test file that depends on the wording of one of `errors`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and raises_errors(node, errors):
            for pattern in (keyword.value for keyword in node.keywords if keyword.arg == "match"):
                if has_sentence(pattern):
                    yield node.lineno, "a sentence in match="
                elif not any(isinstance(part, ast.Constant) for part in ast.walk(pattern)):
                    yield node.lineno, "a variable in match="
        if isinstance(node, ast.Call) and last_name(node.func) == "error_line" and any(map(has_sentence, node.args)):
            yield node.lineno, "a sentence in error_line()"
        if isinstance(node, ast.Assert):
            printed = any(isinstance(part, ast.Attribute) and part.attr in ("err", "stderr") for part in ast.walk(node))
            if printed and has_sentence(node.test):
                yield node.lineno, "a sentence in what was printed"
        if isinstance(node, ast.FunctionDef):
            caught = caught_names(node, errors)
            for check in (part for part in ast.walk(node) if isinstance(part, ast.Assert)):
                parts = list(ast.walk(check))
                if any(is_text_of(part, caught) for part in parts):
                    yield check.lineno, "str() of an error"
                elif has_sentence(check) and any(reads_text_of(part, caught) for part in parts):
                    yield check.lineno, "a sentence in the text of an error"
