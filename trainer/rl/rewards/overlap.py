"""A reward for parts of an answer, for tasks that are learned from random weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from trainer.rl.rewards.base import Question, Verdict, any_reference


@dataclass(frozen=True)
class Overlap:
    """The share of places at which answer and reference have the same character, of those of the longer one; 1 where
    they are equal.

    end: the end of the reference is a place, too, and only its places count: a longer answer loses the
        end. So what a model still has to learn is rewarded by steps of one size.
    """

    waits: ClassVar[bool] = False
    end: bool = False

    @any_reference
    def __call__(self, question: Question, answer: str) -> Verdict:
        wanted = str(question.answer)
        same = sum(a == b for a, b in zip(wanted, answer, strict=False))
        if self.end:
            return Verdict((same + (len(wanted) == len(answer))) / (len(wanted) + 1))
        places = max(len(wanted), len(answer))
        if not places:
            return Verdict(1.0)
        return Verdict(same / places)
