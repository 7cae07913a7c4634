"""The routers' losses against their formulas, and a step's terms that add up over micro-batches and ranks."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from parallel.world import World
from tests.trainer.model.tiny import assert_close, build, gradients, model_config, random_ids, relative
from tests.trainer.model.tiny import logits as logits_of
from trainer.config.model import ModelConfig
from trainer.data.batch import IGNORE, Batch
from trainer.model.router import Router, RouterStats
from trainer.objectives.next_token import NextToken
from trainer.objectives.router import balance_loss
from trainer.objectives.scalars import GlobalBatch, Scalars

BALANCES = ("group", "global")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def stats_of_logits(cfg: ModelConfig, layers: list[Tensor]) -> RouterStats:
    """The statistics of each layer's router for logits [T, E]: its weight is the identity."""
    router = Router(cfg).double()
    router.weight = torch.nn.Parameter(torch.eye(cfg.num_experts, dtype=torch.float64))
    return RouterStats.stack([router(z)[2] for z in layers])


def balance_by_hand(z: Tensor, cfg: ModelConfig) -> Tensor:
    """alpha * mean over groups of n * sum_e f_e P_e for logits [T, E]; `global`: alpha * E * sum_e f_e P_e with
    f over all selections and P of the full softmax."""
    n, picks = cfg.num_experts // cfg.router_groups, cfg.experts_per_token // cfg.router_groups
    p = torch.softmax(z, dim=1)
    picked = torch.zeros_like(z)
    for row, selected in zip(z.tolist(), picked, strict=True):
        for g in range(cfg.router_groups):
            for e in sorted(range(g * n, (g + 1) * n), key=lambda e: -row[e])[:picks]:
                selected[e] = 1.0
    if cfg.balance == "global":
        share = picked.sum(0) / picked.sum()
        return cfg.balance_coef * cfg.num_experts * (share * p.mean(0)).sum()
    terms = []
    for g in range(cfg.router_groups):
        mine = slice(g * n, (g + 1) * n)
        share = picked[:, mine].sum(0) / picked[:, mine].sum()
        mean = (p[:, mine] / p[:, mine].sum(1, keepdim=True)).mean(0)
        terms.append(n * (share * mean).sum())
    return cfg.balance_coef * torch.stack(terms).mean()


@pytest.mark.parametrize("balance", BALANCES)
@pytest.mark.parametrize(("groups", "k"), [(1, 4), (3, 3), (2, 4)])
def test_balance_loss_is_the_formula_summed_over_layers(groups, k, balance):
    cfg = model_config(router_groups=groups, experts_per_token=k, balance=balance, balance_coef=0.3)
    layers = [normal(10, 12, seed=seed).mul(seed + 1).requires_grad_() for seed in range(3)]
    found = balance_loss(stats_of_logits(cfg, layers), cfg, tokens=10)
    expected = torch.stack([balance_by_hand(z, cfg) for z in layers]).sum()
    assert relative(found, expected) <= 1e-12
    for grad, by_hand in zip(torch.autograd.grad(found, layers), torch.autograd.grad(expected, layers), strict=True):
        assert relative(grad, by_hand) <= 1e-12
        assert grad.any()


@pytest.mark.parametrize("balance", BALANCES)
@pytest.mark.parametrize(("groups", "k"), [(1, 3), (3, 3), (2, 4)])
def test_balance_loss_is_its_coefficient_a_layer_at_balance(groups, k, balance):
    """Every expert as often as every other, though each token is far from undecided; twice that for two layers."""
    cfg = model_config(router_groups=groups, experts_per_token=k, balance=balance, balance_coef=0.3)
    n = cfg.num_experts // groups
    within = torch.stack([normal(n).roll(t) for t in range(n)])  # token t prefers what token 0 does, t places on
    z = 3.0 * within.repeat(1, groups)
    stats = stats_of_logits(cfg, [z, z])
    assert len(set(stats.counts.flatten().tolist())) == 1
    assert balance_loss(stats, cfg, tokens=n).item() == pytest.approx(2 * 0.3, rel=1e-13)
    lopsided = z.detach().clone()
    lopsided[:, ::n] += 5.0
    assert balance_loss(stats_of_logits(cfg, [lopsided]), cfg, tokens=n) > 1.2 * 0.3


def batch_of(ids: Tensor, labels: Tensor) -> Batch:
    rows, seq_len = ids.shape
    return Batch(
        inputs={"ids": ids, "positions": torch.arange(seq_len).expand(rows, -1)},
        labels=labels,
        cu_seqlens=torch.arange(0, (rows + 1) * seq_len, seq_len, dtype=torch.int32),
        num_tokens=int((labels != IGNORE).sum()),
        samples=list(range(rows)),
    )


def normalised(scalars: Scalars) -> dict[str, Tensor]:
    return {"total": scalars.total} | {name: scalar.normalised for name, scalar in scalars.items()}


@pytest.fixture(params=BALANCES)
def cfg(request: pytest.FixtureRequest) -> ModelConfig:
    return model_config(balance=str(request.param), balance_coef=0.5, z_loss_coef=0.2)


def step_inputs(cfg: ModelConfig) -> tuple[Tensor, Tensor]:
    """4 rows of 9 tokens; the rows do not supervise equally many tokens."""
    ids, labels = random_ids(cfg, 4, 9), random_ids(cfg, 4, 9, seed=8)
    labels[0, 2:7] = IGNORE
    labels[2, :8] = IGNORE
    return ids, labels


def test_terms_of_one_batch(cfg):
    model = build(cfg, dtype=torch.float64)
    ids, labels = step_inputs(cfg)
    logits: list[Tensor] = []
    for layer in model.blocks:
        layer.moe.router.register_forward_hook(
            lambda module, args, _out: logits.append(args[0].detach() @ module.weight.detach().T)
        )
    terms = normalised(NextToken(7)(model, batch_of(ids, labels), GlobalBatch(50, 3)))
    cross_entropy = F.cross_entropy(logits_of(model, ids).flatten(0, 1), labels.flatten(), reduction="sum") / 50
    logits = logits[: cfg.num_layers]
    assert relative(terms["loss"], cross_entropy) <= 1e-12
    assert relative(terms["balance"], torch.stack([balance_by_hand(z, cfg) for z in logits]).sum() / 3) <= 1e-12
    z_loss = sum(z.exp().sum(1).log().square().mean() for z in logits)
    assert relative(terms["z"], 0.2 * z_loss / 3) <= 1e-12
    assert relative(terms["total"], terms["loss"] + terms["balance"] + terms["z"]) <= 1e-15


def test_max_load_is_the_fullest_experts_share_of_its_fair_one():
    cfg = model_config(num_layers=1, router_groups=1, experts_per_token=1)
    model = build(cfg)
    with torch.no_grad():
        model.blocks[0].moe.router.weight.zero_()  # ties: all 18 tokens to expert 0 of 12
    terms = NextToken(8)(model, batch_of(*(random_ids(cfg, 2, 9),) * 2), GlobalBatch(18))
    assert terms["max_load"].normalised.item() == pytest.approx(12.0)
    assert not terms["max_load"].value.requires_grad


def test_two_ranks_add_up_to_one(cfg):
    """Each with half of the rows and the counts summed over both: terms and gradients sum to those of the whole."""
    model = build(cfg, dtype=torch.float64)
    ids, labels = step_inputs(cfg)
    supervised = int((labels != IGNORE).sum())
    whole = NextToken(16)(model, batch_of(ids, labels), GlobalBatch(supervised))
    whole.total.backward()
    expected = gradients(model)
    halves = [batch_of(*pair) for pair in zip(ids.chunk(2), labels.chunk(2), strict=True)]
    counts = sum(model(half.inputs["ids"]).routing.counts for half in halves)

    class TwoRanks(World):
        def sum_tensor(self, tensor: Tensor) -> Tensor:
            return counts

    ranks = [NextToken(16)(model, half, GlobalBatch(supervised, 1, TwoRanks(size=2))) for half in halves]
    for name, expected_term in normalised(whole).items():
        assert relative(sum(normalised(rank)[name] for rank in ranks), expected_term) <= 1e-12
    for rank in ranks:
        assert torch.equal(rank["max_load"].value, whole["max_load"].value)
        rank.total.backward()
    assert_close(gradients(model), expected, 1e-11)


def test_micro_batches_of_one_rank_add_up(cfg):
    """Cross-entropy to that of the whole; the router losses to the mean over the micro-batches."""
    model = build(cfg, dtype=torch.float64)
    ids, labels = step_inputs(cfg)
    supervised = int((labels != IGNORE).sum())
    batches = [batch_of(*pair) for pair in zip(ids.chunk(4), labels.chunk(4), strict=True)]
    parts = [normalised(NextToken(16)(model, one, GlobalBatch(supervised, 4))) for one in batches]
    alone = [normalised(NextToken(16)(model, one, GlobalBatch(supervised, 1))) for one in batches]
    whole = normalised(NextToken(16)(model, batch_of(ids, labels), GlobalBatch(supervised)))
    assert relative(sum(part["loss"] for part in parts), whole["loss"]) <= 1e-12
    for name in ("balance", "z", "max_load"):
        mean = sum(one[name] for one in alone) / 4
        assert relative(sum(part[name] for part in parts), mean) <= 1e-12


def test_a_group_without_a_pick_does_not_poison_the_balance_loss():
    cfg = model_config(router_groups=2, balance="group")
    counts = torch.zeros(1, cfg.num_experts)
    counts[0, 0] = 8.0  # replayed ids all in the first group
    stats = RouterStats(counts, torch.ones(1, cfg.num_experts), torch.zeros(1), 4)
    assert balance_loss(stats, cfg, 4).isfinite()
