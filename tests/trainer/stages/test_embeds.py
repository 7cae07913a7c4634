"""Ready embeddings in place of token ids, as of images: their gradients on a pipeline's first stage and in one
process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from tests.distributed.pool import on_ranks
from tests.trainer.model.tiny import assert_close
from tests.trainer.stages.layouts import MODEL, Case, Layout, build_parts, forward_backward, step_batches
from trainer.data.batch import Batch
from trainer.model.initial import seeded_normal
from trainer.run.step import count_step

TWO = Layout(pp=2)
CASES = {
    "1f1b": Case(TWO),
    "1f1b, recomputed": Case(TWO, recompute="full"),
    "interleaved": Case(TWO, ("interleaved_1f1b", 2)),
    "zero bubble": Case(TWO, ("interleaved_zero_bubble", 2)),
    "zbv": Case(TWO, ("zbv", 2)),
    "dualpipev": Case(TWO, ("dualpipev", 2)),
}


def with_embeds(batch: Batch, number: int) -> Batch:
    shape = (*batch.labels.shape, MODEL["hidden_size"])
    embeds = seeded_normal(shape, 3, f"embeds {number}").double().requires_grad_()
    return replace(batch, inputs={"embeds": embeds, "positions": batch.inputs["positions"]})


def gradients(cases: Sequence[Case]) -> list[dict[str, Tensor | None]]:
    """The gradients of each micro-batch's embeddings, on this rank."""
    found = []
    for case in cases:
        parts, world = build_parts(case)
        batches = [with_embeds(batch, number) for number, batch in enumerate(step_batches(case, parts.place))]
        units = count_step(parts.objective, batches, world, parts.place)["units"]
        forward_backward(parts, world, batches, units)
        found.append({str(number): batch.inputs["embeds"].grad for number, batch in enumerate(batches)})
    return found


def test_embeddings_get_their_gradients_on_the_first_stage():
    first, last = on_ranks(2, gradients, list(CASES.values()), init=True, timeout_s=120.0)
    for case, found in zip(CASES.values(), first, strict=True):
        (expected,) = gradients([case.alone()])
        assert_close(found, expected, 1e-10)
    assert all(grad is None for of_case in last for grad in of_case.values())
