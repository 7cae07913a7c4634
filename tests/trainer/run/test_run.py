"""The loop: accumulation, normalisation, evaluation and samples that leave training alone, skipped steps, two ranks."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from parallel.world import World, start_world
from tests.distributed.pool import on_ranks
from tests.printed import error_line
from tests.trainer.tiny_run import events, losses, poison, records, steps, tiny_config
from trainer.config.keys import Config
from trainer.data.build import build_data
from trainer.objectives.choose import build_objective
from trainer.run.build import build, build_model
from trainer.run.directory import RunDir
from trainer.run.loop import Trainer
from trainer.run.process import train

CLOSE = 1e-6


def values(directory, key="loss"):
    return [float(record[key]) for record in steps(directory)]


def test_a_run_learns_and_leaves_its_record(tmp_path):
    assert train(tiny_config(tmp_path, steps=40, lr=1e-2, eval_every=20, sample_tokens=5, every=20)) == 0
    assert [record["step"] for record in steps(tmp_path)] == list(range(1, 41))
    assert values(tmp_path)[-1] < values(tmp_path)[0] - 0.3
    last = steps(tmp_path)[-1]
    assert {"lr", "grad_norm", "balance", "max_load", "skipped", "tokens"} <= set(last)
    assert last["lr"] == pytest.approx(1e-3)
    halfway, final = events(tmp_path, "evaluation")
    assert halfway["step"] == 20
    assert final["heldout"]["synthetic"] < halfway["heldout"]["synthetic"] < math.log(64)
    assert final["uniform"] == pytest.approx(math.log(64))
    assert final["unigram"]["synthetic"] < math.log(64)
    (began,) = events(tmp_path, "run")
    assert "fp32 with fp32 experts on 1 x cpu" in began["message"]
    (sample,) = events(tmp_path, "sample")
    assert len(sample["text"].split()) > 1
    assert not [record for record in records(tmp_path) if "event" in record and "loss" in record]
    assert (tmp_path / "checkpoints" / "latest").read_text() == "step-40\n"
    assert records(tmp_path)[-1]["event"] == "done"
    assert f"octavo inspect {tmp_path}" in records(tmp_path)[-1]["text"]


def test_balance_is_its_coefficient_per_layer_when_even(tmp_path):
    assert train(tiny_config(tmp_path, steps=2, model={"balance_coef": 0.01})) == 0
    assert values(tmp_path, "balance") == pytest.approx([0.02, 0.02], rel=0.05)
    assert all(1.0 <= load <= 8.0 for load in values(tmp_path, "max_load"))


def test_micro_batches_do_not_move_the_loss(tmp_path):
    """Normalised by the step's tokens, not by the micro-batch's. Without the balance loss, which is a mean over
    micro-batches of a product of means."""
    for micro in (1, 2, 4):
        cfg = tiny_config(tmp_path / str(micro), micro_batch=micro, model={"balance_coef": 0.0})
        assert train(cfg) == 0
    whole = values(tmp_path / "4")
    assert values(tmp_path / "1") == pytest.approx(whole, rel=1e-5)
    assert values(tmp_path / "2") == pytest.approx(whole, rel=1e-5)


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> list[tuple[int, str]]:
    directory = tmp_path_factory.mktemp("plain")
    assert train(tiny_config(directory)) == 0
    return losses(directory)


@pytest.mark.parametrize(
    "change",
    [
        {"eval_every": 1, "sample_tokens": 8},
        {"log_every": 1},
        {"every": 1},
        {"recompute": "full"},
        {"recompute": "selective"},
    ],
    ids=["evaluation", "metrics", "checkpoints", "full recompute", "selective recompute"],
)
def test_what_is_beside_the_step_changes_no_bit(tmp_path, plain, change):
    assert train(tiny_config(tmp_path, **change)) == 0
    assert losses(tmp_path) == plain


class CountAttention(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        self.count += op is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
        return op(*args, **(kwargs or {}))


def test_recompute_keeps_less_and_selective_makes_no_attention_twice(tmp_path):
    kept, attentions = {}, {}
    for recompute in ("none", "selective", "full"):
        cfg = tiny_config(tmp_path, recompute=recompute)
        model = build_model(cfg, World(), None, build_objective(cfg.train))
        batch = build_data(cfg.data, seed=0, vocab_size=64).stream.batch(0, 4)
        parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
        storages: dict[int, int] = {}

        def pack(tensor, storages=storages):
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            hidden = model(batch.inputs["ids"], batch.inputs["positions"], batch.cu_seqlens).hidden
        kept[recompute] = sum(size for pointer, size in storages.items() if pointer not in parameters)
        with CountAttention() as counter:
            hidden.sum().backward()
        attentions[recompute] = counter.count
    assert kept["full"] < kept["none"] / 4
    assert attentions["none"] == attentions["selective"] == 0
    assert attentions["full"] > 0


@pytest.mark.slow
@pytest.mark.timeout(600)  # a C++ compiler runs two dozen times
@pytest.mark.parametrize("recompute", ["none", "full"])
def test_compiled_blocks_give_the_same_losses(tmp_path, recompute):
    assert train(tiny_config(tmp_path / "plain", steps=3)) == 0
    assert train(tiny_config(tmp_path / "compiled", steps=3, compile=True, recompute=recompute, sample_tokens=3)) == 0
    assert values(tmp_path / "compiled") == pytest.approx(values(tmp_path / "plain"), rel=1e-5)


def test_steps_that_are_not_finite_are_skipped_and_counted(tmp_path, monkeypatch):
    poison(monkeypatch, {3, 4, 6})
    cfg = tiny_config(tmp_path, schedule="constant", warmup_steps=0, max_skipped=3)
    assert train(cfg) == 0
    assert [record["skipped"] for record in steps(tmp_path)] == [0, 0, 1, 2, 2, 3, 3, 3]
    assert [math.isfinite(loss) for loss in values(tmp_path)] == [step not in (3, 4, 6) for step in range(1, 9)]
    assert [math.isfinite(norm) for norm in values(tmp_path, "grad_norm")] == [n not in (3, 4, 6) for n in range(1, 9)]


def test_too_many_in_a_row_end_the_run_with_one_line(tmp_path, monkeypatch, capsys):
    poison(monkeypatch, {3, 4, 5, 6, 7, 8, 9, 10})
    assert train(tiny_config(tmp_path, steps=50, max_skipped=3, log_every=2, every=2, keep=1)) == 1
    # It was saved at step 4 with two skipped, which change no weight.
    error_line(capsys.readouterr().err, "train.max_skipped=3", "optim.lr", "step-4")
    assert len(steps(tmp_path)) == 6  # at most log_every late
    assert "train.max_skipped=3" in records(tmp_path)[-1]["message"]
    assert records(tmp_path)[-1]["event"] == "failed"


def test_a_resumed_run_continues_counting_skipped_steps(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        poison(patch, {4})
        assert train(tiny_config(tmp_path, steps=4, schedule="constant", max_skipped=2)) == 0
    poison(monkeypatch, {1})
    assert train(tiny_config(tmp_path, steps=8, schedule="constant", max_skipped=2)) == 1
    assert [record["skipped"] for record in steps(tmp_path)] == [0, 0, 0, 1, 2, 2]


def rank_trains(cfg: Config) -> int:
    return train(cfg)


def test_two_ranks_train_as_one_does(tmp_path):
    """Gradients summed, tokens counted globally, balance over the global micro-batch."""
    assert train(tiny_config(tmp_path / "one", micro_batch=2, eval_every=4)) == 0
    assert on_ranks(2, rank_trains, tiny_config(tmp_path / "two", micro_batch=1, eval_every=4)) == [0, 0]
    for key in ("loss", "balance", "grad_norm", "max_load", "tokens"):
        assert values(tmp_path / "two", key) == pytest.approx(values(tmp_path / "one", key), rel=2e-5), key
    assert values(tmp_path / "two")[0] == pytest.approx(values(tmp_path / "one")[0], rel=CLOSE)
    for one, two in zip(events(tmp_path / "one", "evaluation"), events(tmp_path / "two", "evaluation"), strict=True):
        assert two["heldout"]["synthetic"] == pytest.approx(one["heldout"]["synthetic"], rel=1e-5)


def test_one_rank_continues_what_two_saved(tmp_path):
    assert on_ranks(2, rank_trains, tiny_config(tmp_path / "mixed", micro_batch=1, steps=4, schedule="constant")) == [
        0,
        0,
    ]
    assert train(tiny_config(tmp_path / "mixed", micro_batch=2, steps=8, schedule="constant")) == 0
    assert train(tiny_config(tmp_path / "one", micro_batch=2, steps=8, schedule="constant")) == 0
    assert [step for step, _ in losses(tmp_path / "mixed")] == list(range(1, 9))
    assert values(tmp_path / "mixed") == pytest.approx(values(tmp_path / "one"), rel=2e-5)


def rank_trains_with_its_own_rate(cfg: Config) -> tuple[int, str]:
    import contextlib
    import io
    import os

    rank = int(os.environ["RANK"])
    with contextlib.redirect_stderr(io.StringIO()) as err:
        code = train(replace(cfg, optim=replace(cfg.optim, lr=cfg.optim.lr * (1 + rank))))
    return code, err.getvalue()


def test_ranks_of_different_configurations_refuse_to_start(tmp_path):
    (first, text), (second, other) = on_ranks(2, rank_trains_with_its_own_rate, tiny_config(tmp_path / "run"))
    assert (first, second) == (2, 2)
    error_line(text + other, "configuration", "rank 1 of 2")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_the_step_never_waits_for_the_gpu(tmp_path, device):
    """On a CPU it only runs, so that the test works when there is a GPU."""
    cfg = tiny_config(tmp_path)
    cfg.train.device = device
    cfg.precision.linears = cfg.precision.experts = cfg.precision.payload = "bf16"
    world = start_world(device)
    run = RunDir(tmp_path, "new")
    trainer = Trainer(cfg, run, world, build(cfg, run, world))
    counts = {"units": 100, "tokens": 100, "images": 0, "signals": 0}
    for _ in range(2):  # lazy initialisations wait
        trainer._train_step(trainer._next_batches(), counts)
    batches = trainer._next_batches()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
    try:
        trainer._train_step(batches, counts)
    finally:
        if device == "cuda":
            torch.cuda.set_sync_debug_mode("default")
        trainer.log.close()
