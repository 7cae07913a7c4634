"""One mixture-of-experts layer, run over expert-parallel ranks and as a dense fp64 loop over its experts."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from parallel.dispatch.base import Dispatcher
from parallel.groups import Placement
from tests.trainer.model.tiny import model_config
from trainer.model.moe import MoE


class Case(NamedTuple):
    groups: int
    experts_per_token: int
    experts: int = 64
    tokens: int = 24  # on each rank
    hidden: int = 24
    width: int = 16
    gradient: str = "ste"
    logits: str = "random"

    def config(self) -> Any:
        return model_config(
            router_groups=self.groups,
            experts_per_token=self.experts_per_token,
            num_experts=self.experts,
            hidden_size=self.hidden,
            expert_width=self.width,
            router_gradient=self.gradient,
        )


class Tensors(NamedTuple):
    """A layer's result and gradients; of one rank, or of all."""

    y: Tensor
    dx: Tensor
    d_router: Tensor
    d_w13: Tensor
    d_w2: Tensor


def weights_of(case: Case) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(11)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    E, H, I = case.experts, case.hidden, case.width  # noqa: E741
    router = draw(E, H) * H**-0.5
    if case.logits == "constant":
        router.zero_()
    elif case.logits == "one-hot":  # one expert of each group outdoes all others for every token
        router.zero_()
        router[:: E // case.groups, 0] = 100.0
    elif case.logits == "adversarial":  # a handful of experts takes everything, in groups of different appetites
        router *= torch.linspace(0.0, 40.0, E, dtype=torch.float64).unsqueeze(1)
    return {"router": router, "w13": draw(E, 2, I, H) * H**-0.5, "w2": draw(E, H, I) * I**-0.5}


def tokens_of(case: Case, ranks: int) -> tuple[Tensor, Tensor]:
    """x and dL/dy [ranks * T, H] in fp64, exact in fp32 too so that all dtypes select the same experts."""
    generator = torch.Generator().manual_seed(12)
    shape = ranks * case.tokens, case.hidden
    x, dy = (torch.randn(shape, generator=generator).double() for _ in range(2))
    if case.logits == "one-hot":
        x[:, 0] = x[:, 0].abs() + 1.0
    return x, dy


def build_layer(case: Case, placement: Placement, rank: int, dispatcher: Dispatcher, dtype: torch.dtype) -> MoE:
    """The layer with this rank's part of the experts."""
    moe, full = MoE(case.config()), weights_of(case)
    ids, width = placement.experts(rank, case.experts), placement.width(rank, case.width)
    moe.router.weight = nn.Parameter(full["router"].to(dtype))
    moe.experts.w13 = nn.Parameter(full["w13"][ids][:, :, width].to(dtype, copy=True).contiguous())
    moe.experts.w2 = nn.Parameter(full["w2"][ids][:, :, width].to(dtype, copy=True).contiguous())
    moe.dispatcher = dispatcher
    return moe


def run_layer(moe: MoE, x: Tensor, dy: Tensor) -> Tensors:
    x = x.clone().requires_grad_()
    y, _ = moe(x)
    y.backward(dy)
    grads = (x.grad, moe.router.weight.grad, moe.experts.w13.grad, moe.experts.w2.grad)
    assert all(grad is not None for grad in grads)
    return Tensors(y.detach(), *grads)


def dense_reference(case: Case, ranks: int) -> Tensors:
    """All tokens of all ranks at once: every expert computes every token, the routing weights pick; fp64."""
    x, dy = tokens_of(case, ranks)
    x.requires_grad_()
    full = {name: weight.requires_grad_() for name, weight in weights_of(case).items()}
    moe = MoE(case.config())
    moe.router.weight = nn.Parameter(full["router"].detach())
    ids, weights, _ = moe.router(x)
    dense = torch.zeros(len(x), case.experts, dtype=torch.float64).scatter(1, ids, weights)
    y = torch.zeros_like(x)
    for expert in range(case.experts):
        gate, up = full["w13"][expert]
        act = F.silu(x @ gate.t()) * (x @ up.t())
        y = y + dense[:, expert, None] * (act @ full["w2"][expert].t())
    y.backward(dy)
    grads = (x.grad, moe.router.weight.grad, full["w13"].grad, full["w2"].grad)
    return Tensors(y.detach(), *grads)


def joined(parts: list[Tensors], placement: Placement) -> Tensors:
    """Join what the ranks hold: tokens and experts side by side, the router's gradient summed."""
    experts, widths = placement.expert_shards, placement.width_shards

    def whole(name: str) -> Tensor:
        by_expert = [
            torch.cat([getattr(parts[e * widths + w], name) for w in range(widths)], dim=2) for e in range(experts)
        ]
        return torch.cat(by_expert)

    return Tensors(
        torch.cat([part.y for part in parts]),
        torch.cat([part.dx for part in parts]),
        torch.stack([part.d_router for part in parts]).sum(0),
        whole("d_w13"),
        whole("d_w2"),
    )
