"""Number of ranks on each axis of a run. No torch here: configurations are checked with it before torch is loaded."""

from __future__ import annotations

import math
from dataclasses import dataclass

from parallel.errors import UserError, one_of

OTHER_RANKS = "a number of ranks"  # in remedies that only the launcher can apply


class LayoutError(UserError):
    """Axes that do not fit the number of ranks; `where` is the key, `allowed` the values that work."""


@dataclass(frozen=True)
class Place:
    """Indices of a rank.

    pp: in its pipeline. reader: among the `readers`, the ranks that read different samples; the others with this index
    read the same ones. cp: its part of each sequence.
    """

    pp: int = 0
    reader: int = 0
    readers: int = 1
    cp: int = 0

    @property
    def counts(self) -> bool:
        """True for one of the ranks that read the same samples, so that a sum over ranks counts each sample once."""
        return self.pp == 0 and self.cp == 0


ALONE = Place()  # of the only rank of a run


@dataclass(frozen=True)
class Layout:
    """Sizes of the axes, outermost first: world = pp * dp_replicate * dp_shard * cp.

    pp: pipeline stages. dp_replicate: copies of the sharded model. dp_shard: ranks that share one copy of the weights.
    cp: ranks that share a sequence. ep: expert-parallel ranks, the innermost (neighbouring) ones of dp_shard * cp.
    Raises LayoutError if ep does not divide dp_shard * cp.
    """

    pp: int = 1
    dp_replicate: int = 1
    dp_shard: int = 1
    cp: int = 1
    ep: int = 1

    def __post_init__(self) -> None:
        if self.shard % self.ep:
            fit = divisors(self.shard)
            raise LayoutError(
                f"parallel.ep={self.ep} must divide the number of ranks that share one copy of the weights "
                f"({self.shard}, from parallel.dp_shard); use parallel.ep={one_of(fit)}, or a "
                f"parallel.dp_shard that is a multiple of {self.ep}",
                where="parallel.ep",
                value=self.ep,
                allowed=fit,
            )

    @property
    def world(self) -> int:
        """Ranks in all."""
        return self.pp * self.dp_replicate * self.shard

    @property
    def shard(self) -> int:
        """Ranks that dense weights are sharded over: dp_shard * cp."""
        return self.dp_shard * self.cp

    @property
    def stage_ranks(self) -> int:
        """Ranks that hold the same pipeline stage, or parts of it: dp_replicate * dp_shard * cp."""
        return self.dp_replicate * self.shard

    @property
    def readers(self) -> int:
        """Ranks that read different samples: dp_replicate * dp_shard."""
        return self.dp_replicate * self.dp_shard

    def place(self, rank: int) -> Place:
        """The indices of `rank`, ranks being numbered with cp innermost and pp outermost."""
        stage, within = divmod(rank, self.stage_ranks)
        reader, part = divmod(within, self.cp)
        return Place(stage, reader, self.readers, part)

    @property
    def expert_dp(self) -> int:
        """Ranks that hold other shards of the same experts: dp_shard * cp / ep."""
        return self.shard // self.ep

    @staticmethod
    def resolve(
        world: int, *, dp_replicate: int = 1, dp_shard: int = 0, ep: int = 1, pp: int = 1, cp: int = 1
    ) -> Layout:
        """Fill in the data-parallel axes that are 0 so that the product is `world`.

        dp_shard = 0 takes what dp_replicate leaves, dp_replicate = 0 what dp_shard leaves; if both are 0, dp_shard
        is as small as `ep` permits and dp_replicate takes the rest. Raises LayoutError if nothing fits.
        """
        fixed = 1
        for name, given in (("pp", pp), ("cp", cp)):
            fixed *= given
            if world % fixed:
                fit = divisors(world // (fixed // given)) if world % (fixed // given) == 0 else divisors(world)
                raise LayoutError(
                    f"parallel.{name}={given} must divide the number of ranks ({world}); use parallel.{name}="
                    f"{one_of(fit)}, or {OTHER_RANKS} that is a multiple of {fixed}",
                    where=f"parallel.{name}",
                    value=given,
                    allowed=fit,
                )
        if dp_shard == 0 and dp_replicate == 0:
            dp_shard = ep // math.gcd(ep, cp)
            if world % (fixed * dp_shard):
                fit = divisors(world)
                raise LayoutError(
                    f"parallel.ep={ep} must divide the number of ranks ({world}); use parallel.ep={one_of(fit)}, "
                    f"or {OTHER_RANKS} that is a multiple of {fixed * dp_shard}",
                    where="parallel.ep",
                    value=ep,
                    allowed=fit,
                )
        for name, given in (("dp_replicate", dp_replicate), ("dp_shard", dp_shard)):
            fixed *= given or 1
            if world % fixed:
                rest = world // (fixed // given) if world % (fixed // given) == 0 else world
                # A dp_shard that ep does not divide would be refused next.
                fit = tuple(n for n in divisors(rest) if name == "dp_replicate" or n * cp % ep == 0)
                remedy = f"{one_of(fit)}, or {OTHER_RANKS}" if fit else OTHER_RANKS
                raise LayoutError(
                    f"parallel.{name}={given} must divide the number of ranks ({world}); use {remedy} that is a "
                    f"multiple of {fixed}",
                    where=f"parallel.{name}",
                    value=given,
                    allowed=fit,
                )
        left = world // fixed
        if dp_shard == 0:
            dp_shard = left
        elif dp_replicate == 0:
            dp_replicate = left
        elif left != 1:
            raise LayoutError(
                f"parallel.dp_replicate={dp_replicate} x parallel.dp_shard={dp_shard} must equal the number of ranks "
                f"({world}); set one of them to 0, which derives it, or use {OTHER_RANKS} equal to {fixed}",
                where="parallel.dp_shard",
                value=dp_shard,
                allowed=(0,),
            )
        return Layout(pp, dp_replicate, dp_shard, cp, ep)

    def rows(self) -> list[tuple[str, int, str]]:
        """(axis, ranks, what it does) for the screen, outermost first; axes of one rank are left out."""
        rows = [
            ("pp", self.pp, "pipeline stages"),
            ("dp_replicate", self.dp_replicate, "copies of the sharded model"),
            ("dp_shard", self.dp_shard, "ranks that share one copy of the weights"),
            ("cp", self.cp, "ranks that share a sequence"),
            ("ep", self.ep, "expert-parallel ranks, the innermost of those that share one copy"),
            ("expert_dp", self.expert_dp, "ranks that share one copy of the same experts"),
        ]
        return [row for row in rows if row[1] > 1]


def divisors(number: int) -> tuple[int, ...]:
    """The divisors of `number`, ascending, 1 and itself included; none for a number below 1.

    Above 10^12 only those that are, or whose other factor is, at most 10^6: they are for messages, which cannot wait.
    """
    low = [n for n in range(1, min(math.isqrt(max(number, 0)), 10**6) + 1) if number % n == 0]
    return tuple(sorted({*low, *(number // n for n in low)}))
