"""Our router against Megatron-core's `TopKRouter`: one group, softmax renormalised over the best eight."""

from __future__ import annotations

import importlib.util

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from tests.distributed.pool import on_ranks
from tests.trainer.model.tiny import assert_close
from trainer.config.model import ModelConfig
from trainer.model.router import Router

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("megatron") is None, reason="megatron-core has no wheel for this Python or platform"
)

K = 8
SHAPES = {
    "toy": (96, 256, 64, 0.02),  # tokens, hidden, experts, spread of the router's weights
    "sure of itself": (64, 128, 64, 0.5),
    "512 experts": (33, 64, 512, 0.1),
    "all experts": (16, 48, 8, 0.1),
    "one token": (1, 32, 16, 0.1),
}


def inputs(shape: str, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """x [T, H], router weight [E, H], dL/d(routing weights as a [T, E] table)."""
    tokens, hidden, experts, spread = SHAPES[shape]
    generator = torch.Generator().manual_seed(seed)
    x, weight, grad = (torch.randn(n, m, generator=generator) for n, m in
                       ((tokens, hidden), (experts, hidden), (tokens, experts)))  # fmt: skip
    return x, weight * spread, grad


def megatron(cases: list[tuple[str, int]]) -> list[tuple[Tensor, dict[str, Tensor]]]:
    """For each case the selection [T, E] bool; the weights as a [T, E] table, gradients of router weight and x."""
    from tests.megatron_shim import config_of, groups_of, on_cpu, router_of

    groups = groups_of(dist.group.WORLD, dist.group.WORLD)
    results = []
    for case in cases:
        x, weight, grad = inputs(*case)
        x.requires_grad_()
        with on_cpu():
            router = router_of(config_of(x.shape[1], 16, len(weight), K), groups, weight)
            probabilities, selected = router(x.unsqueeze(1))
            probabilities.backward(grad)
        results.append((selected, {"weights": probabilities.detach(), "d router": router.weight.grad, "dx": x.grad}))
    return results


def test_ids_weights_and_gradients_are_megatrons():
    cases = [(shape, seed) for shape in SHAPES for seed in range(3)]
    [theirs] = on_ranks(1, megatron, cases, init=True)
    for case, (selected, expected) in zip(cases, theirs, strict=True):
        x, weight, grad = inputs(*case)
        cfg = ModelConfig(
            vocab_size=8, hidden_size=x.shape[1], num_layers=1, num_heads=1, num_kv_heads=1, head_dim=8,
            num_experts=len(weight), experts_per_token=K, router_groups=1, expert_width=16,
            router_gradient="conventional",
        )  # fmt: skip
        router = Router(cfg)
        with torch.no_grad():
            router.weight.copy_(weight)
        x.requires_grad_()
        ids, weights, _ = router(x)
        table = torch.zeros_like(grad).scatter(1, ids, weights)
        table.backward(grad)
        chosen = torch.zeros_like(selected).scatter(1, ids, True)
        assert chosen.sum() == len(x) * K, case
        assert torch.equal(chosen, selected), case
        found = {"weights": table.detach(), "d router": router.weight.grad, "dx": x.grad}
        assert_close(found, expected, 1e-5)
