"""DeepSpeed as a library, imported for this run's device."""

from __future__ import annotations

import os
import warnings
from typing import Any

import torch.distributed as dist

from parallel.world import World, WorldError
from parallel.zero.adamw import CountedAdamW
from parallel.zero.deepspeed_private import accept_optimizer, without_shared_memory


def start_deepspeed(world: World) -> Any:
    """Import DeepSpeed and give it this run's process groups; a single process gets one here.

    Raises `WorldError` if it cannot be imported.
    """
    os.environ["DS_ACCELERATOR"] = world.device.type  # by itself it would choose a device from what it finds
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
    without_shared_memory(deepspeed)
    accept_optimizer(deepspeed, CountedAdamW)
    # DeepSpeed calls collectives by their names in torch 2.11.
    for name in ("all_gather_into_tensor", "reduce_scatter_tensor"):
        warnings.filterwarnings("ignore", message=f"`torch.distributed.{name}` is deprecated", category=FutureWarning)
    if not dist.is_initialized():  # a single process, without torchrun's environment
        os.environ.setdefault("LOCAL_RANK", "0")
        backend = "nccl" if world.device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)
    return deepspeed
