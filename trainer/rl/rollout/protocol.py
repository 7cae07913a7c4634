"""The protocol of rollout engines, and the rollouts that they answer with. No torch here.

An engine serves one version of the weights at a time. A change of weights is `pause`, `load`, `resume`: requests that
run at the pause end as "abort" with the tokens that they have, and nothing computed under the old weights (keys,
prefixes) is used under the new ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import numpy.typing as npt

from parallel.errors import UserError
from trainer.engine.request import Request

if TYPE_CHECKING:
    from torch import Tensor

Finish = Literal["stop", "length", "abort"]


class RolloutError(UserError):
    """A rollout engine that failed or answered what cannot be used. `where` names the engine, `value` the request."""


def other_prompt(engine: str, question: int) -> RolloutError:
    """The error of an answer to another prompt. question: its number in the run."""
    allowed = "check its log, and what is between it and this run"
    text = f"{engine}: the answer to question {question} is an answer to another prompt; {allowed}"
    return RolloutError(text, where=engine, value=question, allowed=allowed)


@dataclass(frozen=True)
class Rollout:
    """One answer of G tokens to a prompt of P.

    ids: the answer, its stop token included. log_probs: [G] fp32, of these tokens under the raw distribution
    (temperature 1, no top-k, no top-p). routes: [P + G - 1, L, K] uint16, the experts of every token that went through
    the model, in the order of their slots; None for an engine that does not record them. versions: [G] int64, the
    version of the weights under which each token was drawn. finish: "abort" where a pause cut the answer short. drawn:
    [G] True where the engine drew the token; the others, which a tool wrote, are read and not trained on. None: all.
    """

    prompt: tuple[int, ...]
    ids: tuple[int, ...]
    log_probs: npt.NDArray[np.float32]
    routes: npt.NDArray[np.uint16] | None
    versions: npt.NDArray[np.int64]
    finish: Finish
    drawn: npt.NDArray[np.bool_] | None = None


class RolloutEngine(Protocol):
    """Answers requests under the weights that it holds."""

    @property
    def version(self) -> int:
        """The version of these weights, as given to `load`."""
        ...

    def generate(self, requests: Sequence[Request], *, deadline_s: float) -> list[Rollout]:
        """One rollout for each request, in their order. Raises `RolloutError` after deadline_s seconds."""
        ...

    def pause(self) -> None:
        """End running requests: `generate` returns what they have as "abort". No new one starts until `resume`."""
        ...

    def load(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Take these weights, under published names and in bf16, in place of all held now, or leave those as they are
        and raise `RolloutError`. Only between `pause` and `resume`."""
        ...

    def resume(self) -> None:
        """Accept requests again."""
        ...

    def close(self) -> None:
        """Free what the engine holds; it accepts nothing after this."""
        ...
