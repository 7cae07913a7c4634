"""Jinja as chat templates expect it: what transformers' renderer gives them, in a sandbox of our own.

A template is a program by a stranger. It runs in Jinja's sandbox, sees plain JSON values alone, and can change none of
them. `{% generation %}` ... `{% endgeneration %}` marks what the assistant writes.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

# Characters that are never text (Unicode's noncharacters): they travel through macros and captured blocks with the
# text that they enclose, where a count of characters written so far would go wrong.
OPEN, CLOSE = "\ufdd0", "\ufdd1"


class Environment(ImmutableSandboxedEnvironment):
    """One for each template.

    marks: True once a template with `{% generation %}` was compiled. marking: put OPEN and CLOSE around what they
    enclose. now: what `strftime_now` formats.
    """

    def __init__(self, now: Callable[[], datetime]) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
        self.marks = False
        self.marking = False
        self.filters["tojson"] = _tojson
        self.globals["raise_exception"] = _raise
        self.globals["strftime_now"] = lambda format: now().strftime(format)
        self.globals["dict"] = lambda *args, **values: dict(*args, **values)
        self.globals["namespace"] = _Namespace


class _Generation(Extension):
    tags = {"generation"}  # noqa: RUF012 (Jinja declares it as a set)

    def parse(self, parser: Parser) -> nodes.Node:
        _ours(self.environment).marks = True
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_enclose"), [], [], body).set_lineno(line)

    def _enclose(self, caller: Macro) -> str:
        text: str = caller()
        return f"{OPEN}{text}{CLOSE}" if _ours(self.environment).marking else text


def _ours(environment: object) -> Environment:
    assert isinstance(environment, Environment)  # Jinja declares its own class for extensions
    return environment


class _Namespace(Namespace):
    """`namespace(...)`, whose names cannot be Python's own."""

    def __init__(*args: Any, **values: Any) -> None:  # `self` may be a name, too
        self, *rest = args
        for name in dict(*rest, **values):
            _check_name(name)
        Namespace.__init__(self, *rest, **values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace cannot have the name {name!r}")


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as it is, where Jinja's own filter escapes HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)
