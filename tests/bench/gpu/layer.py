"""Whole layers as the model runs them: the mixture of experts with its router, and a decoder layer of the 1T model.

Legend: T tokens · H hidden size.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from parallel.context.base import Documents
from tests.bench.gpu.clock import Arm, Skipped, tolerance_of
from tests.bench.gpu.routing import Size, draw_logits, plant
from trainer.model.decoder import DecoderBlock
from trainer.model.experts.base import QuantizedBackend
from trainer.model.experts.choose import choose_backend
from trainer.model.rotary import Rotary
from trainer.precision import experts_unavailable

DOCUMENT = 4096  # tokens of a document in the decoder layer's batch


def build(module: nn.Module, dtype: torch.dtype, device: torch.device, *, masters: bool) -> None:
    """Fill a module that is on meta with random numbers that `dtype` can hold, in it or, as masters, in fp32."""
    generator = torch.Generator(device).manual_seed(0)
    for name, parameter in list(module.named_parameters()):
        drawn = torch.ones(parameter.shape, device=device)
        if drawn.ndim > 1:
            drawn.normal_(std=parameter.shape[-1] ** -0.5, generator=generator)
        weight = drawn.to(dtype).to(torch.float32 if masters else dtype)
        owner, _, leaf = name.rpartition(".")
        setattr(module.get_submodule(owner), leaf, nn.Parameter(weight))


class Layers:
    """The slice's decoder layer, whose mixture of experts is also timed alone, and a batch for each of the two.

    masters: the weights are fp32 and have gradients, to which a pass adds: a micro-batch of a step but the first, as
    training does it on one GPU or with experts that no one else holds. Otherwise they are in the batch's dtype and
    their gradients are made anew.
    """

    def __init__(self, size: Size, *, masters: bool = False) -> None:
        part, tokens, dtype, device = size.part, size.tokens, size.dtype, size.device
        cfg = part.config(positions="fope", rope_theta=5e6, max_position=262144)
        with torch.device("meta"):
            block = DecoderBlock(cfg, size.ops)
        build(block, dtype, device, masters=masters)
        self.block, self.moe, self.masters, self.ops = block, block.moe, masters, size.ops
        generator = torch.Generator(device).manual_seed(3)
        drawn, self.dy = (
            torch.empty(tokens, part.hidden, dtype=dtype, device=device).normal_(generator=generator) for _ in range(2)
        )
        logits = draw_logits(part, tokens, size.skew).to(device)
        # Such that the mixture's own router selects as the size says.
        self.x = plant(drawn, self.moe.router.weight.detach(), logits).requires_grad_()
        self.drawn = drawn.requires_grad_()
        document = min(DOCUMENT, tokens)
        self.docs = Documents.rows(tokens // document, document, device)
        rotary = Rotary(cfg).to(device)
        for matrix in rotary.buffers():
            matrix.copy_(torch.eye(matrix.shape[-1]))
        self.cos, self.sin = rotary(torch.arange(document, device=device).repeat(tokens // document), dtype)

    def moe_arm(self, precision: str) -> Arm | Skipped:
        """Router, order of the rows, experts, sum. With quantised weights held, as in all but the first micro-batch of
        a step."""
        return self._arm(precision, self.moe, lambda: self.moe(self.x)[0], self.x)

    def block_arm(self, precision: str) -> Arm | Skipped:
        """A whole decoder layer; its router selects from what attention makes of random numbers, about uniformly."""
        return self._arm(
            precision, self.block, lambda: self.block(self.drawn, self.cos, self.sin, self.docs)[0], self.drawn
        )

    def _arm(self, precision: str, module: nn.Module, run: Callable[[], Tensor], x: Tensor) -> Arm | Skipped:
        if reason := experts_unavailable(precision, x.device):
            return Skipped(reason)
        backend = choose_backend(precision, "grouped_mm", self.ops)()
        if isinstance(backend, QuantizedBackend):
            backend.hold_weights(True)
        leaves = {"x": x, **dict(module.named_parameters())}
        if self.masters:
            for parameter in module.parameters():
                parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad

        def forward() -> Tensor:
            self.moe.experts.backend = backend
            return run()

        def both() -> tuple[Tensor, ...]:
            y = forward()
            if not self.masters:
                return y.detach(), *torch.autograd.grad(y, list(leaves.values()), self.dy)
            x.grad = None
            y.backward(self.dy)
            return y.detach(), *(leaf.grad for leaf in leaves.values() if leaf.grad is not None)

        def results() -> dict[str, Tensor]:
            for leaf in leaves.values():
                if leaf.grad is not None:
                    leaf.grad.zero_()
            y, *grads = both()
            return {"y": y, **{f"d {name}": grad for name, grad in zip(leaves, grads, strict=True)}}

        return Arm(forward, both, results, tolerance_of(precision))
