"""Which router groups, and so which experts, live on which expert-parallel rank.

The E experts of a layer are cut into G contiguous router groups, and every token goes to the same number of experts of
each group. An expert-parallel rank that holds whole groups therefore gets the same number of rows whatever the router
says. No torch here.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Placement:
    """How the experts of every layer lie on `ep` ranks.

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
        """The slots of a token that `rank` works on, where slots are ordered by router group."""
        return _part(rank // self.width_shards, self.expert_shards, experts_per_token)

    def experts(self, rank: int, num_experts: int) -> slice:
        """Global ids of the experts of which `rank` holds all or a part of the width."""
        return _part(rank // self.width_shards, self.expert_shards, num_experts)

    def width(self, rank: int, width: int) -> slice:
        return _part(rank % self.width_shards, self.width_shards, width)


def map_groups(groups: int, ep: int) -> Placement:
    """Router groups onto expert-parallel ranks.

    G = m*EP puts m groups on a rank; EP = m*G cuts each expert's width m ways among the m ranks of its group.
    Raises ValueError, with the values that work, for any other pair.
    """
    if groups % ep == 0:
        return Placement(ep, 1)
    if ep % groups == 0:
        return Placement(groups, ep // groups)
    divisors = [n for n in range(1, groups) if groups % n == 0]
    raise ValueError(
        f"{ep} expert-parallel ranks do not match {groups} router groups: use {', '.join(map(str, divisors))}"
        f"{' or ' if divisors else ''}a multiple of {groups}"
    )


def _part(index: int, parts: int, size: int) -> slice:
    each = size // parts
    return slice(index * each, (index + 1) * each)
