"""Rewards made of rewards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from parallel.errors import one_of
from trainer.rl.rewards.base import Question, Reward, RewardError, Verdict


@dataclass(frozen=True)
class Sum:
    """The sum of the parts, each times its weight; weights may be negative, and the sum may leave [0, 1]."""

    parts: Sequence[Reward]
    weights: Sequence[float]

    def __post_init__(self) -> None:
        numbers = isinstance(self.weights, Sequence) and all(isinstance(one, int | float) for one in self.weights)
        if not numbers or len(self.weights) != len(self.parts):
            allowed = f"{len(self.parts)} numbers"
            raise RewardError(f"weights: give a weight for each part, {allowed}", where="weights", value=self.weights,
                              allowed=allowed)  # fmt: skip

    def __call__(self, question: Question, answer: str) -> Verdict:
        verdicts = [part(question, answer) for part in self.parts]
        value = sum(weight * one.value for weight, one in zip(self.weights, verdicts, strict=True))
        return Verdict(float(value), "; ".join(one.reason for one in verdicts if one.reason))


@dataclass(frozen=True)
class Product:
    """The product of the parts: gates. Parts behind the first that is 0 are not asked, so that a judge in the last
    place costs nothing for an answer that a cheap part refuses."""

    parts: Sequence[Reward]

    def __call__(self, question: Question, answer: str) -> Verdict:
        value, reasons = 1.0, []
        for part in self.parts:
            verdict = part(question, answer)
            value *= verdict.value
            reasons.append(verdict.reason)
            if value == 0:
                break
        return Verdict(value, "; ".join(filter(None, reasons)))


@dataclass(frozen=True)
class Kind:
    """The part that the record names: its `key` is the name of one of `parts`."""

    parts: Mapping[str, Reward]
    key: str = "kind"

    def __call__(self, question: Question, answer: str) -> Verdict:
        kind = question.data.get(self.key)
        if not isinstance(kind, str) or kind not in self.parts:
            where, allowed = f"question {question.number}", tuple(self.parts)
            text = f"{where}: no reward is named for {self.key}={kind}; use {one_of(allowed)}"
            raise RewardError(text, where=where, value=kind, allowed=allowed)
        return self.parts[kind](question, answer)
