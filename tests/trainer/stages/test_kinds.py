"""Kinds of silent errors of parallel training, each made on purpose: the comparison with one process must see it.

docs/pipeline.md lists them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

import trainer.parallelize
import trainer.stages.pipeline as pipeline
from parallel.sharding.fsdp import Policy
from parallel.world import World
from tests.distributed.pool import on_ranks
from tests.trainer.stages.layouts import Case, Layout, Step, errors, reference, run_steps
from trainer.objectives.next_token import NextToken
from trainer.objectives.scalars import GlobalBatch, Scalars
from trainer.optim.native import NativeEngine

SHARDED = Case(Layout(pp=2, dp_shard=2, ep=2), ("zbv", 2))
COPIED = Case(Layout(pp=2, dp_replicate=2))
Patch = pytest.MonkeyPatch
Mistake = Callable[[Patch], None]


def norm_without_experts(patch: Patch) -> None:
    norm_with(
        patch, lambda engine: {"leaves": {n: t.detach() if ".experts." in n else t for n, t in engine.leaves.items()}}
    )


def norm_of_one_stage(patch: Patch) -> None:
    norm_with(patch, lambda engine: {"world": engine.alike})


def norm_with_every_copy(patch: Patch) -> None:
    norm_with(patch, lambda engine: {"alike": World()})


def norm_with(patch: Patch, changed: Callable[[Any], dict[str, Any]]) -> None:
    genuine = NativeEngine._gradient_norm

    def norm(engine: NativeEngine) -> Any:
        with Patch.context() as inside:
            for name, value in changed(engine).items():
                inside.setattr(engine, name, value)
            return genuine(engine)

    patch.setattr(NativeEngine, "_gradient_norm", norm)


def copies_not_summed(patch: Patch) -> None:
    patch.setattr(World, "sum_gradients", lambda *_: None)


def mean_of_each_micro_batch(patch: Patch) -> None:
    genuine = NextToken.loss

    def loss(objective: NextToken, model: Any, hidden: Any, batch: Any, whole: GlobalBatch) -> Scalars:
        tokens = max(batch.num_tokens, 1) * whole.micro_batches * whole.world.size
        return genuine(objective, model, hidden, batch, replace(whole, units=tokens))

    patch.setattr(NextToken, "loss", loss)


def router_losses_lost(patch: Patch) -> None:
    patch.setattr(pipeline, "attach_loss", lambda hidden, _: hidden + 0)


def router_losses_of_each_micro_batch(patch: Patch) -> None:
    genuine = pipeline.attach_loss
    patch.setattr(pipeline, "attach_loss", lambda hidden, loss: genuine(hidden, loss * SHARDED.micro_batches))


def selections_of_one_rank(patch: Patch) -> None:
    genuine = pipeline.router_scalars

    def scalars(stats: Any, cfg: Any, whole: GlobalBatch) -> Scalars:
        alone = genuine(stats, cfg, replace(whole, world=World()))
        return Scalars({name: replace(s, normaliser=s.normaliser * whole.world.size) for name, s in alone.items()})

    patch.setattr(pipeline, "router_scalars", scalars)


def divided_by_micro_batches(patch: Patch) -> None:
    genuine = pipeline.build_schedule

    def build(*args: Any) -> Any:
        schedule = genuine(*args)
        schedule.scale_grads = True
        return schedule

    patch.setattr(pipeline, "build_schedule", build)


def weights_freed_inside_a_stage(patch: Patch) -> None:
    patch.setattr(trainer.parallelize, "_policy", lambda *_: Policy(reshard_dense=True, reshard_experts=True))


def stages_without_their_micro_batch(patch: Patch) -> None:
    """Every stage after the first has the documents of the first micro-batch."""
    genuine = pipeline.run_stage
    seen: dict[int, Any] = {}

    def run(stage: Any, inputs: Any, x: Any) -> Any:
        bounds = seen.setdefault(id(stage), inputs["cu_seqlens"])
        return genuine(stage, inputs if x is None else {**inputs, "cu_seqlens": bounds}, x)

    patch.setattr(pipeline, "run_stage", run)


# Where each must be seen: the fields of `Errors`.
MISTAKES: dict[Mistake, tuple[Case, set[str]]] = {
    norm_without_experts: (SHARDED, {"norm", "weights"}),
    norm_of_one_stage: (SHARDED, {"norm", "weights"}),
    norm_with_every_copy: (COPIED, {"norm", "weights"}),
    copies_not_summed: (COPIED, {"norm", "grads", "weights"}),
    mean_of_each_micro_batch: (SHARDED, {"loss", "norm", "grads", "weights"}),
    router_losses_lost: (SHARDED, {"norm", "grads", "weights"}),
    router_losses_of_each_micro_batch: (SHARDED, {"norm", "grads", "weights"}),
    selections_of_one_rank: (SHARDED, {"loss", "norm", "grads", "weights"}),
    divided_by_micro_batches: (COPIED, {"norm", "grads"}),
    weights_freed_inside_a_stage: (SHARDED, {"grads"}),
    stages_without_their_micro_batch: (SHARDED, {"loss", "norm", "grads", "weights"}),
}


def mistaken_steps(mistakes: list[Mistake]) -> list[Step | None]:
    found = []
    for mistake in mistakes:
        with Patch.context() as patch:
            mistake(patch)
            found += run_steps([MISTAKES[mistake][0]])
    return found


def seen_in(found: Step, expected: Step) -> set[str]:
    """The fields of `Errors` that a mistake shows in."""
    if found.grads.keys() != expected.grads.keys():
        return {"grads"}  # some are missing
    compared = errors(found, expected)
    return {name for name in ("loss", "norm", "grads", "weights") if not getattr(compared, name) <= 1e-6}


@pytest.mark.parametrize(
    "case", [pytest.param(SHARDED, id="sharded", marks=pytest.mark.slow), pytest.param(COPIED, id="copied")]
)
def test_each_kind_of_silent_error_is_seen(case):
    mistakes = [mistake for mistake, (of, _) in MISTAKES.items() if of == case]
    by_rank = on_ranks(4, mistaken_steps, mistakes, init=True, timeout_s=120.0)
    for mistake, step in zip(mistakes, by_rank[0], strict=True):
        assert MISTAKES[mistake][1] <= seen_in(step, reference(case.alone())), mistake.__name__
