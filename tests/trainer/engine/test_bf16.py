"""bf16: log-probabilities of generation beside those of a training forward pass of the same model."""

import random

import numpy as np
import pytest
import torch

from tests.trainer.engine.asked import Trained, requests, serve
from tests.trainer.model.tiny import build, model_config
from trainer.engine.engine import Engine
from trainer.model.decoder import Decoder
from trainer.model.exact.switch import make_exact


def usual() -> Decoder:
    return build(model_config(max_position=400), compute_dtype=torch.bfloat16).requires_grad_(False)


@pytest.mark.slow
def test_log_probabilities_are_near_those_of_training_in_either_arithmetic():
    rng = random.Random(2)
    exact = make_exact(usual())
    asked = requests(exact.cfg, 64, rng, longest=30)
    answers = serve(Engine(exact, batch=9, chunk=40), asked, rng)
    sequences = [[*answers[one].prompt, *answers[one].ids] for one in range(64)]
    for model in (exact, usual()):
        trained = Trained(model, sequences)
        pairs = [(trained.of(one, len(answers[one].prompt))[0], answers[one].log_probs) for one in range(64)]
        difference = np.concatenate([there - here for there, here in pairs]).astype(np.float64)
        assert len(difference) > 500
        assert np.abs(difference).mean() <= 0.01
        assert (np.exp(difference) - 1 - difference).mean() <= 1e-4
