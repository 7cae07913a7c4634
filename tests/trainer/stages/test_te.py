"""Experts of Transformer Engine, here its stand-in, in a pipeline: weights quantised once for all micro-batches in
flight, and gradients added in place, give the step of one process."""

from __future__ import annotations

import pytest
import torch

from tests.distributed.pool import on_ranks
from tests.trainer.model.experts.te import te_stand_in
from tests.trainer.stages.layouts import MODEL, Case, Layout, Step, errors, run_steps
from trainer.model.experts.te import linear as te

SIZES = {"hidden_size": 32, "expert_width": 16}  # that FP8 experts take


def steps_on_stand_in(case: Case) -> Step | None:
    """A step in fp64, but for what the experts quantise."""
    with pytest.MonkeyPatch.context() as patch:
        te_stand_in.install(patch)
        patch.setattr(te, "GEMM_DTYPE", torch.float64)
        for key, size in SIZES.items():
            patch.setitem(MODEL, key, size)
        return run_steps([case])[0]


@pytest.mark.parametrize(("layers", "recompute"), [(3, "none"), pytest.param(3, "full", marks=pytest.mark.slow)])
def test_two_stages_equal_one_process(layers, recompute):
    case = Case(Layout(pp=2), ("1f1b", 1), recompute=recompute, experts="fp8_block", layers=layers, micro_batches=4)
    found = on_ranks(2, steps_on_stand_in, case, init=True)[0]
    alone = steps_on_stand_in(case.alone())
    assert alone is not None
    assert max(errors(found, alone)[:4]) <= 1e-10
