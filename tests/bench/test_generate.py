"""The arms of the bench of generation give the same greedy text."""

import pytest
import torch

from tests.bench.generate import ARMS, asked, floor, write_model
from trainer.model.exact import blocks, experts


def test_requests_have_mixed_lengths_and_are_the_same_every_time():
    wanted = asked(64)
    assert wanted == asked(64)
    for lengths in ([len(prompt) for prompt, _ in wanted], [length for _, length in wanted]):
        assert min(lengths) < 16 < 128 < max(lengths) <= 256


@pytest.mark.slow
def test_all_arms_answer_alike(tmp_path):
    write_model(tmp_path)
    wanted = [(prompt, min(length, 12)) for prompt, length in asked(3)]
    with torch.no_grad():
        answers = {arm: make(tmp_path, wanted)() for arm, make in ARMS.items()}
    assert [len(answer) for answer in answers["octavo"]] == [length for _, length in wanted]
    assert all(found == answers["octavo"] for found in answers.values())


@pytest.mark.slow
def test_the_floor_is_a_part_of_the_whole(tmp_path):
    write_model(tmp_path)
    product, mixture = blocks.product, experts.mixture
    with torch.no_grad():
        (whole,), (products,) = floor(tmp_path, 2, 1)
    assert 0 < products < whole
    assert (blocks.product, experts.mixture) == (product, mixture)
