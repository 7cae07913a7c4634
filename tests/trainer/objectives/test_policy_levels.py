"""Levels, modes and clips of the policy objective: by hand, by enumeration of every draw, and against PPO's own form.

A bandit's rollouts are drawn from `sampler`, their ratio of the engines is old over sampler, that of the weights new
over old: three different distributions.
"""

import itertools
import math

import pytest
import torch

from trainer.config.rl.keys import RlConfig
from trainer.objectives.policy import Tokens, kept, weigh
from trainer.rl.groups import leave_one_out

OPEN = {"alpha": 0.0, "beta": 1e8, "off_alpha": 0.0, "off_beta": 1e8}


def arms(*shares):
    return torch.tensor(shares, dtype=torch.float64)


def tokens_of(rho, r, bounds):
    gap, moved = (torch.tensor([math.log(ratio) for ratio in ratios], dtype=torch.float64) for ratios in (rho, r))
    there = torch.ones(len(gap), dtype=torch.bool)
    return Tokens(gap + moved, gap, torch.zeros_like(gap), there, torch.tensor(bounds, dtype=torch.int32))


# (mode, level, rho, r, weight of each token) for one rollout, with a = 0.5 and b = 4 for both ratios. Powers of two,
# whose logarithms exp turns back into them exactly: a product or a mean on a bound is outside.
ROLLOUTS = [
    ("dual", "sequence", [2.0, 1.0], [1.0, 1.0], 2.0),
    ("dual", "sequence", [2.0, 2.0], [1.0, 1.0], 0.0),
    ("dual", "sequence", [0.5, 1.0], [1.0, 1.0], 0.0),
    ("dual", "sequence", [8.0, 0.25], [1.0, 1.0], 2.0),
    ("dual", "sequence", [2.0, 0.5], [2.0, 1.0], 2.0),
    ("dual", "sequence", [1.0, 1.0], [0.5, 1.0], 0.0),
    ("dual", "sequence", [1024.0, 1.0], [1.0, 1.0], 0.0),
    ("dual", "sequence", [1024.0, 1 / 1024], [1.0, 1.0], 1.0),
    ("joint", "sequence", [8.0, 1.0], [0.25, 1.0], 2.0),
    ("joint", "sequence", [2.0, 1.0], [2.0, 1.0], 0.0),
    ("joint", "sequence", [0.25, 1.0], [2.0, 1.0], 0.0),
    ("dual", "geometric", [4.0, 1.0], [1.0, 1.0], 2.0),
    ("dual", "geometric", [16.0, 1.0], [1.0, 1.0], 0.0),
    ("dual", "geometric", [0.25, 1.0], [1.0, 1.0], 0.0),
    ("dual", "geometric", [4.0, 1.0], [1.0, 4.0], 4.0),
    ("joint", "geometric", [16.0, 1.0], [0.25, 1.0], 2.0),
    ("joint", "geometric", [16.0, 4.0], [0.25, 1.0], 0.0),
]


@pytest.mark.parametrize(("mode", "level", "rho", "r", "weight"), ROLLOUTS)
def test_the_weight_of_a_rollout_by_hand(mode, level, rho, r, weight):
    """Beside another one, of ratios of 1, which keeps its own."""
    cfg = RlConfig(mode=mode, level=level, alpha=0.5, beta=4.0, off_alpha=0.5, off_beta=4.0)
    given = tokens_of([*rho, 1.0], [*r, 1.0], [0, 2, 3])
    found, _ = weigh(given, torch.ones(3, dtype=torch.float64), cfg)
    assert found.tolist() == pytest.approx([weight, weight, 1.0], abs=1e-12)
    if weight == 0.0:
        assert found[:2].tolist() == [0.0, 0.0]


def test_a_rollout_without_tokens_weighs_nothing_at_every_level():
    """Padding, whose log-ratios are not read: they may be anything."""
    nothing = torch.zeros(3, dtype=torch.float64)
    there = torch.tensor([False, False, True])
    given = Tokens(nothing + 50, nothing - 50, nothing, there, torch.tensor([0, 2, 3], dtype=torch.int32))
    for level in ("token", "sequence", "geometric"):
        cfg = RlConfig(level=level, veto_low=0.1, veto_high=10.0, **OPEN)
        found, counts = weigh(given, torch.ones(3, dtype=torch.float64), cfg)
        assert found[:2].tolist() == [0.0, 0.0]
        assert all(int(count) <= 1 for count in counts.values())
        assert not kept(given, cfg)[:2].any()


def test_the_limits_of_clips_themselves_are_inside():
    """1 + 0.25, 1 - 0.25 and 4 are exact."""
    given = tokens_of([1.0] * 3, [1.0] * 3, [0, 3])
    given.moved = torch.tensor([1.25, 0.75, 4.0], dtype=torch.float64).log()
    signs = torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64)
    cfg = RlConfig(clip_low=0.25, clip_high=0.25, dual_clip=4.0, **OPEN)
    ratios = given.moved.exp()
    assert ratios.tolist() == [1.25, 0.75, 4.0]
    assert weigh(given, signs, cfg)[0].tolist() == ratios.tolist()
    given.moved = given.moved + torch.tensor([1e-9, -1e-9, 1e-9], dtype=torch.float64)
    assert weigh(given, signs, cfg)[0].tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    "clips",
    [
        {"clip_low": 0.2, "clip_high": 0.28},
        {"clip_low": 0.2, "clip_high": 0.28, "dual_clip": 3.0},
        {"dual_clip": 3.0, "clip_high": 0.5},
    ],
)
def test_clips_have_the_gradient_of_the_objective_that_ppo_maximises(clips):
    """min(r A, clip(r) A), and at least c A where A < 0 (Ye et al., Mastering Complex Control in MOBA Games, 2020), by
    autograd through r, for many tokens of equal engines."""
    generator = torch.Generator().manual_seed(2)
    log_probs = torch.randn(400, generator=generator, dtype=torch.float64).requires_grad_()
    old = log_probs.detach() + torch.randn(400, generator=generator, dtype=torch.float64)
    advantages = torch.randn(400, generator=generator, dtype=torch.float64)
    r = (log_probs - old).exp()
    low, high = 1 - clips.get("clip_low", math.inf), 1 + clips.get("clip_high", math.inf)
    aim = torch.minimum(r * advantages, r.clamp(low, high) * advantages)
    aim = torch.where(advantages < 0, torch.maximum(aim, clips.get("dual_clip", math.inf) * advantages), aim)
    (expected,) = torch.autograd.grad(aim.sum(), log_probs)
    there = torch.ones(400, dtype=torch.bool)
    tokens = Tokens(log_probs.detach(), old, old, there, torch.tensor([0, 400], dtype=torch.int32))
    weight, counts = weigh(tokens, advantages, RlConfig(**clips, **OPEN))
    assert torch.allclose(weight * advantages, expected, rtol=1e-12)
    assert 20 < counts["masked/clip"] == (expected == 0).sum() < 380


# ---- bandits


def expected_gradient(new, old, sampler, reward, length, group, cfg):
    """In the logits of `new`, [length, 3], one distribution for each token of a rollout: over all groups of rollouts
    from `sampler` [length, 3]. reward: of a rollout's arms. Sums over a rollout's tokens, means over rollouts."""
    logits = new.log().clone().requires_grad_()
    rollouts = list(itertools.product(range(3), repeat=length))
    place = torch.arange(length)
    total = torch.zeros_like(logits)
    for drawn in itertools.product(rollouts, repeat=group):
        picked = torch.tensor(drawn)  # [group, length]
        rewards = torch.tensor([reward(one) for one in drawn], dtype=torch.float64)
        advantages = torch.from_numpy(leave_one_out(rewards.numpy())).repeat_interleave(length)
        log_probs = torch.log_softmax(logits, -1)[place, picked].flatten()
        there = torch.ones(group * length, dtype=torch.bool)
        bounds = torch.arange(0, group * length + 1, length, dtype=torch.int32)
        tokens = Tokens(*((of.log()[place, picked]).flatten() for of in (new, old, sampler)), there, bounds)
        weight, _ = weigh(tokens, advantages, cfg)
        (gradient,) = torch.autograd.grad((weight * advantages * log_probs).sum() / group, logits)
        total += sampler[place, picked].prod() * gradient
    return total


def true_gradient(new, reward, length):
    """The gradient of the expected reward under `new`."""
    logits = new.log().clone().requires_grad_()
    shares = torch.softmax(logits, -1)
    mean = sum(
        math.prod(shares[at, arm] for at, arm in enumerate(one)) * reward(one)
        for one in itertools.product(range(3), repeat=length)
    )
    return torch.autograd.grad(mean, logits)[0]


NEW, OLD, SAMPLER = arms(0.5, 0.3, 0.2)[None], arms(0.4, 0.4, 0.2)[None], arms(0.25, 0.35, 0.4)[None]


def single(arm):
    return (1.0, 0.2, 0.0)[arm[0]]


@pytest.mark.parametrize("mode", ["dual", "joint"])
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_without_masks_three_distributions_give_the_gradient_of_the_new_one(mode, level):
    found = expected_gradient(NEW, OLD, SAMPLER, single, 1, 3, RlConfig(mode=mode, level=level, **OPEN))
    assert torch.allclose(found, true_gradient(NEW, single, 1), atol=1e-12)


@pytest.mark.parametrize(
    ("cfg", "gone"),
    [
        # old / sampler: 1.6, 1.14, 0.5; new / old: 1.25, 0.75, 1; new / sampler: 2, 0.857, 0.5
        (RlConfig(mode="dual", **{**OPEN, "alpha": 0.6}), [2]),
        (RlConfig(mode="dual", **{**OPEN, "off_alpha": 0.8}), [1]),
        (RlConfig(mode="dual", **{**OPEN, "beta": 1.5, "off_alpha": 0.8}), [0, 1]),
        (RlConfig(mode="joint", **{**OPEN, "beta": 1.9}), [0]),
        (RlConfig(mode="joint", **{**OPEN, "alpha": 0.9}), [1, 2]),
        (RlConfig(veto_low=0.6, **OPEN), [2]),
    ],
)
def test_the_bias_of_a_mask_is_what_its_arms_would_have_given(cfg, gone):
    """The baseline of the others stays, as masks leave advantages as they are."""
    found = expected_gradient(NEW, OLD, SAMPLER, single, 1, 3, cfg)
    rewards = arms(1.0, 0.2, 0.0)
    baseline = (SAMPLER[0] * rewards).sum()
    missing = sum(NEW[0, arm] * (rewards[arm] - baseline) * (torch.eye(3, dtype=torch.float64)[arm] - NEW[0])
                  for arm in gone)  # fmt: skip
    true = true_gradient(NEW, single, 1)
    assert torch.allclose(found[0], true[0] - missing, atol=1e-12)
    assert not torch.allclose(found, true, atol=1e-3)


def test_of_several_tokens_only_the_product_is_unbiased():
    """A reward of both tokens together: ratios of single tokens leave out those of the others."""
    new, old, sampler = (torch.cat([a, b]) for a, b in zip((NEW, OLD, SAMPLER), (SAMPLER, NEW, OLD), strict=True))

    def reward(one):
        return float(one[0] == one[1]) + 0.3 * one[0]

    true = true_gradient(new, reward, 2)
    for mode in ("dual", "joint"):
        of_rollouts = expected_gradient(new, old, sampler, reward, 2, 2, RlConfig(mode=mode, level="sequence", **OPEN))
        assert torch.allclose(of_rollouts, true, atol=1e-12)
    of_tokens = expected_gradient(new, old, sampler, reward, 2, 2, RlConfig(**OPEN))
    assert not torch.allclose(of_tokens, true, atol=1e-3)
    alone = expected_gradient(new, new, new, reward, 2, 2, RlConfig(**OPEN))
    assert torch.allclose(alone, true, atol=1e-12)
