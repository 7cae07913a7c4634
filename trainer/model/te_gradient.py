"""A gradient that a GEMM adds to itself, in place of one that autograd would add.

A weight's gradient in fp32 is read and written once for each micro-batch, and no bf16 copy of it is made: for the
experts of one layer of the 1T model that is 14 GB of traffic a micro-batch less. It takes the parameter behind the
tensor that a back end is given, and certainty that nobody but the optimizer looks at what is added.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor


def gradient_to_add_to(weight: Tensor) -> Tensor | None:
    """The fp32 gradient of the parameter behind `weight`, where adding to it in place is all that autograd would do.

    None where there is none yet: FSDP takes gradients away after each backward pass, a step's first micro-batch makes
    one. None, too, where somebody registered a hook on the parameter (DeepSpeed does).
    """
    parameter = _parameter(weight)
    if parameter is None or parameter._backward_hooks or getattr(parameter, "_post_accumulate_grad_hooks", None):
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


def refuse_replaced(weight: Tensor, target: Tensor) -> None:
    parameter = _parameter(weight)
    now = None if parameter is None else _gradient(parameter)
    if now is None or now.data_ptr() != target.data_ptr():
        raise RuntimeError(
            "the gradient of the experts' weights was replaced between a forward pass and its backward pass, inside "
            "hold_weights: what this pass adds to it would be lost"
        )
