"""Numbers with units, within a tolerance."""

from __future__ import annotations

from dataclasses import dataclass

from trainer.rl.rewards.base import Question, RewardError, Verdict, any_reference, check_package
from trainer.rl.rewards.final import boxed, final_answer
from trainer.rl.rewards.numbers import Number, close, read_number
from trainer.rl.rewards.units import Unit, convert, read_unit

NONE = "dimensionless"


@dataclass(frozen=True)
class Quantity:
    """1 if the final answer is the reference's number in a unit of the same dimension, within the tolerance; else 0.

    relative, absolute: the tolerance; the record's `tolerance` and `absolute` go first. absolute is in the reference's
    unit. unit_required: an answer without a unit is wrong; else it is taken to be in the record's `unit`, for which the
    question has asked. A unit that is a part of the reference ("5 cm") is always required. Per cent and ppm are units:
    "50 %" equals 0.5.
    """

    relative: float = 0.01
    absolute: float = 0.0
    unit_required: bool = False

    def __post_init__(self) -> None:
        check_package("quantity", "pint", "pint")

    @any_reference
    def __call__(self, question: Question, answer: str) -> Verdict:
        wanted, asked = reference(question)
        relative, absolute = (_setting(question, *one) for one in (("tolerance", self.relative),
                                                                   ("absolute", self.absolute)))  # fmt: skip
        final = final_answer(answer)
        found = None if final is None else read_number(final)
        if found is None:
            return Verdict(0.0, "no number" if final else "no final answer")
        reason = difference(found, wanted, relative, absolute, None if self.unit_required else asked)
        return Verdict(float(not reason), reason)


def _setting(question: Question, name: str, default: float) -> float:
    value = question.data.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        where = f"question {question.number}, {name}"
        raise RewardError(f"{where} is not a number from 0", where=where, value=value, allowed="a number from 0")
    return float(value)


def reference(question: Question) -> tuple[Number, str | None]:
    """The number that is wanted, and the unit of an answer without one, for which the question has asked. Raises
    RewardError for a reference that is not a number, or whose unit cannot be read."""
    answer, unit = question.answer, question.data.get("unit")
    text = str(answer)
    wanted = None if isinstance(answer, bool) else read_number(boxed(text) or text)
    where = f"question {question.number}"
    if wanted is None:
        allowed = "a number with or without a unit"
        raise RewardError(f"{where}: the reference {answer!r} is not a number", where=where, value=answer,
                          allowed=allowed)  # fmt: skip
    for one in (wanted.unit, unit):
        if one and read_unit(str(one)) is None:
            text = f"{where}: {one!r} is not a unit that pint knows"
            raise RewardError(text, where=where, value=one, allowed="a unit such as kJ/mol")
    return (wanted if wanted.unit else wanted._replace(unit=str(unit or ""))), (str(unit) if unit else None)


def difference(found: Number, wanted: Number, relative: float, absolute: float, asked: str | None) -> str:
    """The reason for which found is not wanted; empty where it is. asked: the unit of a number without one.

    A unit that the reference does not have cannot be checked, and is accepted if it is one.
    """
    into, unit = _unit(wanted.unit), _unit(found.unit or asked or "")
    if unit is None or into is None:
        return f"{found.unit!r} is not a unit"
    value = convert(found.value, unit, into)
    if value is None:
        if not wanted.unit:
            value = found.value
        elif not found.unit:
            return "no unit"
        else:
            return f"{found.unit!r} does not measure what {wanted.unit!r} does"
    return "" if close(value, wanted.value, relative, absolute) else "another number"


def _unit(text: str) -> Unit | None:
    return read_unit(text or NONE)
