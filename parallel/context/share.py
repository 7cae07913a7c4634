"""The part of every sequence that this rank holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from parallel.context.slices import Kind, slices


def take(x: Tensor, pieces: Sequence[range], dim: int = 0) -> Tensor:
    """The tokens of `pieces`, along `dim`."""
    parts = [x.narrow(dim, piece.start, len(piece)) for piece in pieces]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim) if parts else x.narrow(dim, 0, 0)


@dataclass(frozen=True)
class Share:
    """The slices of rank `rank` of `ranks` for one kind of attention core; by default the whole sequence.

    group: the ranks; None where there is only this one.
    """

    kind: Kind = "ulysses"
    ranks: int = 1
    rank: int = 0
    group: dist.ProcessGroup | None = None

    @staticmethod
    def of_group(kind: Kind, group: dist.ProcessGroup | None) -> Share:
        """This rank's share among the ranks of `group`; None: the whole sequence."""
        return Share() if group is None else Share(kind, group.size(), group.rank(), group)

    def take(self, x: Tensor) -> Tensor:
        """x: [W, ...], of all tokens of a sequence -> [T, ...], those of this rank."""
        return take(x, slices(self.kind, len(x), self.ranks)[self.rank])

    def pick(self, x: Tensor, positions: Sequence[int], tokens: int) -> Tensor:
        """Collect the rows at some positions of a sequence of `tokens` tokens, on every rank.

        x: [T, ...], of this rank's tokens. Collective. Returns [positions, ...], without a gradient.
        """
        row_of: dict[int, int] = {}
        for piece in slices(self.kind, tokens, self.ranks)[self.rank]:
            row_of |= {position: row for row, position in enumerate(piece, len(row_of))}
        own = [number for number, position in enumerate(positions) if position in row_of]
        picked = x.new_zeros(len(positions), *x.shape[1:])
        # Indices by hand would be copied to the device one by one.
        rows = torch.tensor([row_of[positions[number]] for number in own], dtype=torch.int64)
        picked[torch.tensor(own, dtype=torch.int64, device=x.device)] = x.detach()[rows.to(x.device)]
        if self.group is not None:
            dist.all_reduce(picked, group=self.group)  # all other ranks' rows are zero, so the sum is exact
        return picked
