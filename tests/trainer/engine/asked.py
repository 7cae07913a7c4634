"""Requests for tests of the engine, and what a training forward pass says about their answers."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trainer.config.model import ModelConfig
from trainer.engine.engine import Engine
from trainer.engine.request import Completion, Request, Sampling, Scores
from trainer.engine.sampling import log_probs_of
from trainer.model.decoder import Decoder


def requests(cfg: ModelConfig, count: int, rng: random.Random, *, longest: int = 60) -> list[Request]:
    """Prompts that share starts of several lengths, with every kind of sampling; some are scored, a few only that."""
    common = [rng.randrange(cfg.vocab_size) for _ in range(200)]

    def tokens(least: int, most: int) -> list[int]:
        return [rng.randrange(cfg.vocab_size) for _ in range(rng.randint(least, most))]

    def sampling(seed: int) -> Sampling:
        temperature, top_k = rng.choice([0.0, 0.7, 1.0]), rng.choice([0, 5])
        return Sampling(temperature, top_k, rng.choice([1.0, 0.8]), rng.choice([0.0, 0.05]), seed)

    return [
        Request(
            [*common[: rng.choice([0, 64, 130, 200])], *tokens(1, 70)],
            rng.randint(1, longest) if number % 9 else 0,
            sampling(number),
            frozenset({3}),
            score_prompt=number % 3 == 0,
            alternatives=number % 4,
        )
        for number in range(count)
    ]


def serve(engine: Engine, asked: Sequence[Request], rng: random.Random) -> dict[int, Completion]:
    """Submit in random order, a few at a time between steps. Answers by the numbers of `asked`."""
    left, numbers = [*range(len(asked))], {}
    rng.shuffle(left)
    while left or engine.unfinished:
        for _ in range(min(len(left), rng.randrange(4))):
            one = left.pop()
            numbers[one] = engine.submit(asked[one])
        engine.step()
    return {one: engine.result(number) for one, number in numbers.items()}


class Trained:
    """One packed training forward pass over sequences of tokens."""

    def __init__(self, model: Decoder, sequences: Sequence[Sequence[int]], **media: Any) -> None:
        routes: list[Tensor] = []
        hooks = [
            block.moe.router.register_forward_hook(lambda _m, _i, out: routes.append(out[0])) for block in model.blocks
        ]
        self.bounds = [0, *accumulate(map(len, sequences))]
        ids = torch.tensor([[token for one in sequences for token in one]])
        positions = torch.cat([torch.arange(len(one)) for one in sequences]).unsqueeze(0)
        hidden = model(ids, positions, torch.tensor(self.bounds, dtype=torch.int32), **media).hidden
        for hook in hooks:
            hook.remove()
        logits = model.logits(hidden).detach()[0]
        self.log_probs = log_probs_of(logits[:-1], ids[0, 1:]).numpy()  # of each token's successor
        self.all_log_probs = (logits - torch.logsumexp(logits, dim=-1, keepdim=True)).numpy()  # of what may follow
        self.routes: npt.NDArray[np.uint16] = torch.stack(routes, 1).numpy().astype(np.uint16)

    def of(self, number: int, prompt: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint16]]:
        """The figures of a `Completion`: log-probabilities of a sequence's tokens behind its prompt, and its routes."""
        start, end = self.bounds[number : number + 2]
        return self.log_probs[start + prompt - 1 : end - 1], self.routes[start : end - 1]

    def check_scores(self, number: int, first: int, scores: Scores, alternatives: int) -> None:
        """The scores of a sequence's tokens from its token `first` on, with the number of alternatives asked for."""
        start = self.bounds[number] + first - 1
        places = slice(start, start + len(scores.log_probs))
        assert np.array_equal(scores.log_probs, self.log_probs[places])
        assert scores.ids.shape == scores.of_ids.shape == (len(scores.log_probs), alternatives)
        among = self.all_log_probs[places]
        assert np.array_equal(scores.of_ids, np.sort(among)[:, ::-1][:, :alternatives])
        assert np.array_equal(scores.of_ids, np.take_along_axis(among, scores.ids, 1))


def assert_as_trained(
    model: Decoder, asked: Sequence[Request], answers: Mapping[int, Completion], **media: Any
) -> None:
    """media: inputs of the forward pass beside the tokens."""
    order = sorted(answers)
    assert order == [*range(len(asked))]
    trained = Trained(model, [[*answers[one].prompt, *answers[one].ids] for one in order], **media)
    for place, one in enumerate(order):
        log_probs, routes = trained.of(place, len(answers[one].prompt))
        assert np.array_equal(answers[one].log_probs, log_probs), one
        assert np.array_equal(answers[one].routes, routes), one
        assert answers[one].routes.dtype == np.uint16
        alternatives, prompt_scores = asked[one].alternatives, answers[one].prompt_scores
        trained.check_scores(place, len(answers[one].prompt), answers[one].scores, alternatives)
        assert (prompt_scores is not None) == asked[one].score_prompt
        if prompt_scores is not None:
            assert len(prompt_scores.log_probs) == len(answers[one].prompt) - 1
            trained.check_scores(place, 1, prompt_scores, alternatives)
