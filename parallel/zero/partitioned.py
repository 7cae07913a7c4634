"""ZeRO stage 3: every rank holds a part of weights, gradients and state; a module's weights exist only around its use.

Each parameter, whatever its shape, is flattened and cut into equal parts, the last one padded. DeepSpeed's hooks gather
a module's own parameters before its forward and backward pass and free them afterwards. Three habits of it are not
wanted here: it divides gradients by the number of ranks (the loss is multiplied by it), it replaces
`torch.nn.functional.linear` for the whole process (turned off), and it frees what the objective uses after the model's
forward pass (the root's own parameters stay gathered, as under FSDP).
"""

from __future__ import annotations

from math import prod
from typing import Any

from torch import Tensor, nn

from parallel.sharding.fragment import Fragment
from parallel.world import World
from parallel.zero import deepspeed_private as internals
from parallel.zero.engine import AdamWOptions, ZeroEngine

# Elements of a rank's partitions that are updated at one time: their gradient exists a second time meanwhile.
SUB_GROUP = 100_000_000


class PartitionedEngine(ZeroEngine):
    """ZeRO stage 3: as `ZeroEngine`; `params`: where a rank's part of the weights is, "none" (the device) or "cpu".

    Weights come from the host to the device one by one, and every rank gets those of rank 0.
    """

    def __init__(
        self, model: nn.Module, world: World, options: AdamWOptions, *, offload: str, params: str = "none"
    ) -> None:
        super().__init__(model, world, options, stage=3, offload=offload)
        zero = self.settings["zero_optimization"]
        zero["memory_efficient_linear"] = False  # it would replace torch.nn.functional.linear
        zero["sub_group_size"] = SUB_GROUP
        if params != "none":
            zero["offload_param"] = {"device": params, "pin_memory": self.pinned}

    def _wrap(self, deepspeed: Any) -> None:
        # Before `initialize`, which would first move the whole model to the device.
        deepspeed.zero.Init(module=self.model, config_dict_or_path=self.settings, mem_efficient_linear=False)
        for name, buffer in self.model.named_buffers():
            owner, _, last = name.rpartition(".")
            setattr(self.model.get_submodule(owner), last, buffer.to(self.world.device))
            self.world.broadcast_tensor(self.model.get_buffer(name))
        super()._wrap(deepspeed)
        internals.share_memory(self.zero)
        self._give_moments()
        internals.keep_gathered(self.zero, self.model.parameters(recurse=False))
        internals.gather_kept(self.zero)

    def _give_moments(self) -> None:
        for flat in internals.partitions(self.zero):
            self.adamw.give_moments(flat, pinned=self.pinned and flat.device.type == "cpu")

    def _held(self, number: int, moment: str | None) -> Tensor:
        """Partition `number` of a moment; None: of the weights that are updated."""
        flat = internals.partitions(self.zero)[number]
        return flat.detach() if moment is None else self.adamw.state[flat][moment]

    def backward(self, loss: Tensor) -> None:
        internals.start_micro_batch(self.zero)
        super().backward(loss * self.world.size)

    def step(self, step: int, steps: int) -> dict[str, Tensor]:
        update = super().step(step, steps)
        internals.gather_kept(self.zero)  # DeepSpeed does not after a skipped step
        return update

    def weights(self, model: nn.Module) -> dict[str, Tensor]:
        """Parameters as fragments of the fp32 weights that are updated, and buffers."""
        buffers = {name: tensor for name, tensor in model.state_dict().items() if name not in self.named}
        parts = {}
        for name, parameter in self.named.items():
            place = internals.place(self.zero, parameter, self.world.rank)
            held = self._held(place.partition, None).narrow(0, place.offset, place.length)
            parts[name] = Fragment(held, place.start, internals.shape(parameter))
        return {**parts, **buffers}

    def _moment(self, name: str, moment: str) -> Fragment:
        parameter = self.named[name]
        place = internals.place(self.zero, parameter, self.world.rank)
        held = self._held(place.partition, moment).narrow(0, place.offset, place.length)
        return Fragment(held, place.start, (prod(internals.shape(parameter)),))

    def refresh(self) -> None:
        internals.write_weights(self.zero)
        internals.gather_kept(self.zero)
