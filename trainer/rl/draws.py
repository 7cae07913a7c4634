"""The numbers of rollouts, and the seeds that their draws have."""

from __future__ import annotations

import numpy as np

from trainer.data.hashing import mix64
from trainer.data.questions.asked import Asked
from trainer.engine.request import Sampling
from trainer.rl.rewards.base import Question

SAMPLING = 6  # the purpose of a hash: the seed of a rollout


def sampling_of(seed: int, sample: int, member: int, temperature: float = 1.0) -> Sampling:
    """The draws of a rollout. seed: of the run. sample: the number of the question in the run. member: of its group."""
    return Sampling(temperature, seed=int(mix64(seed, SAMPLING, sample, member)[0] >> np.uint64(1)))


def question_of(asked: Asked) -> Question:
    """The question as rewards and environments see it."""
    return Question(asked.number, asked.record.prompt, asked.record.answer, asked.record.data)
