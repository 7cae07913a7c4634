"""ZeRO stages 1 and 2: every rank holds all weights, and a part of the optimizer's state (and of the gradients)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from parallel.sharding.fragment import Fragment
from parallel.world import World
from parallel.zero.deepspeed_private import flat_partitions, flat_place, read_weights
from parallel.zero.engine import AdamWOptions, ZeroEngine


class FlatEngine(ZeroEngine):
    """ZeRO stage 1 or 2: as `ZeroEngine`, with each rank's part of a group of parameters in one flat tensor."""

    def __init__(self, model: nn.Module, world: World, options: AdamWOptions, *, stage: int, offload: str) -> None:
        super().__init__(model, world, options, stage=stage, offload=offload)
        self.settings["gradient_allreduce_op"] = "sum"

    def _wrap(self, deepspeed: Any) -> None:
        super()._wrap(deepspeed)
        for flat in flat_partitions(self.zero):
            self.adamw.give_moments(flat)  # DeepSpeed would allocate them only later

    def _moment(self, name: str, moment: str) -> Fragment:
        parameter = self.named[name]
        place = flat_place(parameter)
        if place is None:
            return Fragment(torch.empty(0), 0, (parameter.numel(),))
        flat = self.adamw.state[flat_partitions(self.zero)[place.partition]][moment]
        return Fragment(flat.narrow(0, place.offset, place.length), place.start, (parameter.numel(),))

    def refresh(self) -> None:
        read_weights(self.zero)
