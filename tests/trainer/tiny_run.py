"""A run small enough for tests: seconds of one core, no corpus, nothing from the network."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from trainer.config.keys import CheckpointConfig, Config, DataConfig, LoggingConfig, OptimConfig, RunConfig, TrainConfig
from trainer.config.model import ModelConfig
from trainer.objectives.next_token import NextToken
from trainer.objectives.scalars import Scalars

MODEL: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "head_dim": 8,
    "num_experts": 8, "experts_per_token": 4, "router_groups": 2, "expert_width": 16, "positions": "fope",
}  # fmt: skip


def tiny_config(directory: Path | str, *, model: dict[str, Any] | None = None, **overrides: Any) -> Config:
    """`overrides` are keys of `train`, or `every` and `keep` of `checkpoint`, or of `optim`."""
    checkpoint = {key: overrides.pop(key) for key in ("every", "keep") if key in overrides}
    train: dict[str, Any] = {"steps": 8, "log_every": 3, "global_batch": 4, "micro_batch": 2, "loss_chunk": 32}
    optim: dict[str, Any] = {"lr": 3e-3, "warmup_steps": 2}
    for key, value in overrides.items():
        (train if key in TrainConfig.__dataclass_fields__ else optim)[key] = value
    return Config(
        model=ModelConfig(**{**MODEL, **(model or {})}),
        run=RunConfig(name="tiny", dir=str(directory)),
        data=DataConfig(name="synthetic", seq_len=16),
        optim=OptimConfig(**optim),
        train=TrainConfig(device="cpu", eval_batches=1, **train),
        checkpoint=CheckpointConfig(**checkpoint),
        logging=LoggingConfig(console="off"),
    )


def records(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def steps(directory: Path) -> list[dict[str, Any]]:
    return [record for record in records(directory) if "event" not in record]


def losses(directory: Path) -> list[tuple[int, str]]:
    """(step, loss as hex; None of a step without tokens) of every line, in the order of the record."""
    every = [(record["step"], record["loss"]) for record in steps(directory)]
    return [(step, "None" if loss is None else float(loss).hex()) for step, loss in every]


def events(directory: Path, kind: str) -> list[dict[str, Any]]:
    return [record for record in records(directory) if record.get("event") == kind]


def poison(monkeypatch: pytest.MonkeyPatch, bad_steps: set[int]) -> None:
    """Make one gradient NaN in these steps."""
    genuine = NextToken.__call__
    calls = {"n": 0}

    def call(self: NextToken, model: Any, *args: Any) -> Scalars:
        scalars = genuine(self, model, *args)
        calls["n"] += 1
        if (calls["n"] + 1) // 2 in bad_steps:  # two micro-batches a step
            loss = scalars["loss"]
            scalars["loss"] = replace(loss, value=loss.value + (model.norm * float("nan")).sum())
        return scalars

    monkeypatch.setattr(NextToken, "__call__", call)
