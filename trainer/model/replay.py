"""The experts that a rollout engine selected, for the routers of a forward pass in training.

Only the selection is replayed: a router weighs the experts by its own logits, so that it gets gradients. An id is
found by token and layer alone, so passes that recompute a block get the same ones, and stages of a pipeline those of
their own layers.

Legend: L layers · T tokens · K experts per token · E experts · G router groups.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from trainer.model.router import Selection


class Replay:
    """Stands for `expert_ids` of `Decoder.forward`.

    ids: [T, L, K], any integer dtype; widened a layer at a time. use: True gives the routers these ids; False lets them
    select, and only counts. real: [T] bool, tokens that count; None: all. compared: [2] fp64 on the device, to which
    numbers of (token, layer) pairs are added: of all, and of those whose router selects another set of experts; None:
    not counted. layers: numbers in the whole model of the L layers; None: from 0 on.
    """

    def __init__(
        self,
        ids: Tensor,
        *,
        use: bool = True,
        real: Tensor | None = None,
        compared: Tensor | None = None,
        layers: Sequence[int] | None = None,
    ) -> None:
        self.ids, self.use, self.real, self.compared, self.layers = ids, use, real, compared, layers

    def __getitem__(self, layer: int) -> Selection:
        """layer: its number in the whole model."""
        return _OfLayer(self, layer if self.layers is None else self.layers.index(layer))


class _OfLayer(Selection):
    def __init__(self, replay: Replay, layer: int) -> None:
        super().__init__()
        self._replay, self._layer = replay, layer

    def repeat(self, select: Callable[[], Tensor]) -> Tensor:
        replay = self._replay
        given = replay.ids[:, self._layer].to(torch.int64)
        if replay.use and replay.compared is None:
            return given
        own = select()
        if replay.compared is not None:
            other = (own.sort(-1).values != given.sort(-1).values).any(-1)
            real = torch.ones_like(other) if replay.real is None else replay.real
            replay.compared.add_(torch.stack([real.sum(), (other & real).sum()]))
        return given if replay.use else own
