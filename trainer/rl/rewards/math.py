r"""Mathematical answers: numbers by our own rules, everything else by math-verify.

math-verify, alone, reads a plain 1.5e-3 as 1.5 and $1.5e-3$ as 1.5e - 3, calls numbers equal that agree in six
decimals, drops units, and takes 50 % for both 0.5 and 50. Numbers therefore never reach it:
`trainer.rl.rewards.numbers` reads them exactly.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from trainer.rl.rewards.base import Question, RewardError, Verdict, any_reference, check_package
from trainer.rl.rewards.final import final_answer, referred
from trainer.rl.rewards.numbers import Number, read_number
from trainer.rl.rewards.processes.pool import Workers
from trainer.rl.rewards.quantity import difference
from trainer.rl.rewards.units import read_unit

MODULE = "trainer.rl.rewards.processes.expressions"
LONGEST = 2_000  # characters of an expression
_E = re.compile(r"(?<![\w.])((?:\d+\.?\d*|\.\d+))[eE]([+-]?\d+)(?!\w)")


@dataclass(frozen=True)
class Math:
    """1 if the final answer equals the reference, else 0.

    relative: two numbers are equal if they differ by at most this share of the reference; whole numbers have to be the
    same. seconds: for one comparison, after which the answer is wrong. processes: that compare side by side.
    """

    relative: float = 1e-6
    seconds: float = 10.0
    processes: int = 1
    _workers: Workers = field(init=False, repr=False)

    def __post_init__(self) -> None:
        check_package("math", "math-verify", "math_verify")
        check_package("math", "pint", "pint")
        object.__setattr__(self, "_workers", Workers(MODULE, self.processes, self.seconds))

    @any_reference
    def __call__(self, question: Question, answer: str) -> Verdict:
        found, wanted = final_answer(answer), referred(str(question.answer))
        if found is None:
            return Verdict(0.0, "no final answer")
        if len(found) > LONGEST:
            return Verdict(0.0, f"more than {LONGEST:,} characters")
        if found == wanted:
            return Verdict(1.0)
        asked = question.data.get("unit")
        numbers = _number(found), _number(wanted)
        if numbers[0] and numbers[1]:
            one, other = numbers[0], numbers[1]
            relative = 0.0 if one.whole and other.whole and one.unit == other.unit else self.relative
            if asked and not other.unit:
                other = other._replace(unit=str(asked))
            reason = difference(one, other, relative, 0.0, str(asked) if asked else None)
            return Verdict(float(not reason), reason)
        if numbers[1] and numbers[1].unit:
            return Verdict(0.0, "no number with a unit")
        return self._compare(question, found, wanted)

    def _compare(self, question: Question, found: str, wanted: str) -> Verdict:
        try:
            same, reason = self._workers.ask([_latex(found), _latex(wanted), self.relative])
        except TimeoutError:
            return Verdict(0.0, f"no verdict within {self.seconds:g} s")
        except ValueError:
            return Verdict(0.0, "no verdict")
        if same is None:
            where = f"question {question.number}"
            text = f"{where}: the reference {question.answer!r} is not an expression that math-verify can read"
            raise RewardError(text, where=where, value=question.answer, allowed="a number or an expression in LaTeX")
        return Verdict(float(same), reason)

    def close(self) -> None:
        self._workers.close()

    def counts(self) -> Mapping[str, float]:
        return {f"math/{name}": count for name, count in self._workers.counts.items()}


def _number(text: str) -> Number | None:
    """A number whose unit, if it has one, is one."""
    found = read_number(text)
    return None if found is None or (found.unit and read_unit(found.unit) is None) else found


def _latex(text: str) -> str:
    """Exponents in LaTeX: sympy takes the e of 1.5e-3 for Euler's number."""
    return _E.sub(r"\1\\times 10^{\2}", text)
