"""The engine on several ranks: what they agree on at every step.

Ranks that share experts or stages run the model together, so that they take steps together, over equally many tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from parallel.world import World
from trainer.engine.request import Scores

Drawn = tuple[Sequence[int], Scores]  # tokens, and their scores


class Ranks(Protocol):
    """Agreements between the ranks of an engine; each call is collective."""

    def tokens(self, count: int) -> int:
        """The number of tokens that every rank runs in a step, `count` on this one. With 0 there is no step."""
        ...

    def drawn(self, found: Drawn | None) -> Drawn:
        """The tokens drawn in a step. found: on this rank; None where it has no LM head."""
        ...


class Alone:
    """Implements `Ranks` for a process on its own."""

    def tokens(self, count: int) -> int:
        return count

    def drawn(self, found: Drawn | None) -> Drawn:
        assert found is not None
        return found


class Together:
    """Implements `Ranks` for ranks that all serve the same requests.

    The first rank with the LM head draws for all: logits may differ between ranks in the last bit, and answers of
    unequal length would make the ranks diverge.
    """

    def __init__(self, world: World) -> None:
        self.world = world

    def tokens(self, count: int) -> int:
        return count

    def drawn(self, found: Drawn | None) -> Drawn:
        return next(of_rank for of_rank in self.world.gather(found) if of_rank is not None)


class Apart(Alone):
    """Implements `Ranks` for ranks that serve requests of their own. Those with fewer tokens in a step run fillers, and
    a rank without requests takes part until the others are done."""

    def __init__(self, world: World) -> None:
        self.world = world

    def tokens(self, count: int) -> int:
        return max(self.world.gather_count(count))


class Pipelines(Apart):
    """Implements `Ranks` for pipelines that serve requests of their own: the ranks of one serve the same. pipeline: of
    this rank; one of its ranks has the LM head."""

    def __init__(self, world: World, pipeline: World) -> None:
        super().__init__(world)
        self.pipeline = pipeline

    def drawn(self, found: Drawn | None) -> Drawn:
        return next(of_rank for of_rank in self.pipeline.gather(found) if of_rank is not None)


ALONE = Alone()
