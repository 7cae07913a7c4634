"""One process that rounds as ranks with an FP8 payload do."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from parallel.dispatch.local import LocalDispatch
from parallel.fp8 import fake_quantize

ROW = (1, 128)


class RoundedDispatch(LocalDispatch):
    """Rounds what ranks send: x on its way to the experts, and the gradient of their result on its way back."""

    def __call__(self, x: Tensor, *others: Any) -> Tensor:
        y = super().__call__(x + (fake_quantize(x, ROW) - x).detach(), *others)
        y.register_hook(lambda dy: fake_quantize(dy, ROW))
        return y
