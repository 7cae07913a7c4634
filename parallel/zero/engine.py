"""The common part of DeepSpeed's ZeRO stages as an engine: AdamW, a step decided on the host, and their checkpoints.

Differences from the native engine: only AdamW, the state may be on the host or on NVMe, and each step waits for the
device, because DeepSpeed decides on the host whether a gradient is finite. Checkpoints see the flat partitions as one
sharded vector for each parameter and moment, so that they load with any number of ranks, stage or place of the state.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from parallel.fused_adamw import MOMENTS
from parallel.sharding.fragment import Fragment
from parallel.world import BUCKET_BYTES, World
from parallel.zero.adamw import CountedAdamW
from parallel.zero.deepspeed_private import overflowed, set_learning_rate
from parallel.zero.library import start_deepspeed


@dataclass(frozen=True)
class AdamWOptions:
    """groups: (names of parameters, weight decay) of each group. lr: (step, steps) -> learning rate. clip_norm: of the
    gradient over all ranks; 0: off."""

    groups: list[tuple[list[str], float]]
    lr: Callable[[int, int], float]
    betas: tuple[float, float]
    eps: float
    clip_norm: float


class ZeroEngine:
    """AdamW under ZeRO `stage` over all ranks of `world`; see `FlatEngine` and `PartitionedEngine`.

    `offload`: where state and update are, "none" (the device), "cpu" or, for `SwappedEngine`, "nvme". Weights must be
    float32 and whole on every rank before `prepare`; `model` is called directly, not through DeepSpeed's wrapper. A
    process can build only one engine.
    """

    def __init__(self, model: nn.Module, world: World, options: AdamWOptions, *, stage: int, offload: str) -> None:
        self.model, self.world, self.options = model, world, options
        zero: dict[str, Any] = {
            "stage": stage,
            "reduce_bucket_size": BUCKET_BYTES // 4,  # elements
            "allgather_bucket_size": BUCKET_BYTES // 4,
        }
        if offload != "none":
            zero["offload_optimizer"] = {"device": offload, "pin_memory": self.pinned}
        self.settings: dict[str, Any] = {
            "train_micro_batch_size_per_gpu": 1,  # required; nothing is computed from it
            "managed_gradient_accumulation": False,  # `step` ends the accumulation after any number of micro-batches
            "gradient_clipping": options.clip_norm,
            "zero_optimization": zero,
            # On a CPU torch's fused AdamW is as fast as DeepSpeed's, which would have to be compiled first.
            "zero_force_ds_cpu_optimizer": False,
        }

    @property
    def pinned(self) -> bool:
        """Host memory is page-locked on GPUs, so that copies run beside the device's work."""
        return self.world.device.type == "cuda"

    def prepare(self) -> None:
        """Build DeepSpeed's engine. Raises `WorldError` if DeepSpeed cannot be imported."""
        deepspeed = start_deepspeed(self.world)
        self.named = dict(self.model.named_parameters())
        self.adamw = CountedAdamW(
            [
                {"params": [self.named[name] for name in names], "weight_decay": decay}
                for names, decay in self.options.groups
            ],
            betas=self.options.betas,
            eps=self.options.eps,
        )
        self._wrap(deepspeed)
        self.applied = torch.zeros(())  # steps that were not skipped
        # One tensor in a checkpoint: the steps skipped consecutively up to now, and since the start of the run.
        self.skipped = torch.zeros(2, device=self.world.device)
        self.skipped_in_a_row, self.skipped_in_all = self.skipped.unbind()

    def _wrap(self, deepspeed: Any) -> None:
        """Hand model and optimizer to DeepSpeed, and allocate the moments."""
        self.deepspeed, self.zero, _, _ = deepspeed.initialize(
            model=self.model, optimizer=self.adamw, config=self.settings, dist_init_required=False
        )

    def backward(self, loss: Tensor) -> None:
        self.deepspeed.backward(loss, scale_wrt_gas=False)

    def step(self, step: int, steps: int) -> dict[str, Tensor]:
        set_learning_rate(self.zero, self.options.lr(step, steps))
        self.adamw.applied = int(self.applied)
        self.deepspeed.step()
        overflow = float(overflowed(self.zero))
        self.applied += 1.0 - overflow
        self.skipped += overflow
        self.skipped_in_a_row.mul_(overflow)
        norm = self.deepspeed.get_global_grad_norm()  # a Python inf after a skipped step
        norm = torch.as_tensor(norm, dtype=torch.float32, device=self.world.device)
        return {
            "grad_norm": norm,
            "skipped_in_a_row": self.skipped_in_a_row.clone(),
            "skipped": self.skipped_in_all.clone(),
        }

    def weights(self, model: nn.Module) -> dict[str, Tensor]:
        return model.state_dict()

    def state(self) -> dict[str, Tensor]:
        moments = {f"{name}.{moment}": self._moment(name, moment) for name in self.named for moment in MOMENTS}
        return {"skipped": self.skipped, "step": self.applied, **moments}

    def _moment(self, name: str, moment: str) -> Fragment:
        """This rank's part of a moment of the flattened parameter `name`."""
        raise NotImplementedError

    def refresh(self) -> None:
        """Take over weights and state that a load has filled."""
        raise NotImplementedError

    def close(self) -> None:
        """Remove what the engine has outside of memory."""
