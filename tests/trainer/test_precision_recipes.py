"""Precision recipes: the dtype of every part that really ran, what a machine refuses, checkpoints that know of none."""

from __future__ import annotations

import os
import shutil
from contextlib import redirect_stderr
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from parallel.fp8 import fake_quantize
from parallel.simulate import CollectiveLog
from parallel.world import World, start_world
from tests.distributed.pool import on_ranks
from tests.printed import error_line
from tests.trainer.tiny_run import events, losses, steps, tiny_config
from trainer.config.compose import compose, list_groups
from trainer.config.keys import Config, PrecisionConfig
from trainer.data.build import build_data
from trainer.model.decoder import Decoder
from trainer.model.experts import fp8_reference
from trainer.model.experts.fp8_reference import Fp8Reference, square
from trainer.objectives.choose import build_objective
from trainer.objectives.next_token import NextToken
from trainer.optim.build import build_engine
from trainer.optim.engine import Engine
from trainer.parallelize import build_meshes
from trainer.precision import DTYPES, experts_unavailable, narrow_moments, table, unavailable
from trainer.run.build import build, build_model
from trainer.run.directory import RunDir
from trainer.run.loop import Trainer
from trainer.run.process import train
from trainer.run.step import Between, accumulate_gradients

# Sizes that distinguish the matrices: attention's have 64 rows, the router's 16, the experts' 48, the head's 56.
SIZES = {
    "vocab_size": 56, "hidden_size": 40, "num_layers": 1, "num_heads": 4, "num_kv_heads": 2, "head_dim": 8,
    "num_experts": 16, "experts_per_token": 4, "router_groups": 4, "expert_width": 24,
}  # fmt: skip
CPU = torch.device("cpu")
RUNS_HERE = ["fp32", "bf16", "fp8_reference"]
MATMULS = ("mm", "addmm", "bmm", "_grouped_mm", "matmul", "linear")


@cache
def composed(name: str) -> PrecisionConfig:
    return compose(["recipe=toy", f"precision={name}"]).precision


def precision(name: str, **changes: str) -> PrecisionConfig:
    return replace(composed(name), **changes)


def config(directory: Path | str, name: str, **changes: str) -> Config:
    cfg = tiny_config(directory, model=SIZES, global_batch=4, micro_batch=1)
    cfg.precision = precision(name, **changes)
    return cfg


class Ran(TorchDispatchMode):
    """Every operation: its name, the dtypes of its tensors, and the last dimension and dtype of its result."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, set[torch.dtype], int, torch.dtype]] = []
        self.into_experts: list[torch.Tensor] = []  # rows and weights of the first matmuls

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        result = op(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.ndim:
            flat = [value for value in torch.utils._pytree.tree_leaves(args) if isinstance(value, torch.Tensor)]
            dtypes = {value.dtype for value in flat if value.is_floating_point()}
            if result.shape[-1] == 48 and op.overloadpacket.__name__ in MATMULS:
                self.into_experts += [value.clone() for value in flat if value.is_floating_point() and value.ndim > 1]
            self.calls.append((op.overloadpacket.__name__, dtypes, result.shape[-1], result.dtype))
        return result

    def dtypes(self, last: int, *names: str) -> set[torch.dtype]:
        """Dtypes of all inputs and results of the operations `names` whose result ends in a dimension of `last`."""
        found = [(inputs, result) for name, inputs, size, result in self.calls if name in names and size == last]
        assert found, (names, last)
        return set().union(*(inputs | {result} for inputs, result in found))


def built(cfg: Config) -> tuple[Decoder, Engine]:
    model = build_model(cfg, World(), None, build_objective(cfg.train))
    engine = build_engine(model, cfg.optim, World(), None, narrow_moments(cfg.precision))
    engine.prepare()
    return model, engine


def forward_and_backward(model: Decoder, engine: Engine, cfg: Config) -> None:
    batch = build_data(cfg.data, seed=0, vocab_size=56).stream.batch(0, 1)
    accumulate_gradients(model, engine, NextToken(cfg.train.loss_chunk), [batch], 16, World(), step=1)


@pytest.mark.parametrize("name", ["bf16", "fp8_reference"])
def test_experts_that_are_quantised_for_each_use_have_equal_gradients(name):
    cfg, found = config("unused", name), []
    batch = build_data(cfg.data, seed=0, vocab_size=56).stream.batch(0, 1)
    for hold in (True, False):
        model, engine = built(cfg)
        accumulate_gradients(
            model,
            engine,
            NextToken(cfg.train.loss_chunk),
            [batch] * 2,
            32,
            World(),
            step=1,
            between=Between(hold_experts=hold),
        )
        found.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_quantised_experts_are_held_unless_they_are_gathered_for_each_use():
    cfg = config("unused", "fp8_reference")
    assert Between.of(cfg).hold_experts
    cfg.parallel.reshard_experts = True
    assert not Between.of(cfg).hold_experts
    cfg.precision.experts = "fp8_delayed"  # whose scales change once for each time that weights are held
    assert Between.of(cfg).hold_experts


@pytest.fixture(scope="module", params=RUNS_HERE)
def ran(request) -> tuple[str, Ran]:
    cfg = config("unused", request.param)
    model, engine = built(cfg)
    with Ran() as log:
        forward_and_backward(model, engine, cfg)
    return request.param, log


def test_linears(ran):
    name, log = ran
    assert log.dtypes(64, *MATMULS) == {DTYPES[precision(name).linears]}


def test_experts(ran):
    name, log = ran
    assert log.dtypes(48, *MATMULS) == {torch.bfloat16 if name == "bf16" else torch.float32}
    assert log.into_experts
    # What FP8 can hold has 4 significant bits; tiles here are a row of tokens, or a whole weight.
    in_fp8 = [torch.equal(part, fake_quantize(part, (1 if part.ndim == 2 else 128, 128))) for part in log.into_experts]
    assert all(in_fp8) if name == "fp8_reference" else not any(in_fp8)


def test_the_router_is_fp32(ran):
    _, log = ran
    assert log.dtypes(16, *MATMULS) == {torch.float32}
    assert log.dtypes(4, "_softmax") == {torch.float32}  # the selected four, renormalised


def test_the_head_is_fp32(ran):
    _, log = ran
    assert log.dtypes(56, *MATMULS) == {torch.float32}
    assert log.dtypes(56, "_softmax", "softmax") == {torch.float32}


def test_norms_and_rotary_are_fp32(ran):
    _, log = ran
    reductions = [dtypes for name, dtypes, *_ in log.calls if name == "linalg_vector_norm"]
    assert len(reductions) == 5  # two of the block, q and k, the last
    assert set().union(*reductions) == {torch.float32}
    assert log.dtypes(4, "addcmul_", "cos", "sin") == {torch.float32}  # half a head: tables and the rotation by them


@pytest.mark.parametrize("moments", ["fp32", "bf16"])
@pytest.mark.parametrize("name", RUNS_HERE)
def test_masters_gradients_and_moments(name, moments):
    cfg = config("unused", name, moments=moments)
    model, engine = built(cfg)
    forward_and_backward(model, engine, cfg)
    assert {p.dtype for p in model.parameters()} == {p.grad.dtype for p in model.parameters()} == {torch.float32}
    kinds = {value.dtype for key, value in engine.state().items() if "exp_avg" in key}
    assert kinds == {DTYPES[moments]}
    before = [p.detach().clone() for p in model.parameters()]
    engine.step(1, 10)
    assert {value.dtype for key, value in engine.state().items() if "exp_avg" in key} == {DTYPES[moments]}
    assert not any(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


Sums = dict[str, int]  # bytes of each kind of collective


def traffic(runs: dict[str, tuple[str, dict[str, str]]]) -> dict[str, tuple[Sums, Sums]]:
    """For each run what goes over the expert-parallel ranks, and over those that shard the dense weights."""
    return {key: traffic_of(name, changes) for key, (name, changes) in runs.items()}


def traffic_of(name: str, changes: dict[str, str]) -> tuple[Sums, Sums]:
    world = start_world("cpu")
    cfg = config("unused", name, **changes)
    cfg.model = replace(cfg.model, hidden_size=256)
    cfg.parallel.ep = cfg.parallel.dp_shard = 2
    meshes = build_meshes(cfg, "cpu")
    model = build_model(cfg, world, meshes, build_objective(cfg.train))
    engine = build_engine(model, cfg.optim, world, meshes.shard_group, narrow_moments(cfg.precision))
    engine.prepare()
    batch = build_data(cfg.data, seed=0, vocab_size=56).stream.batch(world.rank, 1)
    with CollectiveLog([("ep", meshes.ep_group), ("dense", meshes.dense.get_group())]) as log:
        accumulate_gradients(model, engine, NextToken(cfg.train.loss_chunk), [batch], 32, world, step=1)
    found = ({}, {})
    for call in log.calls:
        if call.axis in ("ep", "dense"):
            sums = found[call.axis == "dense"]
            sums[call.op] = sums.get(call.op, 0) + call.nbytes
    world.close()
    return found


def test_what_travels():
    """In bf16 half of fp32's bytes, in fp8 about half of those; gradients are summed in the dtype of reductions."""
    runs = {
        "fp32": ("fp32", {}),
        "bf16": ("bf16", {}),
        "fp8": ("bf16", {"payload": "fp8"}),
        "sums": ("bf16", {"reductions": "bf16"}),
    }
    found = on_ranks(2, traffic, runs)[0]
    ep, dense = ({key: sums[n] for key, sums in found.items()} for n in (0, 1))
    gathered = {key: sums["all_gather"] for key, sums in ep.items()}
    assert gathered["bf16"] == pytest.approx(gathered["fp32"] / 2, rel=0.1)
    assert gathered["fp8"] == pytest.approx(gathered["bf16"] / 2, rel=0.1)
    # beside bf16 linears the norms of queries and keys are not cut: a few numbers
    assert dense["bf16"]["reduce_scatter"] == pytest.approx(dense["fp32"]["reduce_scatter"], rel=1e-3)
    assert dense["sums"]["reduce_scatter"] == dense["bf16"]["reduce_scatter"] / 2


@pytest.mark.parametrize("name", [name for name in list_groups()["precision"] if name not in RUNS_HERE])
def test_a_recipe_that_this_machine_lacks_ends_in_one_line(tmp_path, capsys, name):
    cfg = config(tmp_path / "run", name)
    assert train(cfg) == 2
    error_line(capsys.readouterr().err, f"precision.experts={name}", "[gpu]", "precision=fp32, bf16 or fp8_reference")
    assert not (tmp_path / "run").exists()


def test_fused_kernels_are_for_cuda(tmp_path, capsys):
    assert train(tiny_config(tmp_path / "run", kernels="triton")) == 2
    error_line(capsys.readouterr().err, "train.kernels=triton", "cpu", "train.kernels=torch")


def test_the_fault_of_an_unavailable_recipe_has_its_key_and_the_values_that_work():
    fault = unavailable(precision("fp8_block"), CPU)
    assert fault is not None
    assert (fault.where, fault.value) == ("precision.experts", "fp8_block")
    assert fault.allowed == ("fp32", "bf16", "fp8_reference")
    assert unavailable(precision("bf16"), CPU) is None


def test_every_recipe_declares_every_part():
    for name in list_groups()["precision"]:
        text = (Path(__file__).parents[2] / "recipes" / "precision" / f"{name}.yaml").read_text()
        declared = [line.partition(":")[0] for line in text.splitlines() if not line.startswith("#")]
        assert declared == list(vars(PrecisionConfig()))
        assert (experts_unavailable(precision(name).experts, CPU) is None) == (name in RUNS_HERE)


def test_the_log_says_what_was_chosen(tmp_path):
    assert train(config(tmp_path, "fp8_reference")) == 0
    (message,) = (event["message"] for event in events(tmp_path, "precision"))
    assert "fp8_reference  experts (1x128 and 128x128 tiles" in message
    told = " ".join(message.split())  # its lines are as wide as a terminal
    high = "linears, payload, inputs kept for backward, router, norms, rotary, lm head, masters, moments, gradients"
    assert f"fp32 {high}" in told


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ("fp8_reference", "bf16"),  # linears and experts change
        pytest.param("fp32", "fp8_reference", marks=pytest.mark.slow),
        pytest.param("fp8_reference", "fp32", marks=pytest.mark.slow),
        pytest.param("bf16", "fp8_reference", marks=pytest.mark.slow),
    ],
)
def test_a_checkpoint_of_one_recipe_resumes_under_another(tmp_path, first, then):
    """The resumed run takes the other recipe's steps from the first one's weights."""

    def part(directory, name, steps):
        cfg = config(directory, name)
        cfg.train.steps, cfg.optim.schedule = steps, "constant"
        assert train(cfg) == 0

    part(tmp_path / "kept", first, 2)
    shutil.copytree(tmp_path / "kept", tmp_path / "changed")
    part(tmp_path / "changed", then, 4)
    part(tmp_path / "kept", first, 4)
    changed, kept = losses(tmp_path / "changed"), losses(tmp_path / "kept")
    assert changed[:2] == kept[:2]
    assert changed[2:] != kept[2:]
    close = [float.fromhex(value) for _, value in kept[2:]]
    assert [float.fromhex(value) for _, value in changed[2:]] == pytest.approx(close, rel=2e-3)
    said = [event["message"] for event in events(tmp_path / "changed", "warning")]
    assert f"continuing with precision.experts: {first} -> {then}" in said


@pytest.mark.parametrize(("first", "then"), [("fp32", "bf16"), ("bf16", "fp32")])
def test_moments_are_converted_by_a_load(tmp_path, first, then):
    cfg = config(tmp_path, "fp32", moments=first)
    cfg.train.steps = 3
    run, world = RunDir(tmp_path, "new"), World()
    trainer = Trainer(cfg, run, world, build(cfg, run, world))
    assert trainer.run() == 0
    cfg, run = config(tmp_path, "fp32", moments=then), RunDir(tmp_path, "resume", 3)
    other = Trainer(cfg, run, world, build(cfg, run, world))
    other.log.close()
    saved, loaded = trainer.parts.engine.state(), other.parts.engine.state()
    moments = [name for name in saved if "exp_avg" in name]
    assert moments
    for name in moments:
        assert saved[name].any()
        assert torch.equal(loaded[name], saved[name].to(DTYPES[then]))


def test_weights_are_quantised_once_a_step_and_anew_in_the_next(tmp_path, monkeypatch):
    quantised = []
    monkeypatch.setattr(fp8_reference, "square", lambda w: quantised.append(w) or square(w))
    cfg = config(tmp_path / "held", "fp8_reference")
    cfg.train.steps, cfg.train.eval_every = 3, 2
    assert train(cfg) == 0
    evaluations = 2 * cfg.train.eval_batches
    assert len(quantised) == 2 * (cfg.train.steps + evaluations)  # w13 and w2 of one layer; a step has 4 micro-batches
    monkeypatch.setattr(Fp8Reference, "hold_weights", lambda self, hold: None)
    assert train(config(tmp_path / "anew", "fp8_reference")) == 0
    assert losses(tmp_path / "held") == losses(tmp_path / "anew")[:3]


def test_a_step_that_fails_holds_no_weights():
    cfg = config("unused", "fp8_reference")
    model, engine = built(cfg)
    batch = build_data(cfg.data, seed=0, vocab_size=56).stream.batch(0, 1)
    broken = replace(batch, inputs={**batch.inputs, "ids": batch.inputs["ids"] + 1000})
    with pytest.raises(IndexError):
        accumulate_gradients(model, engine, NextToken(chunk=32), [batch, broken], 32, World(), step=1)
    backend = model.blocks[0].moe.experts.backend
    assert (backend._hold, backend._held) == (False, None)


def lacking(folder: Path) -> int:
    """Two ranks; the second has no back end for its experts."""
    rank, able = os.environ["RANK"], (("fp32", "bf16", "fp8_reference"), ("fp32", "bf16"))
    with pytest.MonkeyPatch.context() as patch, open(folder / f"stderr-{rank}", "w") as file, redirect_stderr(file):
        patch.setattr("trainer.precision.ON_ANY_DEVICE", able[int(rank)])
        patch.setattr("trainer.model.experts.te.support.unavailable", lambda experts, device: "no cublas")
        return train(config(folder / "run", "fp8_reference"))


def test_what_one_rank_lacks_is_reported(tmp_path):
    assert on_ranks(2, lacking, tmp_path) == [2, 2]
    printed = (tmp_path / "stderr-0").read_text()
    error_line(printed, "rank 1 ", "precision.experts=fp8_reference", "no cublas", "precision=fp32 or bf16")
    assert not (tmp_path / "stderr-1").read_text()
    assert not (tmp_path / "run").exists()


def with_fp8_payload(folder: Path) -> int:
    cfg = config(folder, "fp8_reference", payload="fp8")
    cfg.parallel.ep, cfg.train.steps, cfg.optim.warmup_steps = 2, 1, 0
    return train(cfg)


def test_the_log_says_that_the_payload_is_rounded(tmp_path):
    assert on_ranks(2, with_fp8_payload, tmp_path) == [0, 0]
    (said,) = (event["message"] for event in events(tmp_path, "warning"))
    assert "precision.payload=fp8" in said
    assert "precision.payload=fp32" in said


def test_bf16_moments_follow_fp32_ones(tmp_path):
    last = {}
    for moments in ("fp32", "bf16"):
        cfg = config(tmp_path / moments, "fp32", moments=moments)
        cfg.train.steps, cfg.optim.lr = 40, 1e-2
        assert train(cfg) == 0
        last[moments] = float(steps(tmp_path / moments)[-1]["loss"])
    assert last["bf16"] != last["fp32"]
    assert last["bf16"] == pytest.approx(last["fp32"], rel=0.01)


@pytest.mark.parametrize("name", list_groups()["precision"])
def test_the_table_fits_a_terminal_and_names_every_part(name):
    cfg = precision(name)
    lines = table(cfg, "a back end whose description takes so many words that it alone would fill a line").splitlines()
    assert max(map(len, lines)) <= 100
    assert all(part.replace("_", " ") in " ".join(" ".join(lines).split()) for part in vars(cfg))
    assert "tower" not in " ".join(lines)
    assert all(word in table(cfg, "", ["vision", "signals"]) for word in ("vision", "signal"))
    assert {line.split()[0] for line in lines if not line.startswith(" ")} == {*vars(cfg).values()} - {"exact"}
