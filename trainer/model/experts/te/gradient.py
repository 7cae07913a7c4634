"""The gradients of weights that Transformer Engine is shown as one matrix for each expert.

Its GEMM for the weight gradient can write where it is told (`fuse_wgrad_accumulation` and the attribute `main_grad`),
in fp32, and add to what is there. Three ways, with what they cost the experts of one layer of the 1T model:

    add        to the fp32 gradient that the parameter has, in place; autograd gets nothing. 10 GB of traffic
    write      an fp32 tensor, the gradient of all experts, for autograd. 5 GB, and 14 more where autograd adds it
    as it is   a gradient in bf16, of weights in bf16, as FSDP gathers them

To add takes the parameter behind the tensor that a back end is given, and certainty that nobody but the optimizer looks
at what is added.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from parallel.torch_private import has_gradient_hooks, view_base


class WeightGradient:
    """Where the gradient of `weight` [E, ...] goes, for one forward pass and its backward pass.

    add: whether it may go where the parameter's gradient is. by_gemm: whether the GEMM writes it where it is told.
    """

    def __init__(self, weight: Tensor, *, add: bool) -> None:
        self.weight = weight
        self.target = gradient_to_add_to(weight) if add else None
        self.by_gemm = weight.requires_grad and weight.dtype == torch.float32
        self.written: list[tuple[Tensor, list[weakref.ref[Tensor]]]] = []

    def matrices(self, whole: Tensor) -> Sequence[Tensor]:
        """What Transformer Engine is shown: the E matrices of `whole` [E, rows, columns], the weight's values."""
        if self.target is None:
            matrices = _Matrices.apply(self.weight, whole, self)
            # Else an is_first_microbatch of None means that it adds.
            matrices[0].overwrite_main_grad = True
            return matrices
        leaves = [matrix.detach().requires_grad_() for matrix in whole.unbind(0)]
        for leaf, part in zip(leaves, self.target.view(whole.shape).unbind(0), strict=True):
            leaf.main_grad = part  # type: ignore[attr-defined]
        return leaves

    def forget_values(self, matrices: Sequence[Tensor], blank: Tensor) -> None:
        """Free what was shown: Transformer Engine keeps the matrices, for their main_grad, until backward. blank: of
        their shapes, without memory."""
        if self.by_gemm:
            for matrix, nothing in zip(matrices, blank.unbind(0), strict=True):
                matrix.data = nothing

    def prepare(self, matrices: Sequence[Tensor]) -> None:
        """Just before the GEMM: a place to write to. Raises RuntimeError where the one to add to is gone."""
        if self.target is not None:
            _refuse_replaced(self.weight, self.target)
        elif self.by_gemm:
            whole = torch.empty(self.weight.shape, dtype=torch.float32, device=self.weight.device)
            for matrix, part in zip(matrices, whole.view(-1, *matrices[0].shape).unbind(0), strict=True):
                matrix.main_grad = part  # type: ignore[attr-defined]
            # Weak, as the matrices hold the node of the graph that holds this object.
            self.written.append((whole, [weakref.ref(matrix) for matrix in matrices]))

    def take_written(self) -> Tensor:
        """Just after the GEMM: what it wrote, with nobody else to look at it.

        Transformer Engine keeps the matrices, and they the views in main_grad, for as long as the graph lives. With
        these around autograd would copy the gradient instead of taking it over, and what FSDP has reduced and let go
        would stay, of all layers.
        """
        whole, matrices = self.written.pop()
        for reference in matrices:
            if (matrix := reference()) is not None:
                del matrix.main_grad  # type: ignore[attr-defined]
        return whole


class _Matrices(torch.autograd.Function):
    """weight [E, ...], values [E, rows, columns] -> E matrices; one gradient for all."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, whole: Tensor, gradient: WeightGradient) -> tuple[Tensor, ...]:
        ctx.shape, ctx.dtype, ctx.gradient = weight.shape, weight.dtype, gradient
        ctx.set_materialize_grads(False)
        # Not views, which would keep the values for as long as they live.
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
        return together(parts).view(ctx.shape).to(ctx.dtype), None, None


def together(parts: Sequence[Tensor]) -> Tensor:
    """Tensors of one shape as one [E, ...]: the one that they are the rows of, or a copy."""
    whole, first = view_base(parts[0]), parts[0]
    if whole is None or whole.shape != (len(parts), *first.shape) or not whole.is_contiguous():
        return torch.stack(tuple(parts))
    size = first.numel() * first.element_size()
    rows = all(part.data_ptr() == whole.data_ptr() + e * size for e, part in enumerate(parts))
    return whole if rows else torch.stack(tuple(parts))


def gradient_to_add_to(weight: Tensor) -> Tensor | None:
    """The fp32 gradient of the parameter behind `weight`, where adding to it in place is all that autograd would do.

    None where there is none yet: FSDP takes gradients away after each backward pass, a step's first micro-batch makes
    one. None, too, where somebody registered a hook on the parameter (DeepSpeed does).
    """
    parameter = _parameter(weight)
    if parameter is None or has_gradient_hooks(parameter):
        return None
    grad = _gradient(parameter)
    alike = grad is not None and grad.dtype == torch.float32 and grad.shape == weight.shape and grad.is_contiguous()
    return grad if alike else None


def _parameter(weight: Tensor) -> Tensor | None:
    """The parameter that `weight` is, or whose part on this rank it is (expert parallelism without FSDP)."""
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
            "the gradient of the experts' weights was replaced between a forward pass and its backward pass, inside "
            "hold_weights: what this pass adds to it would be lost"
        )
