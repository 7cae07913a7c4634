"""The routes of rollouts for training: checked, and with rows for padding.

Legend: T tokens · L layers · K experts per token · E experts · G router groups.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from trainer.config.model import ModelConfig
from trainer.rl.rollout.protocol import Rollout, RolloutError

Routes = npt.NDArray[np.uint16]


def checked_routes(rollout: Rollout, model: ModelConfig, engine: str, request: int) -> Routes:
    """The routes of a rollout, [P + G - 1, L, K]. engine, request: for errors.

    Raises RolloutError where they are missing, have another shape, or name experts that a router cannot have selected:
    out of range, of another router group, or one twice in a row, as in rows of zeros that an engine never filled. With
    one expert per token a row of zeros may be expert 0 of every layer. It is refused where that does not happen by
    chance, with at least 2^32 such selections, and so are rows that are all of zeros, if they are several."""

    def fault(what: str, allowed: str) -> RolloutError:
        text = f"{engine}: the routes of request {request} {what}; give {allowed}, or use rl.replay=off"
        return RolloutError(text, where=engine, value=request, allowed=allowed)

    found = rollout.routes
    shape = (len(rollout.prompt) + len(rollout.ids) - 1, model.num_layers, model.experts_per_token)
    if found is None:
        raise fault("are missing", "the experts of every token")
    if found.shape != shape:
        raise fault(f"have the shape {found.shape}", f"{shape}, tokens x layers x experts of a token")
    per_group, picks = model.num_experts // model.router_groups, model.experts_per_token // model.router_groups
    group = np.arange(model.experts_per_token) // picks
    if (found // per_group != group).any():
        row = int((found // per_group != group).any((1, 2)).argmax())
        raise fault(f"have experts of another router group at token {row}", "slots in the order of the groups")
    ordered = np.sort(found, axis=-1)
    if (twice := (ordered[..., 1:] == ordered[..., :-1]).any((1, 2))).any():
        raise fault(f"have an expert twice at token {int(twice.argmax())}", "rows that the engine has filled")
    zeros = ~found.any((1, 2)) if shape[-1] == 1 else np.zeros(0, bool)
    if zeros.any() and (model.num_experts**model.num_layers >= 2**32 or (zeros.all() and zeros.size > 1)):
        raise fault(f"are zero at token {int(zeros.argmax())}", "rows that the engine has filled")
    return found


def padding_routes(tokens: int, model: ModelConfig) -> Routes:
    """Rows for tokens that nothing is trained on, [tokens, L, K]: the experts of each group in turn."""
    per_group, picks = model.num_experts // model.router_groups, model.experts_per_token // model.router_groups
    slot = np.arange(model.experts_per_token)
    rows = slot // picks * per_group + (np.arange(tokens)[:, None] * picks + slot % picks) % per_group
    return np.repeat(rows[:, None].astype(np.uint16), model.num_layers, axis=1)
