"""Losses that arise inside a pipeline stage, such as the routers', trained without sending them to the last stage."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _Attach(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, loss: Tensor) -> Tensor:
        ctx.save_for_backward(loss)
        return hidden.detach()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        (loss,) = ctx.saved_tensors
        return grads[0], torch.ones_like(loss)


def attach_loss(hidden: Tensor, loss: Tensor) -> Tensor:
    """`hidden`, whose backward pass also adds the gradients of `loss` (0-dim): those of a total loss that has it as a
    summand. The result is not a view, though it shares its memory."""
    return _Attach.apply(hidden, loss)
