"""Rewards of texts as they are: equality."""

from __future__ import annotations

from dataclasses import dataclass

from trainer.evaluation.scorers.extract import after_thinking
from trainer.rl.rewards.base import Question, Verdict


@dataclass(frozen=True)
class Exact:
    """1 if the answer, behind its thinking and without spaces around it, is the reference; else 0.

    case: capital and small letters differ. Of a list of references one has to match."""

    case: bool = True

    def __call__(self, question: Question, answer: str) -> Verdict:
        wanted = question.answer if isinstance(question.answer, list | tuple) else [question.answer]
        found = self._form(after_thinking(answer))
        return Verdict(float(any(found == self._form(str(one)) for one in wanted)))

    def _form(self, text: str) -> str:
        return text.strip() if self.case else text.strip().casefold()
