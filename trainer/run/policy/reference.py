"""The reference policy of `rl.kl_coef`: weights that a run's policy is held near, in the run's own modules.

They are the weights that the run started with, or those of `rl.kl_reference`. This rank's part of them is in memory
beside the model's, spread as it is, and changes places with it while log-probabilities of the reference are computed.

    RUN_DIR/reference/step-0/    a checkpoint of them, written before the first step; a resumed run loads it

A run never takes other weights for them: without that directory it does not resume.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from parallel.errors import UserError
from parallel.sharding.fsdp import free_weights
from parallel.sharding.local import local_part
from parallel.world import World
from trainer.checkpoint.store import CheckpointStore
from trainer.config.keys import Config
from trainer.config.run_files import REFERENCE
from trainer.run.build import Parts
from trainer.weights.kept_source import open_published


class Reference:
    """The weights of the reference on this rank. Collective over all ranks.

    step: of the run now; at 0 they are taken and saved, later they are loaded. Raises UserError where they are missing
    or could not be saved, CheckpointError where they are damaged, HuggingFaceError and ConfigError for a directory of
    `rl.kl_reference` that is not whole or has another model.
    """

    def __init__(self, cfg: Config, directory: Path, world: World, parts: Parts, step: int) -> None:
        self.stages = [*parts.stages.values()]
        live = {name: tensor for stage in self.stages for name, tensor in parts.engine.weights(stage).items()}
        held = {name: tensor.detach().clone() for name, tensor in live.items()}
        self._pairs = [(local_part(live[name]).detach(), local_part(held[name])) for name in live]
        world.watch.at("start: reference policy")
        path = directory / REFERENCE
        store = CheckpointStore(path, keep=1, world=world, warn=lambda line: None)
        if step:
            self._load(store, held, path)
            return
        if cfg.rl.kl_reference is not None:
            self._read(cfg, world)
        if world.rank == 0 and path.exists():  # of a start that was killed before its first checkpoint
            shutil.rmtree(path)
        world.broadcast(None)
        store.save(0, held, {}, copy=False)
        saved = store.wait()
        if saved is None or saved.error is not None:
            why = saved.error if saved else "it was not written"
            allowed = "a disk with free space"
            raise UserError(f"{path} could not be saved: {why}; use {allowed}", where=str(path), allowed=allowed)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The run's modules compute with the weights of the reference. The run's own are back after it, bit for bit."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for stage in self.stages:
            free_weights(stage)  # gathered copies of the weights that leave
        for live, held in self._pairs:
            before = live.clone()
            live.copy_(held)
            held.copy_(before)

    def _load(self, store: CheckpointStore, held: dict[str, Tensor], path: Path) -> None:
        if store.load(held, lambda manifest: None) is None:
            allowed = "the directory as the run wrote it, or a new run"
            text = f"{path}, the reference policy of this run, is missing; restore it, or use train.resume=never"
            raise UserError(text, where=str(path), allowed=allowed)

    def _read(self, cfg: Config, world: World) -> None:
        """Fill the reference from `rl.kl_reference`, in the place of the run's weights."""
        published = open_published(cfg, world, "rl.kl_reference")
        assert published is not None
        with self.in_place():
            for stage in self.stages:
                published.fill(stage)
