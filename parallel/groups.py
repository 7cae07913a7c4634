"""Map router groups, and with them experts, to expert-parallel ranks.

The E experts of a layer are cut into G contiguous router groups, and every token goes to the same number of experts of
each group. An expert-parallel rank that holds whole groups therefore gets the same number of rows whatever the router
selects. No torch here.
"""

from __future__ import annotations

from dataclasses import dataclass

from parallel.errors import one_of
from parallel.layout import LayoutError


@dataclass(frozen=True)
class Placement:
    """Assigns the experts of every layer to `ep` ranks.

    The expert dimension is cut into `expert_shards` contiguous parts and each expert's width into `width_shards`; rank
    r holds expert part r // width_shards and width part r % width_shards. The sum over a part's width shards, which
    the combine makes anyway, is the expert's output.
    """

    expert_shards: int = 1
    width_shards: int = 1

    @property
    def ep(self) -> int:
        return self.expert_shards * self.width_shards

    def slots(self, rank: int, experts_per_token: int) -> slice:
        """The slots of a token that `rank` computes; slots are ordered by router group."""
        return _share(rank // self.width_shards, self.expert_shards, experts_per_token)

    def experts(self, rank: int, num_experts: int) -> slice:
        """Global ids of the experts that `rank` holds, whole or a part of their width."""
        return _share(rank // self.width_shards, self.expert_shards, num_experts)

    def width(self, rank: int, width: int) -> slice:
        """The part of each expert's width that `rank` holds."""
        return _share(rank % self.width_shards, self.width_shards, width)


def map_groups(groups: int, ep: int) -> Placement:
    """Map G router groups to EP expert-parallel ranks.

    G = m*EP puts m groups on a rank; EP = m*G cuts each expert's width m ways among the m ranks of its group.
    Raises LayoutError, with the values that work, for any other pair.
    """
    if groups % ep == 0:
        return Placement(ep, 1)
    if ep % groups == 0:
        return Placement(groups, ep // groups)
    fit = one_of([*(n for n in range(1, groups) if groups % n == 0), f"a multiple of {groups}"])
    raise LayoutError(
        f"parallel.ep={ep} must be a divisor or a multiple of model.router_groups={groups}; use parallel.ep={fit}",
        where="parallel.ep",
        value=ep,
        allowed=fit,
    )


def _share(index: int, parts: int, size: int) -> slice:
    each = size // parts
    return slice(index * each, (index + 1) * each)
