"""Our MoE layer on eight ranks against Megatron-core's all-to-all dispatcher and SequentialMLP.

Both get the ids and weights of our grouped router, and the same experts.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from parallel.dispatch.all_gather import AllGatherDispatch
from parallel.dispatch.all_to_all import AllToAllDispatch
from parallel.dispatch.base import Dispatcher
from parallel.dispatch.local import LocalDispatch
from parallel.groups import map_groups
from tests.distributed.pool import on_ranks
from tests.trainer.model.tiny import assert_close
from trainer.model.experts.grouped_mm import grouped_mm
from trainer.model.experts.module import Experts
from trainer.model.numerics import router_weights, select_experts

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("megatron") is None, reason="megatron-core has no wheel for this Python or platform"
)

EP = G = K = 8
T, H, I, E = 24, 32, 16, 64  # noqa: E741
# How much the logits favour the same experts for every token: not at all, or so much that others go without a row.
SPREADS = {"spread": 0.0, "skewed": 30.0}


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def inputs(spread: str) -> dict[str, Tensor]:
    """Tensors of all ranks together: x, dy [EP*T, H], ids, weights [EP*T, K], w13 [E, 2, I, H], w2 [E, H, I]."""
    tokens = EP * T
    logits = normal(tokens, E, seed=2) + SPREADS[spread] * normal(E, seed=3)
    ids = select_experts(logits, G, K)
    return {
        "x": normal(tokens, H, seed=0), "dy": normal(tokens, H, seed=1), "ids": ids,
        "weights": router_weights(logits, ids, "ste"), "w13": normal(E, 2, I, H, seed=4) / H**0.5,
        "w2": normal(E, H, I, seed=5) / I**0.5,
    }  # fmt: skip


def run_ours(dispatcher: Dispatcher, mine: dict[str, Tensor]) -> dict[str, Tensor]:
    experts = Experts(len(mine["w13"]), H, I, grouped_mm)
    with torch.no_grad():
        experts.w13.copy_(mine["w13"])
        experts.w2.copy_(mine["w2"])
    x, weights = (mine[name].clone().requires_grad_() for name in ("x", "weights"))
    y = dispatcher(x, mine["ids"], weights, E, experts)
    y.backward(mine["dy"])
    grads = {"dx": x.grad, "d weights": weights.grad, "dw13": experts.w13.grad, "dw2": experts.w2.grad}
    return {"y": y.detach(), **grads}


def run_megatron(config: Any, groups: Any, mine: dict[str, Tensor]) -> dict[str, Tensor]:
    from tests.megatron_shim import MegatronDispatch, MegatronExperts

    experts = MegatronExperts(config, groups, mine["w13"], mine["w2"])
    x, weights = (mine[name].clone().requires_grad_() for name in ("x", "weights"))
    y = MegatronDispatch(config, groups).on_rows(x, mine["ids"], weights, E, experts)
    y.backward(mine["dy"])
    d_w13, d_w2 = experts.gradients()
    return {"y": y.detach(), "dx": x.grad, "d weights": weights.grad, "dw13": d_w13, "dw2": d_w2}


def all_layers(spread: str) -> dict[str, dict[str, Tensor]]:
    """Outputs and gradients on this rank, by layer."""
    from tests.megatron_shim import MegatronDispatch, config_of, groups_of, on_cpu

    group, (alone, _) = dist.group.WORLD, dist.new_subgroups(1)
    mine = {name: tensor.chunk(EP)[group.rank()] for name, tensor in inputs(spread).items()}
    ours = {
        "reduce-scatter": AllGatherDispatch(group, map_groups(G, EP), combine="reduce_scatter"),
        "fixed order": AllGatherDispatch(group, map_groups(G, EP), combine="fixed_order"),
        "all-to-all": AllToAllDispatch(group),
    }
    results = {name: run_ours(dispatcher, mine) for name, dispatcher in ours.items()}
    with on_cpu():
        config, groups = config_of(H, I, E, K, ep=EP), groups_of(group, alone)
        results["Megatron's dispatcher, our experts"] = run_ours(MegatronDispatch(config, groups), mine)
        results["Megatron"] = run_megatron(config, groups, mine)
    return results


@pytest.mark.parametrize("spread", SPREADS)
def test_outputs_and_gradients_are_megatrons(spread: str):
    by_rank = on_ranks(EP, all_layers, spread, init=True)
    layers = {
        layer: {name: torch.cat([rank[layer][name] for rank in by_rank]) for name in by_rank[0][layer]}
        for layer in by_rank[0]
    }
    everything = inputs(spread)
    layers["all experts on one rank"] = run_ours(LocalDispatch(), everything)
    busy = len(everything["ids"].unique())
    assert busy == E if spread == "spread" else busy < E
    theirs = layers.pop("Megatron")
    for layer, found in layers.items():
        print(layer)  # seen where the comparison fails
        assert_close(found, theirs, 1e-5)
