"""Groups of episodes in an environment, in the place of rollouts of one turn."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from trainer.config.rl.keys import RlConfig
from trainer.data.questions.asked import Asked, Questions
from trainer.data.questions.prepare import TOOLS, VALUES
from trainer.engine.request import Sampling
from trainer.rl.asynchronous.under_way import Outcome
from trainer.rl.draws import question_of
from trainer.rl.environments.base import EnvironmentFailed
from trainer.rl.environments.build import read_environment
from trainer.rl.environments.dialogue import Dialogue, InlineDialogue, TemplateDialogue
from trainer.rl.environments.play import Episode, Play
from trainer.rl.environments.tools import ToolEnvironment
from trainer.rl.producer import Rolled, Synchronous


class Episodes(Synchronous):
    """Implements `Producer`. plays: moves the episodes on."""

    def __init__(self, *args: Any, plays: Play, **more: Any) -> None:
        super().__init__(*args, **more)
        self.plays = plays

    def _roll(self, asked: Sequence[tuple[Asked, Sampling]]) -> Rolled:
        started = time.perf_counter()
        found = self.plays.play(
            self.engine,
            [(question_of(one), sampling) for one, sampling in asked],
            deadline_s=self.cfg.deadline_s,
            more=lambda mine: any(self.leaders.gather(mine)),
        )
        outcomes = [Outcome(one.rollout, one) for one in found]
        return self._worth([one for one, _ in asked], outcomes, time.perf_counter() - started)

    def _worth(self, asked: Sequence[Asked], outcomes: Sequence[Outcome], seconds: float) -> Rolled:
        found = [one.episode for one in outcomes if one.episode is not None]
        values = np.array([one.verdict.value for one in found], np.float64)
        return Rolled([one.rollout for one in found], values, {"rollout": seconds, "reward": 0.0}, _figures(found))


def _figures(episodes: Sequence[Episode]) -> dict[str, float]:
    """Sums over episodes; the names are those of the record, where they are means."""
    names = sorted({name for one in episodes for name in one.counts} | {"calls", "malformed", "errors"})
    sums = {f"tools/{name}": float(sum(one.counts[name] for one in episodes)) for name in names}
    return {"turns/mean": float(sum(one.turns for one in episodes)), **sums}


def environment_of(cfg: RlConfig) -> ToolEnvironment:
    """The environment of `rl.environment`, whose final answers are worth what `rl.reward` says."""
    return read_environment(cfg.environment, cfg.reward)


def dialogue_of(questions: Questions) -> Dialogue:
    """The turns of episodes: by the chat template where prompts are messages, and in brackets where all are texts.

    Raises EnvironmentFailed for a question with tools or values of its own: an environment's are the same for all."""
    if questions.conversation is None:
        return InlineDialogue(questions.tokenizer)
    for asked in (*questions.train, *(one for some in questions.heldout.values() for one in some)):
        if key := next((name for name in (TOOLS, VALUES) if asked.record.data.get(name)), None):
            where = asked.record.where
            allowed = "rl.environment" if key == TOOLS else "data.chat_values"
            text = f"{where}: {key} of one question cannot be used in an environment; use {allowed} for all"
            raise EnvironmentFailed(text, where=where, value=key, allowed=allowed)
    conversation = questions.conversation
    return TemplateDialogue(conversation, questions.ends, conversation.values)
