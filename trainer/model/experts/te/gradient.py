"""The gradients of weights that Transformer Engine is shown as one matrix for each expert.

Its GEMM for the weight gradient can write to a given place in fp32 (`fuse_wgrad_accumulation` and the attribute
`main_grad`), and add to its content. Three ways, with their cost for the experts of one layer of the 1T model:

    add        to the fp32 gradient that the parameter has, in place; autograd gets nothing. 10 GB of traffic
    write      an fp32 tensor, the gradient of all experts, for autograd. 5 GB, and 14 more where autograd adds it
    plain      a gradient in bf16, of weights in bf16, as FSDP gathers them

Adding takes the parameter behind the tensor that a back end is given, and certainty that only the optimizer reads the
result.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from parallel.torch_private import has_gradient_hooks, view_base
from trainer.model.experts.te import private


class WeightGradient:
    """The target of the gradient of `weight` [E, ...], for one forward pass and its backward pass.

    add: the parameter's own gradient may be the target. by_gemm: the GEMM writes to a target; otherwise it makes a
    gradient for autograd.
    """

    def __init__(self, weight: Tensor, *, add: bool) -> None:
        self.weight = weight
        self.target = gradient_to_add_to(weight) if add else None
        self.by_gemm = weight.requires_grad and weight.dtype == torch.float32
        self.written: list[tuple[Tensor, list[weakref.ref[Tensor]]]] = []

    def matrices(self, whole: Tensor) -> Sequence[Tensor]:
        """The E matrices of `whole` [E, rows, columns], the weight's values, to show to Transformer Engine."""
        if self.target is None:
            matrices = _Matrices.apply(self.weight, whole, self)
            private.overwrite_target(matrices[0])
            return matrices
        leaves = [matrix.detach().requires_grad_() for matrix in whole.unbind(0)]
        for leaf, part in zip(leaves, self.target.view(whole.shape).unbind(0), strict=True):
            private.write_gradient_to(leaf, part)
        return leaves

    def forget_values(self, matrices: Sequence[Tensor], blank: Tensor) -> None:
        """Free the values: Transformer Engine keeps the matrices, for their targets, until backward. blank: matrices
        of their shapes without memory."""
        if self.by_gemm:
            for matrix, nothing in zip(matrices, blank.unbind(0), strict=True):
                matrix.data = nothing

    def prepare(self, matrices: Sequence[Tensor]) -> None:
        """Provide a target just before the GEMM. Raises RuntimeError where the one to add to was replaced."""
        if self.target is not None:
            _refuse_replaced(self.weight, self.target)
        elif self.by_gemm:
            whole = torch.empty(self.weight.shape, dtype=torch.float32, device=self.weight.device)
            for matrix, part in zip(matrices, whole.view(-1, *matrices[0].shape).unbind(0), strict=True):
                private.write_gradient_to(matrix, part)
            # Weak, as the matrices hold the node of the graph that holds this object.
            self.written.append((whole, [weakref.ref(matrix) for matrix in matrices]))

    def take_written(self) -> Tensor:
        """Return the gradient just after the GEMM wrote it, and drop every other reference to it.

        Transformer Engine keeps the matrices, and they the views of their targets, for as long as the graph lives. With
        these references autograd would copy the gradient instead of taking it over, and the memory of gradients that
        FSDP has already reduced would stay allocated in all layers.
        """
        whole, matrices = self.written.pop()
        for reference in matrices:
            if (matrix := reference()) is not None:
                private.forget_target(matrix)
        return whole


class _Matrices(torch.autograd.Function):
    """weight [E, ...], values [E, rows, columns] -> E matrices; one gradient for all."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, whole: Tensor, gradient: WeightGradient) -> tuple[Tensor, ...]:
        ctx.shape, ctx.dtype, ctx.gradient = weight.shape, weight.dtype, gradient
        ctx.set_materialize_grads(False)
        # Not views, which would keep the values alive.
        storage, (rows, columns), stride = whole.untyped_storage(), whole.shape[1:], whole.stride()
        first = whole.storage_offset()
        return tuple(
            whole.new_empty(0).set_(storage, first + e * stride[0], (rows, columns), stride[1:])
            for e in range(len(whole))
        )

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, None, None]:
        if ctx.gradient.written:
            return ctx.gradient.take_written(), None, None
        parts = [grad for grad in grads if grad is not None]
        return stack_without_copy(parts).view(ctx.shape).to(ctx.dtype), None, None


def stack_without_copy(parts: Sequence[Tensor]) -> Tensor:
    """E tensors of one shape as one [E, ...]: the tensor whose rows they are, or else a copy."""
    whole, first = view_base(parts[0]), parts[0]
    if whole is None or whole.shape != (len(parts), *first.shape) or not whole.is_contiguous():
        return torch.stack(tuple(parts))
    size = first.numel() * first.element_size()
    rows = all(part.data_ptr() == whole.data_ptr() + e * size for e, part in enumerate(parts))
    return whole if rows else torch.stack(tuple(parts))


def gradient_to_add_to(weight: Tensor) -> Tensor | None:
    """The fp32 gradient of the parameter behind `weight`, where autograd would only add to it in place.

    None where there is no gradient yet: FSDP removes gradients after each backward pass, and a step's first micro-batch
    makes one. None also where the parameter has a hook (DeepSpeed registers one).
    """
    parameter = _parameter(weight)
    if parameter is None or has_gradient_hooks(parameter):
        return None
    grad = _gradient(parameter)
    alike = grad is not None and grad.dtype == torch.float32 and grad.shape == weight.shape and grad.is_contiguous()
    return grad if alike else None


def _parameter(weight: Tensor) -> Tensor | None:
    """The parameter that `weight` is, or is this rank's part of (expert parallelism without FSDP)."""
    if weight.is_leaf:
        return weight if weight.requires_grad else None
    assert weight.grad_fn is not None
    found = getattr(weight.grad_fn.next_functions[0][0], "variable", None)
    if not isinstance(found, DTensor):
        return None
    part = found.to_local().detach()
    same = part.data_ptr() == weight.data_ptr() and part.shape == weight.shape and part.dtype == weight.dtype
    return found if same else None


def _gradient(parameter: Tensor) -> Tensor | None:
    grad = parameter.grad
    if isinstance(parameter, DTensor) and isinstance(grad, DTensor):
        return grad.to_local() if grad.placements == parameter.placements else None
    return grad


def _refuse_replaced(weight: Tensor, target: Tensor) -> None:
    parameter = _parameter(weight)
    now = None if parameter is None else _gradient(parameter)
    if now is None or now.data_ptr() != target.data_ptr():
        raise RuntimeError(
            "the gradient of the experts' weights was replaced between a forward pass and its backward pass while "
            "weights are held: the sum of this pass would be lost"
        )
