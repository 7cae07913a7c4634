"""Orthogonalise stacks of matrices by a quintic Newton-Schulz iteration.

With X = U diag(s) V^T an iteration a X + b (X X^T) X + c (X X^T)^2 X keeps U and V and maps each singular value s to
a s + b s^3 + c s^5. The coefficients are those of Muon (Jordan et al. 2024) and of torch.optim.Muon: five iterations
lift every value above 0.003 of the matrix' norm to between 0.68 and 1.21. The result is not U V^T but near it.
"""

from __future__ import annotations

import torch
from torch import Tensor

A, B, C = 3.4445, -4.7750, 2.0315
# Matrices are divided by their norm or by this, whichever is larger, so that a vanishing gradient gives a vanishing
# update.
SMALLEST_NORM = 1e-7


def orthogonalise(stack: Tensor, iterations: int) -> Tensor:
    """Approximate U V^T of the singular value decomposition of each matrix of `stack` [n, rows, columns].

    Everything is computed in the dtype of `stack`. Zero stays zero; NaN and infinity spread over their own matrix.
    """
    wide = stack if stack.shape[-2] <= stack.shape[-1] else stack.mT  # the smaller Gram matrix of the two
    x = wide / torch.linalg.vector_norm(wide, dim=(-2, -1), keepdim=True).clamp(min=SMALLEST_NORM)
    for _ in range(iterations):
        gram = torch.bmm(x, x.mT)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=B, alpha=C), x, beta=A)
    return x if wide is stack else x.mT
