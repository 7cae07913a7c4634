"""ZeRO stage 3 with the state on NVMe: the weights that are updated and their moments are in files, and one sub-group
of them at a time is in host memory while it is updated.

Checkpoints see the files as tensors, mapped into memory: a save reads them and a load fills them without room for the
whole state. Gradients stay on the host, where DeepSpeed adds them up in any case; its own way at the end of a step
copies all of them to the device at one time, and then to files.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from parallel.world import World
from parallel.zero import deepspeed_private as internals
from parallel.zero.adamw import MOMENTS
from parallel.zero.engine import AdamWOptions
from parallel.zero.library import load_async_io
from parallel.zero.partitioned import PartitionedEngine

log = logging.getLogger(__name__)


class Files(Protocol):
    """A directory of this rank's own, `path`, that ends with `close`. sync: write one of its files to the disk."""

    path: Path

    def sync(self, path: Path) -> None: ...

    def close(self) -> None: ...


class SwappedEngine(PartitionedEngine):
    """As `PartitionedEngine`, with state in `files`, which `close` removes. Partitions of less than 1 MiB stay in host
    memory."""

    def __init__(
        self, model: nn.Module, world: World, options: AdamWOptions, *, files: Files, params: str = "none"
    ) -> None:
        super().__init__(model, world, options, offload="nvme", params=params)
        self.files = files
        self.maps: dict[Path, Tensor] = {}  # files as tensors, from one step to the next

    def _wrap(self, deepspeed: Any) -> None:
        load_async_io()
        self.settings["zero_optimization"]["offload_optimizer"]["nvme_path"] = str(self.files.path)
        super()._wrap(deepspeed)
        internals.keep_gradients(self.zero)

    def _give_moments(self) -> None:
        self.swapped = internals.swapped(self.zero)
        log.info("optimizer: %d of its partitions are in %s", len(self.swapped), self.files.path)
        for number, flat in enumerate(internals.partitions(self.zero)):
            if number in self.swapped:
                internals.swap_in(self.zero, number)
                self.adamw.give_moments(flat)
                internals.swap_out(self.zero, number)
            else:
                self.adamw.give_moments(flat, pinned=self.pinned)

    def step(self, step: int, steps: int) -> dict[str, Tensor]:
        self.maps.clear()
        internals.give_gradients(self.zero)
        return super().step(step, steps)

    def _held(self, number: int, moment: str | None) -> Tensor:
        if number not in self.swapped:
            return super()._held(number, moment)
        path, size = internals.swap_file(self.zero, number, (None, *MOMENTS).index(moment))
        if path not in self.maps:
            self.maps[path] = torch.from_file(str(path), shared=True, size=size, dtype=torch.float32)
        return self.maps[path]

    def refresh(self) -> None:
        for path in self.maps:  # what a load has written through the maps, before it is read without the page cache
            self.files.sync(path)
        self.maps.clear()
        super().refresh()

    def close(self) -> None:
        self.maps.clear()
        self.files.close()
