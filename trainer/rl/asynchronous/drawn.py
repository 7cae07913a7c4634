"""Rollouts that are drawn in parts, each under the weights that the engine had then.

Legend: P tokens of the prompt · G tokens drawn · L layers · K experts per token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from trainer.engine.request import Request, Sampling
from trainer.rl.rollout.protocol import Rollout


@dataclass
class Drawn:
    """A rollout of a question with the parts of it that are there. `ended`: there will not be more.

    A draw depends on the seed and the place of a token alone, so that a part continues where the one before it stopped.
    """

    prompt: tuple[int, ...]
    sampling: Sampling
    parts: list[Rollout] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        return sum(len(part.ids) for part in self.parts)

    @property
    def ended(self) -> bool:
        return bool(self.parts) and self.parts[-1].finish != "abort"

    def request(self, max_tokens: int, ends: frozenset[int]) -> Request:
        """For what is missing. max_tokens: of the whole rollout."""
        there = tuple(token for part in self.parts for token in part.ids)
        return Request((*self.prompt, *there), max_tokens - len(there), self.sampling, ends)

    def add(self, part: Rollout) -> None:
        """Take the answer to `request`, cut short or not. Raises ValueError for one to another prompt."""
        if len(part.prompt) != len(self.prompt) + self.tokens:
            raise ValueError(f"a part behind {len(part.prompt)} tokens, not {len(self.prompt) + self.tokens}")
        if part.ids:
            self.parts.append(part)

    def whole(self) -> Rollout:
        """All parts as one rollout. Routes of a token are those of the first part that has them: under which the token
        behind it was drawn, unless the engine lost them when it cut that part."""
        if len(self.parts) == 1:
            return self.parts[0]
        return Rollout(
            self.prompt,
            tuple(token for part in self.parts for token in part.ids),
            np.concatenate([part.log_probs for part in self.parts]),
            _routes(self.parts),
            np.concatenate([part.versions for part in self.parts]),
            self.parts[-1].finish,
        )


def _routes(parts: Sequence[Rollout]) -> npt.NDArray[np.uint16] | None:
    """[P + G - 1, L, K]; None where the last part has none: each has those of all tokens before it."""
    found: list[npt.NDArray[np.uint16]] = []
    rows = 0
    for part in parts:
        if part.routes is not None:
            found.append(part.routes[rows:])
            rows = len(part.routes)
    return None if parts[-1].routes is None else np.concatenate(found)
