"""The producer of a run's rollouts: in turns with training, or ahead of it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

from parallel.layout import Place
from trainer.config.keys import Config
from trainer.data.questions.asked import Asked, Questions
from trainer.engine.request import Sampling
from trainer.rl.asynchronous.ahead import Ahead
from trainer.rl.asynchronous.background import Background, Beside, Within
from trainer.rl.asynchronous.under_way import Answers, AnyUnderWay, Conversations
from trainer.rl.draws import sampling_of
from trainer.rl.environments.play import Play
from trainer.rl.episodes import Episodes, dialogue_of, environment_of
from trainer.rl.producer import Synchronous
from trainer.rl.rewards.base import Reward, build_reward
from trainer.rl.rollout.embedded import Embedded
from trainer.rl.rollout.led import Led
from trainer.rl.servers.remote import Remote
from trainer.rl.workers.choose import place_environment, place_reward


def questions_ahead(cfg: Config) -> int:
    """Questions, over all ranks, that are asked ahead of a round."""
    return cfg.rl.rounds_ahead * cfg.rl.updates * cfg.train.global_batch


def build_producer(
    cfg: Config, questions: Questions, led: Led, place: Place, *, name: str, context: int
) -> Synchronous:
    """The producer of a rank. name: of the engine in errors. context: the most tokens of an episode. Raises UserError
    for a reward or an environment that cannot be built."""
    count = questions_ahead(cfg)
    plays: Play | None = None
    reward: Reward
    if cfg.rl.environment:
        environment = place_environment(cfg.rl) if cfg.rl.environment_workers else environment_of(cfg.rl)
        reward = environment.reward
        plays = Play(
            environment,
            dialogue_of(questions),
            cfg.rl.max_tokens,
            context,
            cfg.rl.environment_s,
            name,
            led.world.watch.ticking,
        )
    elif cfg.rl.environment_workers:
        reward = place_reward(cfg.rl)
    else:
        reward = build_reward(cfg.rl.reward)
    ahead = build_ahead(cfg, questions, led, place, plays, name=name, count=count) if count else None
    make: Callable[..., Synchronous] = Synchronous if plays is None else partial(Episodes, plays=plays)
    return make(
        cfg.rl,
        questions,
        led,
        reward,
        seed=cfg.train.seed,
        batch=cfg.train.global_batch,
        place=place,
        leaders=led,
        ahead=ahead,
    )


def build_ahead(
    cfg: Config, questions: Questions, led: Led, place: Place, plays: Play | None, *, name: str, count: int
) -> Ahead:
    """Build what draws ahead of training, with `count` questions. plays: of episodes; None: rollouts have one turn."""
    size, discard = cfg.rl.group_size, cfg.rl.partial_rollouts == "discard"

    def ask(number: int) -> tuple[Asked, Sampling]:
        sample, member = divmod(number, size)
        return questions.ask(sample, 1)[0], sampling_of(cfg.train.seed, sample, member)

    under_way: AnyUnderWay
    if plays is not None and not isinstance(led.engine, Embedded):
        plays = replace(plays, waiting=nullcontext)  # progress of threads beside training is none of this rank's steps
    if plays is None:
        max_tokens, ends = cfg.rl.max_tokens, questions.ends
        under_way = Answers(ask, size, name, discard=discard, max_tokens=max_tokens, ends=ends)
    else:
        under_way = Conversations(ask, size, name, discard=discard, plays=plays)
    background: Background
    if isinstance(led.engine, Embedded):
        background = Within(led.engine, led, under_way)
    else:
        assert isinstance(led.engine, Remote)
        concurrent = cfg.rl.concurrent * place.readers
        background = Beside(led.engine, led, under_way, name, concurrent=concurrent)
    return Ahead(background, size=size, count=count, place=place)
