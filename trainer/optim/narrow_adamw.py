"""AdamW with moments in bf16."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from parallel.fused_adamw import MOMENTS, fused_adamw
from parallel.torch_private import foreach_copy

# Elements whose moments exist in fp32 at one time: 0.25 GB for each moment on top of what is stored.
WIDENED = 64 << 20


class NarrowAdamW(torch.optim.AdamW):
    """torch's fused AdamW on fp32 parameters whose moments are stored in bf16 and updated in fp32, piece by piece."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            counts: dict[Tensor, Tensor] = {}
            for piece in pieces([leaf for leaf in group["params"] if leaf.grad is not None], WIDENED):
                states = [self.state[leaf] for leaf, _ in piece]
                means, squares = (
                    [state[name].view(-1)[part] for state, (_, part) in zip(states, piece, strict=True)]
                    for name in MOMENTS
                )
                wide_means, wide_squares = ([moment.float() for moment in kind] for kind in (means, squares))
                steps = [state["step"].clone() for state in states]  # each piece of a parameter starts from it
                fused_adamw(
                    [leaf.view(-1)[part] for leaf, part in piece],
                    [leaf.grad.reshape(-1)[part] for leaf, part in piece if leaf.grad is not None],
                    (wide_means, wide_squares),
                    steps,
                    group,
                    grad_scale=getattr(self, "grad_scale", None),
                    found_inf=getattr(self, "found_inf", None),
                )
                foreach_copy(means, wide_means)
                foreach_copy(squares, wide_squares)
                counts.update((leaf, step) for (leaf, _), step in zip(piece, steps, strict=True))
            for leaf, step in counts.items():
                self.state[leaf]["step"].copy_(step)


def pieces(leaves: list[Tensor], elements: int) -> Iterator[list[tuple[Tensor, slice]]]:
    """All elements of `leaves` in order, as lists of (leaf, slice of it flattened) with at most `elements` elements."""
    piece: list[tuple[Tensor, slice]] = []
    room = elements
    for leaf in leaves:
        for start in range(0, max(1, leaf.numel()), elements):
            part = slice(start, min(start + elements, leaf.numel()))
            if part.stop - part.start > room:
                yield piece
                piece, room = [], elements
            piece.append((leaf, part))
            room -= part.stop - part.start
    if piece:
        yield piece
