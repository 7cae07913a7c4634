"""The option that an answer to a multiple choice names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trainer.evaluation.scorers.choices import by_letter
from trainer.rl.rewards.base import Question, RewardError, Verdict, any_reference
from trainer.rl.rewards.final import boxed, final_answer, referred, said, unwrapped

_FONT = re.compile(r"\\(?:text|mathrm|mathbf|textbf)\s*\{([^{}]*)\}")
_ALONE = re.compile(r"^(?:option|choice)?\s*[\[({]?\s*([A-Z])\s*[\])}]?(?:$|[.:),;]\s|\s*[-–]\s)", re.IGNORECASE)
_OTHERS = re.compile(r"\(([A-Z])\)|(?:^|\b(?:and|or)\b|[,;])\s*([A-Z])(?=$|[\s.,;:)])(?! [a-z])")
_LETTERS = re.compile(r"[\[(]?\b([A-Z])\b[\])]?")


@dataclass(frozen=True)
class Choice:
    """1 if the final answer names the right option and no other, else 0.

    The record's `answer` is a letter, several letters for a question with several right options ("AC"), or the text of
    an option; its `options` are texts, in a list or by letter, and may be missing if answers are letters. The final
    answer is one letter ("(B)", "B. Helium", "option B"), or the text of an option.
    """

    @any_reference
    def __call__(self, question: Question, answer: str) -> Verdict:
        options = _options(question)
        wanted = _wanted(question, options)
        final = final_answer(answer)
        if final is None:
            return Verdict(0.0, "no final answer")
        found = _named(final, options, several=len(wanted) > 1)
        if not found and boxed(said(answer)) is None:
            found = _named(said(answer), options, several=len(wanted) > 1)  # a short answer of several lines
        if not found:
            return Verdict(0.0, "no option")
        return Verdict(float(found == wanted), "" if found == wanted else "another option")


def _options(question: Question) -> dict[str, str]:
    given: Any = question.data.get("options") or {}
    if isinstance(given, Mapping):
        return {str(letter).upper(): str(text) for letter, text in given.items()}
    if isinstance(given, Sequence) and not isinstance(given, str) and len(given) <= 26:
        return by_letter([str(text) for text in given])
    where = f"question {question.number}, options"
    allowed = "a list of up to 26 texts, or texts by letter"
    raise RewardError(f"{where} are not {allowed}", where=where, value=given, allowed=allowed)


def _wanted(question: Question, options: Mapping[str, str]) -> frozenset[str]:
    text = _FONT.sub(r"\1", referred(str(question.answer)))
    letters = re.sub(r"[\s,;()]", "", text).upper()
    known = options or by_letter([""] * 26)
    if letters and len(set(letters)) == len(letters) and set(letters) <= set(known):
        return frozenset(letters)
    raw = str(question.answer).strip().casefold()
    same = [letter for letter, option in options.items() if option.strip().casefold() == raw]
    same = same or [letter for letter, option in options.items() if unwrapped(option).casefold() == text.casefold()]
    if len(same) != 1:
        where = f"question {question.number}"
        raise RewardError(f"{where}: the reference {text!r} is not one of the options", where=where, value=text,
                          allowed=tuple(known))  # fmt: skip
    return frozenset(same)


def _named(text: str, options: Mapping[str, str], *, several: bool) -> frozenset[str]:
    """The letters that a text names; empty where it names none, or more than are asked for."""
    text = unwrapped(_FONT.sub(r"\1", text))
    known = set(options) or set(by_letter([""] * 26))
    if several:
        joined = re.sub(r"\band\b|[\s,;()&]", "", text, flags=re.IGNORECASE)
        if joined and set(joined) <= known:
            return frozenset(joined)
        return frozenset(found for found in _LETTERS.findall(text) if found in known)
    if (found := _ALONE.match(text)) and found[1].upper() in known:
        letter = found[1].upper()
        rest = text[found.end() :].strip()
        others = {one or other for one, other in _OTHERS.findall(rest)} & known - {letter}
        return frozenset() if others else frozenset(letter)
    same = [letter for letter, option in options.items() if unwrapped(option).casefold() == text.casefold()]
    return frozenset(same) if len(same) == 1 else frozenset()
