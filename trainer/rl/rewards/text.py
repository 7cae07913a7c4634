"""Rewards of texts as they are: equality and form."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

from parallel.errors import one_of
from trainer.evaluation.scorers.extract import after_thinking
from trainer.rl.rewards.base import Question, RewardError, Verdict, any_reference
from trainer.rl.rewards.final import boxed, final_answer, referred

_BOXES = re.compile(r"\\boxed\s*\{")


@dataclass(frozen=True)
class Exact:
    """1 if the answer, behind its thinking and without spaces around it, is the reference; else 0.

    case: capital and small letters differ. Of a list of references one has to match."""

    waits: ClassVar[bool] = False
    case: bool = True

    def __call__(self, question: Question, answer: str) -> Verdict:
        wanted = question.answer if isinstance(question.answer, list | tuple) else [question.answer]
        found = self._form(after_thinking(answer))
        return Verdict(float(any(found == self._form(str(one)) for one in wanted)))

    def _form(self, text: str) -> str:
        return text.strip() if self.case else text.strip().casefold()


@dataclass(frozen=True)
class Final:
    """1 if the final answer is the reference, or one of several; else 0. Spaces beside each other count as one.

    case: capital and small letters differ."""

    waits: ClassVar[bool] = False
    case: bool = False

    @any_reference
    def __call__(self, question: Question, answer: str) -> Verdict:
        found = final_answer(answer)
        if found is None:
            return Verdict(0.0, "no final answer")
        return Verdict(float(self._form(found) == self._form(referred(str(question.answer)))))

    def _form(self, text: str) -> str:
        text = " ".join(text.split())
        return text if self.case else text.casefold()


@dataclass(frozen=True)
class Format:
    r"""1 if the answer has the form that is asked for, else 0, whatever it says.

    thinking: one `<think>...</think>` in front, with something in it and behind it; its opening mark may be a part of
    the prompt. boxed: one `\boxed{}` behind the thinking. pattern: a regular expression of Python that all of the text
    behind the thinking matches. longest: characters of all of it; 0: any number.
    """

    waits: ClassVar[bool] = False
    thinking: bool = False
    boxed: bool = False
    pattern: str = ""
    longest: int = 0

    def __post_init__(self) -> None:
        try:
            re.compile(self.pattern)
        except re.error as error:
            allowed = "a regular expression of Python"
            raise RewardError(f"pattern={self.pattern} is not {allowed}: {error}", where="pattern",
                              value=self.pattern, allowed=allowed) from error  # fmt: skip
        if not (self.thinking or self.boxed or self.pattern or self.longest):
            options = ("thinking", "boxed", "pattern", "longest")
            raise RewardError(f"name=format asks for nothing; set {one_of(options)}", where="name", value="format",
                              allowed=options)  # fmt: skip

    def __call__(self, question: Question, answer: str) -> Verdict:
        thought, closed, text = answer.rpartition("</think>")
        if self.thinking and not self._is_thinking(thought, closed, text):
            return Verdict(0.0, "no thinking in its marks")
        if self.boxed and len(_BOXES.findall(text)) != 1:
            return Verdict(0.0, "not one box")
        if self.boxed and not boxed(text):
            return Verdict(0.0, "nothing in the box")
        if self.pattern and not re.fullmatch(self.pattern, text.strip(), re.DOTALL):
            return Verdict(0.0, "does not match the pattern")
        if self.longest and len(answer) > self.longest:
            return Verdict(0.0, f"more than {self.longest:,} characters")
        return Verdict(1.0)

    def _is_thinking(self, thought: str, closed: str, text: str) -> bool:
        inside = thought.strip().removeprefix("<think>")
        return bool(closed and inside.strip() and text.strip()) and "<think>" not in inside and "</think>" not in inside
