"""Parts of a model that train in their own way: what is frozen stays, has neither gradients nor moments, and all else
is as in one process, under FSDP and in a pipeline."""

from __future__ import annotations

import pytest
import torch

from tests.distributed.pool import on_ranks
from tests.trainer.model.tiny import relative
from tests.trainer.stages.layouts import Case, Layout, build_parts, errors, reference, run_steps
from trainer.config.compose import compose
from trainer.config.errors import ConfigError
from trainer.config.memory import rank_memory
from trainer.run.simulate import simulate_rank

FROZEN = (("text", "freeze", True), ("vision", "freeze", True), ("router", "freeze", True))
OWN = (("merger", "lr", 0.4), ("signals", "weight_decay", 0.5))
CASES = [
    Case(Layout(dp_shard=2), towers=True, parts=FROZEN + OWN),
    Case(Layout(pp=2), towers=True, parts=FROZEN + OWN),
    Case(Layout(pp=2), towers=True, parts=(("vision", "freeze", True), ("text", "lr", 0.02)), optim="muon"),
]


def names_of(part: str, names: object) -> set[str]:
    return {name for name in names if name.startswith(part)}


def test_parts_of_ranks_are_those_of_one_process():
    found = on_ranks(2, run_steps, CASES, init=True, timeout_s=120.0)[0]
    for case, step in zip(CASES, found, strict=True):
        compared = errors(step, reference(case.alone()))
        assert max(compared[:4]) <= 1e-9, (str(case.layout), compared)


def test_frozen_parts_stay_and_others_have_their_own_rate_and_decay():
    case = CASES[0].alone()
    parts, _ = build_parts(case)
    before = {name: weight.detach().clone() for name, weight in parts.model.named_parameters()}
    step = reference(case)
    trained = names_of("vision.merger.", before) | names_of("signals.", before)
    assert step.grads.keys() == trained
    for name, weight in step.weights.items():
        if name not in trained:
            assert torch.equal(weight, before[name]), name
            continue
        rate, decay = (0.4, 0.0) if name.startswith("vision.") else (0.1, 0.5 * (before[name].ndim > 1))
        expected = before[name] * (1 - rate * decay if decay else 1) - rate * step.grads[name] / step.clip
        if not decay:  # torch's SGD adds the decay to the gradient
            assert relative(weight, expected) <= 1e-12, name
        else:
            assert relative(weight, before[name]) > 1e-2


def test_frozen_parts_have_no_moments():
    parts, _ = build_parts(CASES[0].alone()._replace(optim="adamw"))
    state = {name.rpartition(".")[0] for name in parts.engine.state() if name != "skipped"}
    names = [name for name, _ in parts.model.named_parameters()]
    assert state == names_of("vision.merger.", names) | names_of("signals.", names)


def test_the_memory_of_a_rank_leaves_frozen_parts_out():
    words = ["recipe=toy", "model=toy_multimodal", "data=synthetic", "data.seq_len=64", "train.micro_batch=1"]
    words += ["parallel.dp_shard=2", "train.device=cpu"]
    for frozen in (["vision", "text"], ["router", "merger"]):
        cfg = compose([*words, *(f"optim.parts.{part}.freeze=true" for part in frozen)], world_size=2)
        found, counted = simulate_rank(cfg, 2, 0), rank_memory(cfg, 2, 0)
        sizes = (found.memory.weights, found.memory.gradients, found.memory.optimizer)
        assert sizes == (counted.weights, counted.gradients, counted.optimizer)


@pytest.mark.parametrize(
    ("words", "where"),
    [
        (["model=toy", "optim.parts.vision.freeze=true"], "optim.parts.vision"),
        (["optim.parts.vision.lr=0"], "optim.parts.vision.lr"),
        (["optim.parts.text.weight_decay=-1"], "optim.parts.text.weight_decay"),
        (["optim.parts.merger.freeze=true", "optim.parts.merger.lr=1"], "optim.parts.merger.freeze"),
        (
            [f"optim.parts.{part}.freeze=true" for part in ("text", "router", "vision", "merger", "signals")],
            "optim.parts",
        ),
        (["model=toy", "optim.engine=deepspeed", "optim.parts.router.lr=1e-4"], "optim.engine"),
    ],
)
def test_parts_that_cannot_be(words, where):
    model = [] if words[0] == "model=toy" else ["model=toy_multimodal"]
    with pytest.raises(ConfigError) as refused:
        compose(["recipe=toy", "data=synthetic", *model, *words])
    (fault,) = refused.value.faults
    assert fault.where == where
    assert fault.allowed
