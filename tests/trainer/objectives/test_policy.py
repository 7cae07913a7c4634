"""The policy objective: weights by hand, unbiasedness by enumeration, gradients, denominators."""

import itertools
import math
from dataclasses import replace

import pytest
import torch

from tests.trainer.model.tiny import build, model_config
from trainer.config.rl.keys import RlConfig
from trainer.data.batch import IGNORE, Batch
from trainer.objectives.policy import Policy, Tokens, diverge, kept, weigh
from trainer.objectives.scalars import GlobalBatch

THIRD = math.log(3.0)


def tokens_of(gap, moved=None, bounds=None):
    """Tokens with these log-ratios of the engines and of the weights, all of rollouts."""
    gap = torch.tensor(gap, dtype=torch.float64)
    moved = torch.zeros_like(gap) if moved is None else torch.tensor(moved, dtype=torch.float64)
    bounds = torch.tensor(bounds or [0, len(gap)], dtype=torch.int32)
    zero = torch.zeros_like(gap)
    return Tokens(gap + moved, gap, zero, torch.ones(len(gap), dtype=torch.bool), bounds)


def weights(tokens, cfg, advantages=None):
    advantages = torch.ones(len(tokens.gap), dtype=torch.float64) if advantages is None else torch.tensor(advantages)
    found, counts = weigh(tokens, advantages, cfg)
    return found.tolist(), {name: int(count) for name, count in counts.items()}


def logs(*ratios):
    return [math.log(ratio) for ratio in ratios]


# (mode, rho, r, weight): a = 0.5 and b = 4 are powers of two, whose logarithms exp turns back into them exactly
TABLE = [
    ("dual", 1.0, 1.0, 1.0),
    ("dual", 0.5, 1.0, 0.0),
    ("dual", 4.0, 1.0, 0.0),
    ("dual", 0.75, 1.0, 0.75),
    ("dual", 2.0, 1.5, 3.0),
    ("dual", 1.0, 0.5, 0.0),
    ("dual", 1.0, 4.0, 0.0),
    ("dual", 0.25, 2.0, 0.0),
    ("dual", 1000.0, 1.0, 0.0),
    ("dual", 0.001, 1.0, 0.0),
    ("joint", 0.25, 4.0, 1.0),
    ("joint", 2.0, 2.0, 0.0),
    ("joint", 0.25, 2.0, 0.0),
    ("joint", 1000.0, 0.001, 1.0),
    ("joint", 3.0, 1.0, 3.0),
]


@pytest.mark.parametrize(("mode", "rho", "r", "weight"), TABLE)
def test_the_weight_of_a_token_by_hand(mode, rho, r, weight):
    """The bounds themselves are outside."""
    cfg = RlConfig(mode=mode, alpha=0.5, beta=4.0, off_alpha=0.5, off_beta=4.0)
    (found,), _ = weights(tokens_of(logs(rho), logs(r)), cfg)
    assert found == pytest.approx(weight, abs=1e-12)
    if weight == 0.0:
        assert found == 0.0


def test_a_ratio_of_a_thousand_changes_nothing_but_its_count():
    cfg = RlConfig()
    found, counts = weights(tokens_of([0.0, math.log(1e3), 0.0, math.log(1e-3)]), cfg)
    assert found == [1.0, 0.0, 1.0, 0.0]
    assert (counts["masked/mis_low"], counts["masked/mis_high"]) == (1, 1)
    assert (counts["masked/off_low"], counts["masked/off_high"]) == (0, 0)


def test_levels_are_a_product_and_a_geometric_mean():
    """Two rollouts: of ratios 2, 2 and of 2, 0.5, 1."""
    given = tokens_of(logs(2.0, 2.0, 2.0, 0.5, 1.0), bounds=[0, 2, 5])
    wide = {"alpha": 0.1, "beta": 100.0}
    assert weights(given, RlConfig(level="sequence", **wide))[0] == pytest.approx([4.0, 4.0, 1.0, 1.0, 1.0])
    assert weights(given, RlConfig(level="geometric", **wide))[0] == pytest.approx([2.0, 2.0, 1.0, 1.0, 1.0])
    assert weights(given, RlConfig(level="sequence", alpha=0.1, beta=3.0))[0] == pytest.approx([0, 0, 1.0, 1.0, 1.0])


def test_a_veto_leaves_out_the_rollout():
    given = tokens_of([0.0, math.log(30.0), 0.0, 0.0, math.log(1e-4), 0.0], bounds=[0, 2, 4, 6])
    found, counts = weights(given, RlConfig(veto_high=20.0, beta=1e6))
    assert found == pytest.approx([0, 0, 1, 1, 0, 1])
    assert counts["masked/veto"] == 2
    assert weights(given, RlConfig(veto_low=1e-3))[0] == [1.0, 0.0, 1.0, 1.0, 0.0, 0.0]
    assert kept(given, RlConfig(veto_high=20.0, beta=1e6)).tolist() == [False, False, True, True, False, True]


@pytest.mark.parametrize(
    ("clips", "found"),
    [
        ({"clip_high": 0.2}, [0.0, 1.5, 0.75, 0.75]),
        ({"clip_low": 0.2}, [1.5, 1.5, 0.75, 0.0]),
        ({"dual_clip": 1.25}, [1.5, 0.0, 0.75, 0.75]),
        ({"clip_low": 0.2, "clip_high": 0.2, "dual_clip": 1.25}, [0.0, 0.0, 0.75, 0.0]),
    ],
)
def test_clips_depend_on_the_sign_of_the_advantage(clips, found):
    given = tokens_of([0.0] * 4, logs(1.5, 1.5, 0.75, 0.75))
    assert weights(given, RlConfig(**clips), [1.0, -1.0, 1.0, -1.0])[0] == pytest.approx(found)


# ---- a bandit with three arms: every outcome can be enumerated


def bandit_gradient(policy, sampler, rewards, group, cfg):
    """The expected gradient in the logits of `policy` [3], over all groups of `group` draws from `sampler`."""
    logits = policy.log().clone().requires_grad_()
    expected = torch.zeros(3, dtype=torch.float64)
    for drawn in itertools.product(range(3), repeat=group):
        arms = torch.tensor(drawn)
        values = rewards[arms]
        advantages = values - (values.sum() - values) / (group - 1)
        log_probs = torch.log_softmax(logits, -1)[arms]
        there = torch.ones(group, dtype=torch.bool)
        bounds = torch.arange(group + 1, dtype=torch.int32)
        tokens = Tokens(log_probs.detach(), log_probs.detach(), sampler.log()[arms], there, bounds)
        weight, _ = weigh(tokens, advantages, cfg)
        (gradient,) = torch.autograd.grad((weight * advantages * log_probs).sum() / group, logits, retain_graph=True)
        expected += sampler[arms].prod() * gradient
    return expected


def test_without_masks_the_gradient_is_unbiased_though_another_policy_draws():
    """The weights turn draws of the sampler into the true gradient sum_a p_a (R_a - E R) d log p_a. The baseline of
    others' rewards is theirs under the sampler, which no token of the rollout depends on."""
    policy, sampler = (torch.tensor(p, dtype=torch.float64) for p in ([0.5, 0.3, 0.2], [0.3, 0.3, 0.4]))
    rewards = torch.tensor([1.0, 0.2, 0.0], dtype=torch.float64)
    cfg = RlConfig(alpha=1e-9, beta=1e7)
    true = policy * (rewards - (policy * rewards).sum())
    assert torch.allclose(bandit_gradient(policy, sampler, rewards, 3, cfg), true, atol=1e-12)
    plain = bandit_gradient(policy, policy, rewards, 3, cfg)
    assert torch.allclose(plain, true, atol=1e-12)


def test_with_masks_the_bias_is_what_the_masked_arms_would_have_given():
    """Arm 2 has the ratio 0.2 / 0.4 = 0.5, on the bound, so it weighs nothing."""
    policy, sampler = (torch.tensor(p, dtype=torch.float64) for p in ([0.5, 0.3, 0.2], [0.3, 0.3, 0.4]))
    rewards = torch.tensor([1.0, 0.2, 0.0], dtype=torch.float64)
    found = bandit_gradient(policy, sampler, rewards, 3, RlConfig(alpha=0.5 + 1e-12, beta=5.0))
    baseline = (sampler * rewards).sum()
    missing = policy[2] * (rewards[2] - baseline) * (torch.tensor([0.0, 0.0, 1.0]) - policy)
    true = policy * (rewards - (policy * rewards).sum())
    assert torch.allclose(found, true - missing, atol=1e-12)
    assert not torch.allclose(found, true, atol=1e-3)


# ---- batches


def rollouts(model, rows=4, length=8):
    """A batch of `rows` windows, each two rollouts of 3 and 2 tokens behind prompts of 2 and 1."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(0, model.cfg.vocab_size, (rows, length), generator=generator)
    labels = torch.full((rows, length), IGNORE)
    share = torch.zeros(rows, length)
    for first, last in ((1, 4), (4, 6)):
        labels[:, first:last] = torch.randint(0, model.cfg.vocab_size, (rows, last - first), generator=generator)
        share[:, first:last] = 1 / (last - first)
    there = labels != IGNORE
    positions = torch.tensor([0, 1, 2, 3, 0, 1, 0, 1]).expand(rows, -1)
    bounds = torch.cat(
        [
            torch.arange(rows)[:, None] * length + torch.tensor([0, 4, 6]),
        ],
        dim=1,
    ).flatten()
    advantages = torch.randn(rows, length, generator=generator).where(there, 0.0)
    rollout = (-2.5 + torch.randn(rows, length, generator=generator)).where(there, 0.0)
    old = (rollout + 0.3 * torch.randn(rows, length, generator=generator)).where(there, 0.0)
    return Batch(
        inputs={"ids": ids, "positions": positions},
        labels=labels,
        cu_seqlens=torch.cat([bounds, torch.tensor([rows * length])]).to(torch.int32),
        num_tokens=int(there.sum()),
        samples=list(range(2 * rows)),
        extra={"advantages": advantages, "rollout": rollout, "old": old, "share": share, "real": there},
    )  # fmt: skip


def part(batch, rows):
    """Some windows of a batch, all of 8 positions."""
    first, last = rows.start, rows.stop
    bounds = batch.cu_seqlens
    inside = bounds[(bounds >= first * 8) & (bounds <= last * 8)] - first * 8
    labels = batch.labels[rows]
    return replace(
        batch,
        inputs={name: of[rows] for name, of in batch.inputs.items()},
        labels=labels,
        cu_seqlens=inside.to(torch.int32),
        num_tokens=int((labels != IGNORE).sum()),
        extra={name: of[rows] for name, of in batch.extra.items()},
    )


@pytest.fixture(scope="module")
def model():
    return build(model_config(balance_coef=0.0))


def test_the_gradient_is_weight_times_advantage_times_that_of_the_log_probability(model):
    """Nothing flows through the weights."""
    cfg = RlConfig(alpha=0.2, beta=5.0, off_alpha=0.2, off_beta=5.0)
    objective, batch = Policy(cfg, chunk=1024), rollouts(model)
    objective(model, batch, GlobalBatch(objective.count(batch))).total.backward()
    found = model.lm_head.grad.clone()
    model.zero_grad()
    hidden, _ = model(**batch.model_inputs())
    log_probs = torch.log_softmax(model.logits(hidden.flatten(0, 1)), -1)
    labels = batch.labels.flatten()
    there = labels != IGNORE
    log_probs = log_probs.gather(-1, labels.clamp_min(0)[:, None]).squeeze(-1)[there]
    rollout, old, advantages = (batch.extra[name].flatten()[there] for name in ("rollout", "old", "advantages"))
    rho, r = (old - rollout).exp(), (log_probs.detach() - old).exp()
    inside = (rho > 0.2) & (rho < 5) & (r > 0.2) & (r < 5)
    assert 0 < inside.sum() < len(inside)
    (-(rho * r * inside * advantages * log_probs).sum() / there.sum()).backward()
    assert torch.allclose(found, model.lm_head.grad, rtol=1e-5, atol=1e-7)
    model.zero_grad()


@pytest.mark.parametrize(
    "keys",
    [
        {"mode": "joint"},
        {"level": "sequence"},
        {"level": "geometric", "mode": "joint"},
        {"clip_low": 0.1, "clip_high": 0.1, "dual_clip": 1.2},
        {"veto_low": 0.3, "veto_high": 2.0},
    ],
    ids=lambda keys: "-".join(map(str, keys.values())),
)
def test_in_every_form_the_gradient_is_that_of_the_weighted_log_probabilities(model, keys):
    """The weights are those of the tables."""
    batch = rollouts(model)
    labels = batch.labels.flatten()
    there, extra = labels != IGNORE, {name: of.flatten() for name, of in batch.extra.items()}
    hidden, _ = model(**batch.model_inputs())
    log_probs = torch.log_softmax(model.logits(hidden.flatten(0, 1)), -1)
    log_probs = log_probs.gather(-1, labels.clamp_min(0)[:, None]).squeeze(-1).where(there, 0.0)
    cfg = RlConfig(alpha=0.01, beta=100.0, off_alpha=0.01, off_beta=100.0, **keys)
    tokens = Tokens(log_probs.detach(), extra["old"], extra["rollout"], there, batch.cu_seqlens)
    weight, _ = weigh(tokens, extra["advantages"], cfg)
    assert 0 < (weight != 0).sum() < there.sum() or "mode" in keys
    (-(weight * extra["advantages"] * log_probs).sum() / there.sum()).backward()
    expected = model.lm_head.grad.clone()
    model.zero_grad()
    assert expected.abs().max() > 1e-3
    objective = Policy(cfg, chunk=1024)
    objective(model, batch, GlobalBatch(objective.count(batch))).total.backward()
    assert torch.allclose(model.lm_head.grad, expected, rtol=1e-5, atol=1e-7)
    model.zero_grad()


@pytest.mark.parametrize("denominator", ["all", "kept", "sequence"])
def test_denominators_do_not_depend_on_the_cut_into_micro_batches(model, denominator):
    """Nor on chunks of logits. Each denominator is that of the whole step."""
    objective, batch = Policy(RlConfig(denominator=denominator), chunk=1024), rollouts(model)
    labels = batch.labels != IGNORE
    tokens = Tokens(
        *(batch.extra[name].flatten() for name in ("old", "old", "rollout")), labels.flatten(), batch.cu_seqlens
    )
    counted = kept(tokens, objective.cfg).view_as(labels)
    batch = replace(batch, extra={**batch.extra, "kept": counted})
    units = objective.count(batch)
    assert units == {"all": 20, "kept": int(counted.sum()), "sequence": 8}[denominator]
    objective(model, batch, GlobalBatch(units)).total.backward()
    whole = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    assert whole["lm_head"].abs().sum() > 0
    pieces = [part(batch, slice(0, 1)), part(batch, slice(1, 4))]
    assert sum(objective.count(piece) for piece in pieces) == units
    chunked = Policy(objective.cfg, chunk=5)
    for piece in pieces:
        chunked(model, piece, GlobalBatch(units, 2)).total.backward()
    for name, p in model.named_parameters():
        assert torch.allclose(p.grad, whole[name], rtol=1e-4, atol=1e-6), name
    model.zero_grad()


@pytest.mark.parametrize("denominator", ["all", "kept", "sequence"])
@pytest.mark.parametrize("chunk", [1024, 5])
def test_the_bonus_has_the_gradient_of_the_mean_entropy(denominator, chunk):
    """In fp64, of H = -sum p log p over what the denominator counts, alone: no rollout has an advantage."""
    model = build(model_config(balance_coef=0.0)).double()
    batch = rollouts(model)
    there = batch.labels != IGNORE
    counted = there & (torch.arange(8) != 2)
    zero = torch.zeros(there.shape)
    batch = replace(batch, extra={**batch.extra, "kept": counted, "advantages": zero})
    objective = Policy(RlConfig(denominator=denominator, entropy_coef=0.3), chunk=chunk)
    units = objective.count(batch)
    objective(model, batch, GlobalBatch(units)).total.backward()
    found = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad()
    p = torch.softmax(model.logits(model(**batch.model_inputs()).hidden.flatten(0, 1)), -1)
    assert p.dtype == torch.float64
    share = {"all": there / there.sum(), "kept": counted / counted.sum(), "sequence": batch.extra["share"] / units}
    (0.3 * (share[denominator].flatten() * (p * p.log()).sum(-1)).sum()).backward()
    assert found["lm_head"].abs().max() > 1e-4
    for name, p in model.named_parameters():
        if p.grad is not None:
            assert torch.allclose(found[name], p.grad, rtol=1e-5, atol=1e-9), name


def test_without_a_bonus_entropies_have_no_gradient(model):
    batch = rollouts(model)
    batch = replace(batch, extra={**batch.extra, "advantages": torch.zeros(batch.labels.shape)})
    objective = Policy(RlConfig(), chunk=1024)
    scalars = objective(model, batch, GlobalBatch(20))
    assert scalars["sum/entropy"].value > 0
    scalars.total.backward()
    assert not model.lm_head.grad.any()
    model.zero_grad()


FORMULAS = {"k2": lambda d: d.square() / 2, "k3": lambda d: (-d).exp() - 1 + d}


@pytest.mark.parametrize("estimator", FORMULAS)
@pytest.mark.parametrize("denominator", ["all", "kept", "sequence"])
@pytest.mark.parametrize("chunk", [1024, 5])
def test_the_divergence_has_the_value_and_gradient_of_its_formula(estimator, denominator, chunk):
    """In fp64 by autograd, over what the denominator counts, alone: no rollout has an advantage."""
    model = build(model_config(balance_coef=0.0)).double()
    batch = rollouts(model)
    there = batch.labels != IGNORE
    counted = there & (torch.arange(8) != 2)
    reference = (-2.5 + torch.randn(there.shape, generator=torch.Generator().manual_seed(7))).where(there, 0.0)
    nothing = torch.zeros(there.shape)
    extra = {**batch.extra, "kept": counted, "advantages": nothing, "reference": reference.double()}
    batch = replace(batch, extra=extra)
    objective = Policy(RlConfig(denominator=denominator, kl_coef=0.3, kl_estimator=estimator), chunk=chunk)
    units = objective.count(batch)
    scalars = objective(model, batch, GlobalBatch(units))
    scalars.total.backward()
    found = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad()
    log_probs = torch.log_softmax(model.logits(model(**batch.model_inputs()).hidden), -1)
    own = log_probs.gather(-1, batch.labels.clamp_min(0).unsqueeze(-1)).squeeze(-1)
    each = FORMULAS[estimator](own - reference).where(there, 0.0)
    share = {"all": there / there.sum(), "kept": counted / counted.sum(), "sequence": batch.extra["share"] / units}
    expected = 0.3 * (share[denominator] * each).sum()
    expected.backward()
    assert scalars["loss"].normalised.item() == pytest.approx(expected.item(), rel=1e-6)
    assert scalars["sum/kl/mean"].value.item() == pytest.approx(each.sum().item(), rel=1e-9)
    assert found["lm_head"].abs().max() > 1e-4
    for name, p in model.named_parameters():
        if p.grad is not None:
            assert torch.allclose(found[name], p.grad, rtol=1e-5, atol=1e-9), name


@pytest.mark.parametrize("estimator", FORMULAS)
def test_the_expected_divergence_by_enumeration(estimator):
    """A bandit with three arms, under the policy itself: the mean of k3 is KL(policy || reference), and its slopes
    have the gradient of KL(reference || policy); those of k2 have that of KL(policy || reference)."""
    logits = torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    policy = torch.softmax(logits, -1)
    values, slopes = diverge((policy.log() - reference.log()).detach(), estimator)
    reverse, forward = (policy * (policy / reference).log()).sum(), (reference * (reference / policy).log()).sum()
    if estimator == "k3":
        assert (policy.detach() * values).sum().item() == pytest.approx(reverse.item(), rel=1e-12)
    (found,) = torch.autograd.grad((policy.detach() * slopes * policy.log()).sum(), logits, retain_graph=True)
    (expected,) = torch.autograd.grad(reverse if estimator == "k2" else forward, logits)
    assert torch.allclose(found, expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("estimator", FORMULAS)
def test_a_divergence_of_a_token_that_the_reference_never_draws_is_finite(estimator):
    values, slopes = diverge(torch.tensor([-1e4, -20.0, 0.0, 20.0, 1e4]), estimator)
    assert values.isfinite().all()
    assert slopes.isfinite().all()
    assert (values[2], slopes[2]) == (0.0, 0.0)
    assert torch.equal(values[[0, 4]], values[[1, 3]])
    assert (slopes.sign() == torch.tensor([-1.0, -1.0, 0.0, 1.0, 1.0])).all()


def test_on_policy_and_aligned_it_is_plain_reinforce(model):
    objective, batch = Policy(RlConfig(), chunk=1024), rollouts(model)
    with torch.no_grad():
        log_probs = torch.log_softmax(model.logits(model(**batch.model_inputs()).hidden), -1)
        own = log_probs.gather(-1, batch.labels.clamp_min(0).unsqueeze(-1)).squeeze(-1)
        own = own.where(batch.labels != IGNORE, 0.0)
        batch = replace(batch, extra={**batch.extra, "rollout": own, "old": own})
        scalars = objective(model, batch, GlobalBatch(20))
    plain = -(batch.extra["advantages"] * own).sum() / 20
    assert scalars["loss"].normalised.item() == pytest.approx(plain.item(), rel=1e-5)
    assert scalars["sum/mismatch/k3"].value.item() == pytest.approx(0.0, abs=1e-9)


def test_a_batch_without_rollouts_has_no_gradient(model):
    """All groups of a rank may be worth the same."""
    batch = rollouts(model)
    nothing = {name: torch.zeros_like(of) for name, of in batch.extra.items()}
    batch = replace(batch, labels=torch.full_like(batch.labels, IGNORE), num_tokens=0, extra=nothing)
    objective = Policy(RlConfig(), chunk=1024)
    assert objective.count(batch) == 0
    objective(model, batch, GlobalBatch(1)).total.backward()
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())
    model.zero_grad()
