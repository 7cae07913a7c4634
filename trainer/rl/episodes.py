"""Groups of episodes in an environment, in the place of rollouts of one turn."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from parallel.layout import Place
from trainer.config.rl.keys import RlConfig
from trainer.data.questions.asked import Asked, Questions
from trainer.data.questions.prepare import TOOLS, VALUES
from trainer.engine.request import Sampling
from trainer.rl.environments.base import Environment, EnvironmentFailed
from trainer.rl.environments.build import read_environment
from trainer.rl.environments.dialogue import Dialogue, InlineDialogue, TemplateDialogue
from trainer.rl.environments.play import Episode, play
from trainer.rl.environments.tools import ToolEnvironment
from trainer.rl.producer import Rolled, Synchronous, question_of
from trainer.rl.rewards.base import Question, Verdict
from trainer.rl.rollout.led import Led
from trainer.rl.rollout.protocol import RolloutEngine


class Episodes(Synchronous):
    """Implements `Producer`. context: the most tokens of an episode. name: of the engine in errors."""

    def __init__(
        self,
        cfg: RlConfig,
        questions: Questions,
        engine: RolloutEngine,
        environment: Environment,
        dialogue: Dialogue,
        *,
        seed: int,
        batch: int,
        place: Place,
        leaders: Led,
        context: int,
        name: str,
    ) -> None:
        super().__init__(cfg, questions, engine, _of_environment, seed=seed, batch=batch, place=place, leaders=leaders)
        self.environment, self.dialogue, self.context, self.name = environment, dialogue, context, name

    def _roll(self, asked: Sequence[tuple[Asked, Sampling]]) -> Rolled:
        started = time.perf_counter()
        found = play(
            self.engine,
            self.environment,
            self.dialogue,
            [(question_of(one), sampling) for one, sampling in asked],
            max_tokens=self.cfg.max_tokens,
            context=self.context,
            deadline_s=self.cfg.deadline_s,
            environment_s=self.cfg.environment_s,
            more=lambda mine: any(self.leaders.gather(mine)),
            waiting=self.leaders.world.watch.ticking,
            name=self.name,
        )
        values = np.array([one.verdict.value for one in found], np.float64)
        seconds = {"rollout": time.perf_counter() - started, "reward": 0.0}
        return Rolled([one.rollout for one in found], values, seconds, _figures(found))


def _figures(episodes: Sequence[Episode]) -> dict[str, float]:
    """Sums over episodes; the names are those of the record, where they are means."""
    names = sorted({name for one in episodes for name in one.counts} | {"calls", "malformed", "errors"})
    sums = {f"tools/{name}": float(sum(one.counts[name] for one in episodes)) for name in names}
    return {"turns/mean": float(sum(one.turns for one in episodes)), **sums}


def _of_environment(question: Question, answer: str) -> Verdict:
    raise AssertionError("an environment gives the reward of its episodes")


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
