"""DeepSpeed's ZeRO stages 1 and 2 as an engine: optimizer state (and gradients) cut over data-parallel ranks.

Differences from the native engine: only AdamW, the state may be on the CPU, every rank holds all weights, and each step
waits for the device, because DeepSpeed decides on the host whether a gradient is finite. Checkpoints see its flat
partitions as one sharded vector for each parameter and moment, so that they load with any number of ranks, stage or
place of the state.

Only this module uses internal names of DeepSpeed, last checked with 0.19.8: `single_partition_of_fp32_groups`,
`refresh_fp32_params`, `param_groups` and `overflow` of the ZeRO optimizer, `_hp_mapping` of a parameter, and
`__compatible_ops__`. Its documented interface has no access to the partitions, to a parameter's place in them or to the
overflow flag. tests/parallel/test_offload.py has a canary for each.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from parallel.sharding.fragment import Fragment
from parallel.world import BUCKET_BYTES, World, WorldError

MOMENTS = ("exp_avg", "exp_avg_sq")


class ZeroEngine:
    """AdamW under ZeRO `stage` 1 or 2 over all ranks of `world`.

    `groups`: (names of parameters, weight decay) of each group; `lr`: (step, steps) -> learning rate; `offload`: keep
    state and update on the CPU. Weights must be float32 and whole on every rank; `model` is called directly, not
    through DeepSpeed's wrapper. A process can build only one engine.
    """

    def __init__(
        self,
        model: nn.Module,
        world: World,
        groups: list[tuple[list[str], float]],
        *,
        lr: Callable[[int, int], float],
        betas: tuple[float, float],
        eps: float,
        clip_norm: float,
        stage: int,
        offload: bool,
    ) -> None:
        self.model, self.world, self.groups = model, world, groups
        self.lr, self.betas, self.eps = lr, betas, eps
        zero: dict[str, Any] = {
            "stage": stage,
            "reduce_bucket_size": BUCKET_BYTES // 4,  # elements
            "allgather_bucket_size": BUCKET_BYTES // 4,
        }
        if offload:
            zero["offload_optimizer"] = {"device": "cpu", "pin_memory": world.device.type == "cuda"}
        self.settings = {
            "train_micro_batch_size_per_gpu": 1,  # required; nothing is computed from it
            "gradient_allreduce_op": "sum",
            "managed_gradient_accumulation": False,  # `step` ends the accumulation after any number of micro-batches
            "gradient_clipping": clip_norm,
            "zero_optimization": zero,
            # On a CPU torch's fused AdamW is as fast as DeepSpeed's, which would have to be compiled first.
            "zero_force_ds_cpu_optimizer": False,
        }

    def prepare(self) -> None:
        """Build DeepSpeed's engine. Raises `WorldError` if DeepSpeed cannot be imported."""
        deepspeed = _import_deepspeed(self.world.device.type)
        if not dist.is_initialized():  # a single process, without torchrun's environment
            os.environ.setdefault("LOCAL_RANK", "0")
            backend = "nccl" if self.world.device.type == "cuda" else "gloo"
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
        deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)
        self.named = dict(self.model.named_parameters())
        adamw = torch.optim.AdamW(
            [{"params": [self.named[name] for name in names], "weight_decay": decay} for names, decay in self.groups],
            betas=self.betas,
            eps=self.eps,
            fused=True,
        )
        self.deepspeed, self.zero, _, _ = deepspeed.initialize(
            model=self.model, optimizer=adamw, config=self.settings, dist_init_required=False
        )
        # This rank's part of each group is one flat tensor. DeepSpeed would allocate its moments only later.
        self.partitions: list[Tensor] = self.zero.single_partition_of_fp32_groups
        for flat in self.partitions:
            moments = {key: torch.zeros_like(flat, requires_grad=False) for key in MOMENTS}
            adamw.state[flat] = {"step": torch.zeros((), device=flat.device), **moments}
        self.moments = adamw.state
        self.applied = torch.zeros(())  # steps that were not skipped
        # One tensor in a checkpoint: the steps skipped consecutively up to now, and since the start of the run.
        self.skipped = torch.zeros(2, device=self.world.device)
        self.skipped_in_a_row, self.skipped_in_all = self.skipped.unbind()
        self.weights_may_be_new = False

    def backward(self, loss: Tensor) -> None:
        self.deepspeed.backward(loss, scale_wrt_gas=False)

    def step(self, step: int, steps: int) -> dict[str, Tensor]:
        if self.weights_may_be_new:
            self.zero.refresh_fp32_params()  # DeepSpeed's own copy of this rank's part of the weights
            self.weights_may_be_new = False
        for group in self.zero.param_groups:
            group["lr"] = self.lr(step, steps)
        for flat in self.partitions:
            self.moments[flat]["step"].copy_(self.applied)
        self.deepspeed.step()
        overflow = float(self.zero.overflow)
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

    def state(self) -> dict[str, Tensor]:
        self.weights_may_be_new = True  # a load may follow
        moments = {f"{name}.{moment}": self._fragment(name, moment) for name in self.named for moment in MOMENTS}
        return {"skipped": self.skipped, "step": self.applied, **moments}

    def _fragment(self, name: str, moment: str) -> Fragment:
        """This rank's part of a moment of the flattened parameter `name`."""
        parameter = self.named[name]
        place = parameter._hp_mapping  # type: ignore[attr-defined]  # set by DeepSpeed; None if this rank has no part
        if place is None:
            return Fragment(torch.empty(0), 0, parameter.numel())
        flat, held = self.moments[self.partitions[place.param_group_index]][moment], place.hp_fragment_address
        return Fragment(flat.narrow(0, held.start, held.numel), place.lp_fragment_address.start, parameter.numel())


def _import_deepspeed(device_type: str) -> Any:
    """Import DeepSpeed for this run's device; by itself it would choose one from what it finds."""
    os.environ["DS_ACCELERATOR"] = device_type
    try:
        import deepspeed
    except ImportError as error:
        raise WorldError(
            f"optim.engine=deepspeed needs the package deepspeed, which cannot be imported ({error}); run pip "
            "install -e '.[deepspeed]', or use optim.engine=native",
            where="optim.engine",
            value="deepspeed",
            allowed=("native",),
        ) from error
    # Collectives through shared memory: only inference uses them, and the first group on a CPU would compile them for
    # two minutes.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    # DeepSpeed calls collectives by their names in torch 2.11.
    for name in ("all_gather_into_tensor", "reduce_scatter_tensor"):
        warnings.filterwarnings("ignore", message=f"`torch.distributed.{name}` is deprecated", category=FutureWarning)
    return deepspeed
