"""Numbers that do not exist, and weights that are none: null in the record, left out of means, never 0 or silence."""

from __future__ import annotations

import json
import shutil
import sys
import types
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from parallel.world import World, start_world
from tests.distributed.pool import on_ranks
from tests.trainer.tiny_run import events, poison, records, steps, tiny_config
from tests.trainer.weights.exports import config as published
from trainer.config.keys import LoggingConfig, OptimConfig
from trainer.data.batch import IGNORE
from trainer.data.build import build_data
from trainer.metrics.console import event_text, progress_line
from trainer.metrics.record import MetricsLog
from trainer.model.decoder import Decoder
from trainer.objectives.choose import build_objective
from trainer.objectives.contrastive import Contrastive
from trainer.objectives.next_token import NextToken
from trainer.optim.finite import not_finite, show_names
from trainer.optim.native import NativeEngine
from trainer.run.build import build_model
from trainer.run.evaluate import evaluate
from trainer.run.loop import RunError, Trainer
from trainer.run.process import train
from trainer.stages.forward import Whole


def silent(batch):
    """The batch without a supervised token."""
    return replace(batch, labels=torch.full_like(batch.labels, IGNORE), num_tokens=0)


def silence(monkeypatch, *of_steps: int) -> None:
    genuine = Trainer._next_batches

    def next_batches(self):
        batches = genuine(self)
        return [silent(batch) for batch in batches] if self.position.step + 1 in of_steps else batches

    monkeypatch.setattr(Trainer, "_next_batches", next_batches)


def test_a_step_without_a_supervised_token_has_no_loss(tmp_path, monkeypatch, capsys):
    silence(monkeypatch, 2, 4, 5, 6)
    cfg = tiny_config(tmp_path, steps=6, log_every=3)
    cfg.logging.console = "plain"
    assert train(cfg) == 0
    assert [record["loss"] is None for record in steps(tmp_path)] == [False, True, False, True, True, True]
    assert [record["tokens"] > 0 for record in steps(tmp_path)] == [True, False, True, False, False, False]
    assert all(isinstance(record["balance"], float) for record in steps(tmp_path))
    (warning,) = [event["message"] for event in events(tmp_path, "warning")]
    assert "step 2" in warning
    first, second = [
        line for line in capsys.readouterr().out.splitlines() if line.startswith("step ") and "|g|" in line
    ]
    losses = [record["loss"] for record in steps(tmp_path)]
    assert f"loss {(losses[0] + losses[2]) / 2:.4f}" in first
    assert "no loss" in second
    assert "tokens_per_second" in steps(tmp_path)[2]
    assert "tokens_per_second" not in steps(tmp_path)[5]


def test_a_step_of_two_ranks_has_a_loss_if_either_has_a_token(tmp_path):
    half, none = on_ranks(2, two_ranks, str(tmp_path))[0]
    assert half is not None
    assert none is None


def two_ranks(directory: str) -> list[float | None]:
    genuine = Trainer._next_batches

    def next_batches(self):
        batches = genuine(self)
        empty = self.position.step == 1 or self.world.rank == 1
        return [silent(batch) for batch in batches] if empty else batches

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_next_batches", next_batches)
        assert train(tiny_config(directory, steps=2)) == 0
    return [record["loss"] for record in steps(Path(directory))]


def test_documents_of_one_token_are_no_pairs(tmp_path):
    """The contrastive objective has no loss, accuracy or similarity then; neither has its evaluation."""
    cfg = tiny_config(tmp_path, steps=2, objective="contrastive")
    cfg.data.seq_len = 1
    assert train(cfg) == 0
    for record in steps(tmp_path):
        assert [record[name] for name in ("loss", "accuracy", "similarity")] == [None] * 3
        assert record["temperature"] > 0
    (evaluation,) = events(tmp_path, "evaluation")
    assert evaluation["heldout"] == evaluation["heldout_accuracy"] == {"synthetic": None}
    assert len(events(tmp_path, "warning")) == 2  # of the steps, of the evaluation


class HeldOut:
    """One source with labels, one without, one without samples."""

    sources = ("full", "empty", "absent")

    def __init__(self, batch) -> None:
        self.batch = batch

    def batches(self, source, count, micro_batch):
        return iter({"full": [self.batch], "empty": [silent(self.batch)], "absent": []}[source])


@pytest.mark.parametrize("objective", [NextToken(7), Contrastive(0.1)], ids=["next token", "contrastive"])
def test_an_evaluation_of_a_source_without_labels_is_none(tmp_path, objective):
    cfg = tiny_config(tmp_path)
    model = build_model(cfg, World(), None, build_objective(cfg.train))
    batch = build_data(cfg.data, seed=0, vocab_size=cfg.model.vocab_size).stream.batch(0, 2)
    found = evaluate(Whole(model), objective, HeldOut(batch), World(), batches=1, micro_batch=2)["heldout"]
    assert found["full"] > 0
    assert found["absent"] is None
    assert (found["empty"] is None) == isinstance(objective, NextToken)  # pairs need no label


def test_nothing_without_a_number_reaches_the_views(tmp_path, monkeypatch):
    logged = []
    run = types.SimpleNamespace(log=lambda values, step: logged.append((step, values)), finish=lambda: None)
    fake = types.SimpleNamespace(
        init=lambda **_: run, login=lambda **_: True, Settings=lambda **_: None, finish=lambda: None
    )
    monkeypatch.setitem(sys.modules, "wandb", fake)
    log = MetricsLog(
        tmp_path, LoggingConfig(console="off", wandb="offline"),
        resume_step=0, total_steps=9, flops_per_token=1.0, peak_flops=None, config={},
    )  # fmt: skip
    log.write([{"step": 1, "loss": None, "balance": 0.5}])
    log.event({"event": "evaluation", "step": 1, "heldout": {"a": None, "b": 2.0}, "unigram": {"a": None}})
    log.close()
    assert [(step, {name: values[name] for name in values if "memory" not in name}) for step, values in logged] == [
        (1, {"step": 1, "balance": 0.5}),
        (1, {"evaluation/heldout": {"b": 2.0}}),
    ]
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])["loss"] is None


def test_the_terminal_says_that_there_is_no_number():
    assert "no loss" in progress_line({"step": 1, "loss": None, "accuracy": None}, 9, seconds_left=0)
    text = event_text({"step": 1, "event": "evaluation", "heldout": {"a": None, "b": 2.0}})
    assert "heldout a no value" in text
    assert "heldout b 2.0000" in text


# ---- weights that are not finite


def spoil(monkeypatch, name: str, value: float = float("nan")) -> None:
    """One number of a weight, as a new run starts."""
    genuine = Decoder.init_weights

    def init_weights(self, seed):
        genuine(self, seed)
        with torch.no_grad():
            self.get_parameter(name).view(-1)[-1] = value

    monkeypatch.setattr(Decoder, "init_weights", init_weights)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_run_does_not_start_with_weights_that_are_not_finite(tmp_path, monkeypatch, capsys, value):
    spoil(monkeypatch, "layers.1.moe.experts.w2", value)
    assert train(tiny_config(tmp_path)) == 2
    assert "layers.1.moe.experts.w2" in capsys.readouterr().err
    assert not (tmp_path / "checkpoints").exists() or not [*(tmp_path / "checkpoints").glob("step-*")]


def test_published_weights_that_are_not_finite_are_refused(tmp_path, reference, monkeypatch):
    source = shutil.copytree(reference / "tiny" / "interns1", tmp_path / "source")
    file = next(file for file in source.glob("*.safetensors") if any(map(in_text, load_file(file))))
    tensors = load_file(file)
    name = next(name for name in tensors if in_text(name))
    tensors[name].view(-1)[0] = torch.nan
    save_file(tensors, file, {"format": "pt"})
    raised = []
    monkeypatch.setattr("trainer.run.process.report", lambda error, **_: raised.append(error) or 2)
    assert train(published(source, tmp_path / "run")) == 2
    assert raised[0].where == str(file)
    assert raised[0].value == name


def in_text(name: str) -> bool:
    return name.endswith("language_model.layers.0.self_attn.q_proj.weight")


def test_a_checkpoint_whose_weights_are_not_finite_is_named(tmp_path, monkeypatch):
    """An update may spoil the weights of the very step that is saved."""
    with monkeypatch.context() as patch:
        genuine = Trainer._save

        def save(self):
            with torch.no_grad():
                self.parts.model.get_parameter("norm")[0] = float("nan")
            genuine(self)

        patch.setattr(Trainer, "_save", save)
        assert train(tiny_config(tmp_path, steps=1)) == 0
    raised = []
    monkeypatch.setattr("trainer.run.process.report", lambda error, **_: raised.append(error) or 2)
    assert train(tiny_config(tmp_path, steps=2)) == 2
    assert raised[0].where == str(tmp_path / "checkpoints" / "step-1")


def test_weights_that_an_update_spoiled_are_named(tmp_path, monkeypatch):
    genuine = Trainer._train_step

    def train_step(self, batches, counts):
        if self.position.step == 2:
            with torch.no_grad():
                self.parts.model.get_parameter("norm")[0] = float("nan")
        genuine(self, batches, counts)

    monkeypatch.setattr(Trainer, "_train_step", train_step)
    raised = []
    monkeypatch.setattr("trainer.run.process.report", lambda error, **_: raised.append(error) or 1)
    assert train(tiny_config(tmp_path, steps=20, max_skipped=3, log_every=1)) == 1
    assert raised[0].where == "norm"
    assert raised[0].value == 3


def test_a_start_that_took_no_step_fails_and_saves_nothing(tmp_path, monkeypatch):
    """Fewer steps than train.max_skipped; the weights are finite."""
    poison(monkeypatch, {1, 2, 3})
    raised = []
    monkeypatch.setattr("trainer.run.process.report", lambda error, **_: raised.append(error) or 1)
    assert train(tiny_config(tmp_path, steps=3)) == 1
    assert (raised[0].where, raised[0].value) == ("train.max_skipped", 3)
    assert not [*(tmp_path / "checkpoints").glob("step-*")]
    assert [record["skipped"] for record in steps(tmp_path)] == [1, 2, 3]
    assert not [record for record in records(tmp_path) if record.get("event") == "done"]


def test_a_run_whose_last_steps_were_skipped_says_so(tmp_path, monkeypatch):
    poison(monkeypatch, {3, 4})
    assert train(tiny_config(tmp_path, steps=4)) == 0
    (warning,) = events(tmp_path, "warning")
    assert "2 step(s)" in warning["message"]


def test_a_weight_that_is_not_finite_on_one_rank_is_named_on_all():
    assert on_ranks(2, broken_on_rank_1) == [["2.weight"]] * 2


def broken_on_rank_1() -> list[str]:
    world = start_world("cpu", 60.0)
    try:
        model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
        model[0].weight.requires_grad_(False).fill_(torch.inf)  # not trained: it may hold anything
        with torch.no_grad():
            model[2].weight[1, 1] = torch.nan if world.rank == 1 else 0.0
        return not_finite([model], NativeEngine(model, OptimConfig(), world), world)
    finally:
        world.close()


def test_long_lists_of_names_are_cut():
    assert show_names(["a", "b"]) == "a, b"
    assert show_names(list("abcde")) == "a, b, c and 2 more"


def test_the_error_of_a_start_is_not_one_of_the_loop(tmp_path, monkeypatch):
    spoil(monkeypatch, "norm")
    raised = []
    monkeypatch.setattr("trainer.run.process.report", lambda error, **_: raised.append(error) or 2)
    assert train(tiny_config(tmp_path)) == 2
    assert isinstance(raised[0], RunError)
    assert (raised[0].where, raised[0].value) == ("model", "norm")
