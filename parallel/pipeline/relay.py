"""Forward passes through a pipeline outside of training: held-out measurements and generation.

torch's `schedule.eval` runs every stage once more at each switch from and to training, on uninitialised memory, drops
FSDP's gradients there, and returns rows of an earlier batch where a later one is smaller. A relay is a send and a
receive per stage, of any shape; several calls in a row overlap, because no rank waits for those after it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor


class Relay:
    """owners: the rank of each stage, counted inside `group`, the ranks of one pipeline."""

    def __init__(self, owners: Sequence[int], group: dist.ProcessGroup) -> None:
        self.owners, self.group = list(owners), group
        self._sent: list[tuple[dist.Work, Tensor]] = []

    def forward(
        self,
        stages: Mapping[int, Callable[[Tensor | None], Tensor]],
        shape: Sequence[int],
        dtype: torch.dtype,
        device: torch.device,
    ) -> Tensor | None:
        """Run one batch through all stages. Collective over the group.

        stages: this rank's, by number, from the result of the stage before, which has `shape` and `dtype`; the first
        gets None. Returns the last stage's result on its rank and None on the others.
        """
        self._finish()
        me, x = self.group.rank(), None
        for stage, owner in enumerate(self.owners):
            if owner != me:
                x = None
                continue
            if stage and x is None:
                x = torch.empty(*shape, dtype=dtype, device=device)
                dist.recv(x, group=self.group, group_src=self.owners[stage - 1])
            x = stages[stage](x)
            if stage + 1 < len(self.owners) and self.owners[stage + 1] != me:
                x = x.contiguous()
                work = dist.isend(x, group=self.group, group_dst=self.owners[stage + 1])
                if work is not None:
                    self._sent.append((work, x))
        return x

    def _finish(self) -> None:
        for work, _ in self._sent:
            work.wait()
        self._sent.clear()
