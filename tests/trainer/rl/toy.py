"""The toy's run, small enough for tests, and its record."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.trainer.tiny_run import records
from trainer.config.compose import compose
from trainer.config.keys import Config
from trainer.run.process import train


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
    return compose([f"recipe={recipe}", *given, *words], world_size=world_size)


def run_toy(directory: Path, *words: str, recipe: str = "rl_toy") -> list[dict[str, Any]]:
    """Train it in this process. Returns the lines of its steps."""
    assert train(toy_config(directory, *words, recipe=recipe)) == 0
    return [record for record in records(directory) if "event" not in record]
