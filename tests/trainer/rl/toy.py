"""The toy's run, small enough for tests, and its record."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainer.tiny_run import records
from trainer.config import compose as composing
from trainer.config.compose import compose
from trainer.config.keys import Config
from trainer.config.recipes.words import Words
from trainer.run.policy.trainer import PolicyTrainer
from trainer.run.process import train

_trees: dict[tuple[tuple[str, str], ...], Any] = {}  # by the options chosen, before single keys are set


@contextmanager
def _composed_once() -> Iterator[None]:
    """The tree that Hydra makes of a recipe is made once a process: it takes longer than all else before a run."""
    genuine = composing._compose_groups

    def remembered(words: Words, groups: Mapping[str, list[str]], config_dirs: Any) -> Any:
        key = tuple(words.options.items())
        if key not in _trees:
            _trees[key] = genuine(words, groups, config_dirs)
        return deepcopy(_trees[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(composing, "_compose_groups", remembered)
        yield


def toy_config(directory: Path, *words: str, world_size: int | None = 1, recipe: str = "rl_toy") -> Config:
    """A recipe with few questions a step and 3 steps, in exact arithmetic; `words` override it. Its data are beside the
    directory."""
    given = [
        "train.global_batch=4", "train.micro_batch=2", "data.seq_len=56", "train.steps=3", "train.eval_every=0",
        "train.eval_batches=1", "rl.group_size=4", "rl.eval_questions=4", "train.device=cpu",
        "logging.console=off", f"data.cache_dir={directory.parent / 'cache'}", f"run.dir={directory}", "rl.exact=true",
    ]  # fmt: skip
    keys = {word.partition("=")[0] for word in words}
    given = [word for word in given if word.partition("=")[0] not in keys]
    with _composed_once():
        return compose([f"recipe={recipe}", *given, *words], world_size=world_size)


def run_toy(directory: Path, *words: str, recipe: str = "rl_toy") -> list[dict[str, Any]]:
    """Train it in this process. Returns the lines of its steps."""
    assert train(toy_config(directory, *words, recipe=recipe)) == 0
    return [record for record in records(directory) if "event" not in record]


@contextmanager
def steps_that_change() -> Iterator[list[bool]]:
    """Yields a list of whether each step changed a bit of this rank's weights or moments, or of all else that the
    optimizer keeps, the count of skipped steps excepted."""
    genuine, changed = PolicyTrainer._train_step, list[bool]()

    def held(trainer: PolicyTrainer) -> dict[str, torch.Tensor]:
        every = {**trainer.parts.model.state_dict(), **trainer.parts.engine.state()}
        own = {name: getattr(tensor, "_local_tensor", tensor) for name, tensor in every.items() if name != "skipped"}
        return {name: tensor.clone() for name, tensor in own.items()}

    def compared(trainer: PolicyTrainer, *given: Any) -> None:
        before = held(trainer)
        genuine(trainer, *given)
        after = held(trainer)
        changed.append(any(not torch.equal(after[name], before[name]) for name in before))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PolicyTrainer, "_train_step", compared)
        yield changed
