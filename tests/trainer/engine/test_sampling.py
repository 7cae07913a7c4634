import math
from collections import Counter

import pytest
import torch
from transformers import RepetitionPenaltyLogitsProcessor

from trainer.engine.request import Sampling
from trainer.engine.sampling import bend, draw, log_probs_of, uniform

GENERATOR = torch.Generator().manual_seed(0)
LOGITS = torch.randn(1, 40, generator=GENERATOR) * 2


def drawn(times=4000, logits=LOGITS, **how):
    """The number of draws of each token, over positions."""
    rows = logits.expand(times, -1)
    return Counter(draw(rows, [Sampling(**how)] * times, range(times)).tolist())


def expected(p, times):
    return {token: times * share for token, share in enumerate(p.tolist()) if share}


def assert_distributed(found, p, times=4000):
    """Pearson's statistic, tokens of less than five draws together; its mean is the degrees of freedom."""
    wanted = expected(p, times)
    assert set(found) <= set(wanted)
    rare = {token for token, count in wanted.items() if count < 5}
    cells = [(found[token], count) for token, count in wanted.items() if token not in rare]
    cells.append((sum(found[token] for token in rare), sum(wanted[token] for token in rare)))
    statistic = sum((seen - count) ** 2 / count for seen, count in cells if count)
    assert statistic < len(cells) + 5 * math.sqrt(2 * len(cells))


def test_uniform_numbers_depend_on_seed_and_position_and_are_uniform():
    numbers = [uniform(seed, position) for seed in (0, 1, -5, 2**63 - 1) for position in range(500)]
    assert len(set(numbers)) == 2000
    assert 0 <= min(numbers) < max(numbers) < 1
    assert abs(sum(numbers) / 2000 - 0.5) < 0.03
    assert numbers[:2] == [uniform(0, 0), uniform(0, 1)]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_temperature(temperature):
    assert_distributed(drawn(temperature=temperature), torch.softmax(LOGITS[0] / temperature, -1))


def test_zero_temperature_is_the_first_maximum():
    logits = torch.tensor([[0.0, 3.0, 1.0, 3.0]])
    assert draw(logits, [Sampling(temperature=0.0)], [7]).tolist() == [1]


@pytest.mark.parametrize(
    ("how", "kept"),
    [
        ({"top_k": 3}, lambda p: p >= p.sort(descending=True).values[2]),
        ({"top_k": 400}, lambda p: p > 0),
        ({"top_p": 0.6}, lambda p: p >= next(least for least in sorted(p, reverse=True) if p[p >= least].sum() >= 0.6)),
        ({"top_p": 1e-9}, lambda p: p == p.max()),
        ({"min_p": 0.2}, lambda p: p >= 0.2 * p.max()),
    ],
)  # fmt: skip
def test_filters_keep_the_tokens_that_they_say(how, kept):
    p = torch.softmax(LOGITS[0].double(), -1)
    mask = kept(p)
    assert 1 <= mask.sum() <= 40
    p = p * mask
    assert_distributed(drawn(**how), p / p.sum())


def test_top_p_counts_within_what_top_k_leaves():
    logits = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log()
    # of 0.4 and 0.3 the first has 0.571 of the sum; of all four it has 0.4
    assert set(drawn(times=200, logits=logits, top_k=2, top_p=0.5)) == {0}
    assert set(drawn(times=200, logits=logits, top_p=0.5)) == {0, 1}


def test_a_draw_does_not_depend_on_the_batch():
    logits = torch.randn(30, 40, generator=GENERATOR)
    kinds = [{}, {"temperature": 0.0}, {"top_k": 5}, {"top_p": 0.7}, {"min_p": 0.1, "temperature": 0.6}]
    how = [Sampling(seed=row, **kinds[row % 5]) for row in range(30)]
    positions = [row * 3 for row in range(30)]
    together = draw(logits, how, positions).tolist()
    for row in range(30):
        assert draw(logits[row : row + 1], how[row : row + 1], positions[row : row + 1]).tolist() == [together[row]]
    order = torch.randperm(30, generator=GENERATOR).tolist()
    mixed = draw(logits[order], [how[row] for row in order], [positions[row] for row in order]).tolist()
    assert mixed == [together[row] for row in order]


def test_log_probabilities_are_those_before_temperature():
    logits = torch.randn(5, 40, generator=GENERATOR)
    ids = torch.tensor([3, 0, 39, 7, 7])
    reference = torch.log_softmax(logits.double(), -1).gather(-1, ids.unsqueeze(-1)).squeeze(-1)
    assert (log_probs_of(logits, ids) - reference).abs().max() < 1e-6


def test_a_repetition_penalty_is_that_of_transformers():
    ids = [3, 9, 3, 17, 39, 0]
    for penalty in (1.3, 0.7):
        how = [Sampling(repetition_penalty=penalty), Sampling()]
        found = bend(LOGITS.expand(2, -1), how, [(ids, 2), (ids, 2)])
        expected = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([ids]), LOGITS.clone())
        assert torch.equal(found, torch.cat([expected, LOGITS]))


def test_presence_and_frequency_are_of_the_answer_and_biases_are_added():
    """mu[j] - c[j] * frequency - (c[j] > 0) * presence, as OpenAI defines them."""
    how = Sampling(presence_penalty=0.5, frequency_penalty=-0.25, logit_bias=((7, 100.0), (9, -2.0)))
    prompt, answer = [1, 9, 9, 4], [9, 9, 5, 9]
    found = bend(LOGITS, [how], [([*prompt, *answer], len(prompt))])[0]
    expected = LOGITS[0].clone()
    for token, count in ((9, 3), (5, 1)):
        expected[token] -= 0.5 - 0.25 * count
    expected[7] += 100
    expected[9] -= 2
    assert torch.allclose(found, expected, rtol=0, atol=1e-6)
    assert draw(found.unsqueeze(0), [Sampling(temperature=0.0)], [0]).tolist() == [7]
    assert bend(LOGITS, [Sampling(temperature=0.3)], [([*prompt, *answer], 4)]) is LOGITS
