"""DeepSpeed as a library, imported for this run's device."""

from __future__ import annotations

import logging
import os
import warnings
from typing import Any

import torch.distributed as dist

from parallel.world import World, WorldError
from parallel.zero.adamw import CountedAdamW
from parallel.zero.deepspeed_private import accept_optimizer, compiled_for_host, without_shared_memory

log = logging.getLogger(__name__)


def load_async_io() -> None:
    """Load DeepSpeed's reader and writer of files, compiled at its first use. Raises `WorldError` if that fails."""
    log.info("optimizer: loading DeepSpeed's async_io, which the first run on a machine compiles")
    try:
        compiled_for_host()
    except (RuntimeError, ImportError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise WorldError(
            f"optim.offload=nvme needs DeepSpeed's async_io, which cannot be compiled or loaded ({reason}); run "
            "ds_report for the reason, or use optim.offload=cpu",
            where="optim.offload",
            value="nvme",
            allowed=("cpu", "none"),
        ) from error


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
