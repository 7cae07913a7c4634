"""DeepSpeed in the workers of the pool, which live through many runs."""

from __future__ import annotations

import sys


def forget_groups() -> None:
    """Let DeepSpeed start anew: it keeps its process groups for the life of a process, and numbers modules and
    parameters through it. A worker that took part in another run than the others would have other numbers."""
    if "deepspeed" in sys.modules:
        from deepspeed.comm import comm
        from deepspeed.runtime.zero.parameter_offload import DeepSpeedZeRoOffload
        from deepspeed.runtime.zero.partition_parameters import Init
        from deepspeed.utils import groups

        comm.cdb = None
        groups._WORLD_GROUP = None
        Init.param_id = 0
        (count,) = DeepSpeedZeRoOffload._register_deepspeed_module.__defaults__
        count[0] = 0
