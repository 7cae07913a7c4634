"""Rewards of Python programs by unit tests.

A record's `tests` is a list of

    {"stdin": "2 3\\n", "stdout": "5\\n"}                   the program as a whole; spaces at ends of lines do not count
    {"call": "add", "arguments": [2, 3], "returns": 5}    a function of it; values are JSON
    "assert add(2, 3) == 5"                               a statement behind the program

What is wanted of the first two kinds never enters the process of the program, which can therefore not fake it. An
assertion runs in that process, where a program can do away with it: use such tests only where the others cannot say it.
"""

from __future__ import annotations

import json
import math
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from trainer.rl.rewards.base import Question, RewardError, Verdict
from trainer.rl.rewards.code.sandbox import Ended, Limits, Unavailable, run, unavailable
from trainer.rl.rewards.final import said

RELATIVE = 1e-9  # of floats that a function returns
_BLOCK = re.compile(r"^```[ \t]*(?:python3?|py)?[ \t]*\n(.*?)^```", re.DOTALL | re.MULTILINE | re.IGNORECASE)
_CALLS = """
import json as _json, sys as _sys, os as _os
_replies = _os.fdopen(_os.dup(1), "w")
_os.dup2(2, 1)
_given = _json.loads(_sys.stdin.read())
_names = {"__name__": "program"}
exec(compile(_given["code"], "program.py", "exec"), _names)
for _name, _arguments in _given["calls"]:
    try:
        _line = _json.dumps({"returns": _names[_name](*_arguments)})
    except Exception as _error:
        _line = _json.dumps({"raises": f"{type(_error).__name__}: {_error}"[:200]})
    print(_line, file=_replies, flush=True)
"""
_ASSERTION = """
import json as _json, sys as _sys
_given = _json.loads(_sys.stdin.read())
_names = {"__name__": "program"}
exec(compile(_given["code"], "program.py", "exec"), _names)
exec(compile(_given["statement"], "test.py", "exec"), _names)
print(_given["mark"])
"""


@dataclass(frozen=True)
class Code:
    """1 if the last block of Python in the answer passes all tests of the record, else 0. partial: the share of tests
    that it passes. The rest as of `sandbox.Limits`, for each process that runs it."""

    partial: bool = False
    wall_s: float = 10.0
    cpu_s: int = 5
    memory_mb: int = 512
    processes: int = 8
    file_mb: int = 8
    disk_mb: int = 32
    output_kb: int = 256
    packages: bool = False
    _limits: Limits = field(init=False, repr=False)

    def __post_init__(self) -> None:
        for one in fields(Limits):
            value = getattr(self, one.name)
            if one.name != "packages" and (isinstance(value, bool) or not isinstance(value, int | float) or value <= 0):
                raise RewardError(f"{one.name}={value}: use a number above 0", where=one.name, value=value,
                                  allowed="a number above 0")  # fmt: skip
        if reason := unavailable():
            remedy = "a Linux machine that allows user namespaces to this user"
            text = f"name=code: programs cannot be isolated here ({reason}); use {remedy}"
            raise RewardError(text, where="name", value=reason, allowed=remedy)
        limits = Limits(**{one.name: getattr(self, one.name) for one in fields(Limits)})
        object.__setattr__(self, "_limits", limits)

    def __call__(self, question: Question, answer: str) -> Verdict:
        tests = _tests(question)
        blocks = _BLOCK.findall(said(answer).replace("\r\n", "\n") + "\n")
        if not blocks:
            return Verdict(0.0, "no block of Python")
        try:
            faults = self._run(question, blocks[-1], tests)
        except Unavailable as error:
            where = f"question {question.number}"
            remedy = "fewer programs at one time, or higher limits of this machine"
            text = f"{where}: the program could not be isolated ({error}); use {remedy}"
            raise RewardError(text, where=where, value=str(error), allowed=remedy) from error
        failed = [fault for fault in faults if fault]
        value = 1 - len(failed) / len(faults) if self.partial else float(not failed)
        return Verdict(value, f"{len(failed)} of {len(faults)} tests: {failed[0]}" if failed else "")

    def _run(self, question: Question, code: str, tests: Sequence[Any]) -> list[str]:
        """The fault of each test; empty for one that passes."""
        faults = [self._of_output(code, one) for one in tests if isinstance(one, Mapping) and "stdin" in one]
        if calls := [one for one in tests if isinstance(one, Mapping) and "call" in one]:
            faults += self._of_calls(code, calls)
        faults += [self._of_assertion(code, one) for one in tests if isinstance(one, str)]
        return faults

    def _of_output(self, code: str, test: Mapping[str, Any]) -> str:
        ended = run(code, test["stdin"], self._limits)
        if fault := _fault(ended):
            return fault
        return "" if _lines(ended.output) == _lines(test["stdout"]) else "another output"

    def _of_calls(self, code: str, tests: Sequence[Mapping[str, Any]]) -> list[str]:
        calls = [[test["call"], test["arguments"]] for test in tests]
        ended = run(_CALLS, json.dumps({"code": code, "calls": calls}), self._limits)
        lines = ended.output.splitlines()
        faults = []
        for place, test in enumerate(tests):
            try:
                found = json.loads(lines[place])
            except (IndexError, ValueError, RecursionError):
                faults.append(_fault(ended) or "no result")
                continue
            if not isinstance(found, dict) or "returns" not in found:
                faults.append(str(found.get("raises")) if isinstance(found, dict) else "no result")
            else:
                faults.append("" if same(found["returns"], test["returns"]) else "another result")
        return faults

    def _of_assertion(self, code: str, statement: str) -> str:
        mark = secrets.token_hex(16)  # of an end that is not exit(0) in the middle of the program
        given = json.dumps({"code": code, "statement": statement, "mark": mark})
        ended = run(_ASSERTION, given, self._limits)
        return _fault(ended) or ("" if mark in ended.output else "ended before the test")


def _tests(question: Question) -> Sequence[Any]:
    tests = question.data.get("tests")
    where = f"question {question.number}, tests"
    allowed = 'a list of {"stdin", "stdout"}, {"call", "arguments", "returns"} or statements'
    if not isinstance(tests, Sequence) or isinstance(tests, str) or not tests or not all(map(_is_test, tests)):
        raise RewardError(f"{where} are not {allowed}", where=where, value=tests, allowed=allowed)
    return tests


def _is_test(test: Any) -> bool:
    if isinstance(test, str):
        return True
    if not isinstance(test, Mapping):
        return False
    texts = isinstance(test.get("stdin"), str) and isinstance(test.get("stdout"), str)
    call = isinstance(test.get("call"), str) and isinstance(test.get("arguments"), list) and "returns" in test
    return texts != call


def _fault(ended: Ended) -> str:
    if ended.reason:
        return ended.reason
    if ended.code:
        last = ended.errors.strip().splitlines()[-1:] or [f"exit code {ended.code}"]
        return last[0][:200]
    return ""


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().splitlines()]


def same(found: Any, wanted: Any) -> bool:
    """Equality of JSON values; floats within 1e-9 of the wanted one. True is not 1."""
    if isinstance(found, bool) or isinstance(wanted, bool):
        return found is wanted
    if isinstance(found, int | float) and isinstance(wanted, int | float):
        if isinstance(found, int) and isinstance(wanted, int):
            return found == wanted
        return math.isclose(found, wanted, rel_tol=RELATIVE) or (math.isnan(found) and math.isnan(wanted))
    if isinstance(found, list) and isinstance(wanted, list):
        return len(found) == len(wanted) and all(map(same, found, wanted))
    if isinstance(found, dict) and isinstance(wanted, dict):
        return found.keys() == wanted.keys() and all(same(found[key], wanted[key]) for key in wanted)
    return bool(found == wanted)
