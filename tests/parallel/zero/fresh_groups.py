"""DeepSpeed in the workers of the pool, which live through many runs."""

from __future__ import annotations

import sys


def forget_groups() -> None:
    """Let DeepSpeed start anew: it keeps its process groups for the life of a process."""
    if "deepspeed" in sys.modules:
        from deepspeed.comm import comm
        from deepspeed.utils import groups

        comm.cdb = None
        groups._WORLD_GROUP = None
