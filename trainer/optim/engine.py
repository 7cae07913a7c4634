"""The seam between the training loop and an optimizer."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn


class Engine(Protocol):
    """An optimizer as the training loop sees it. Gradients are sums over all ranks, never averages: the loss passed to
    `backward` is already divided by the global token count."""

    def prepare(self) -> None:
        """Take over the parameters and allocate all state; after they have values and before a checkpoint is loaded."""

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of one micro-batch's `loss` (0-dim) to those of the step."""

    def step(self, step: int, steps: int) -> dict[str, Tensor]:
        """Apply the gradients of all ranks as optimizer step `step` of `steps` and drop them.

        Returns scalars by name, 0-dim on the device and equal on all ranks: `grad_norm`, the global norm before
        clipping; `skipped_in_a_row` and `skipped`, the number of steps skipped because the norm was not finite, or too
        large for a run with a limit, consecutively up to this step and since the start of the run.
        """

    def weights(self, model: nn.Module) -> dict[str, Tensor]:
        """The live tensors of `model` that a checkpoint holds, by name, as `state`: parameters and buffers, or, where
        only adapters are trained, these."""

    def state(self) -> dict[str, Tensor]:
        """The live state, by "<parameter>.<moment>" and "skipped": copied by a save, filled in place by a load."""

    def refresh(self) -> None:
        """Take over weights and state after a load has filled them."""

    def close(self) -> None:
        """Remove what the engine has outside of memory; the last call. May be left out when a process ends."""
