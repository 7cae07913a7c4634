"""Rows behind the last expert's, which a grouped GEMM leaves as the memory was: poisoned, they reach nothing."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.trainer.model.experts.te.te_wiring import E, order_of, run, tokens_of, weights_of
from tests.trainer.model.tiny import assert_close
from trainer.model.experts.fp8_reference import Fp8Reference
from trainer.model.experts.fused_grouped_mm import FusedGroupedMM
from trainer.model.experts.loop import loop
from trainer.model.experts.te.linear import TransformerEngine
from trainer.model.ops import Ops

pytestmark = pytest.mark.usefixtures("poisoned_memory")

POISONS = [float("nan"), float("inf"), 3e38]


class Watched(Ops):
    """Torch's own operations, which check every number that they are given and return."""

    def fuses(self, x: Tensor) -> bool:
        return True

    def _swiglu_forward(self, hidden: Tensor, weight: Tensor) -> Tensor:
        result = super()._swiglu_forward(hidden, weight)
        sound(hidden, weight, result)
        return result

    def _swiglu_backward(
        self, hidden: Tensor, weight: Tensor, dy: Tensor, *, recompute: bool
    ) -> tuple[Tensor | None, Tensor, Tensor]:
        found = super()._swiglu_backward(hidden, weight, dy, recompute=recompute)
        sound(hidden, weight, dy, *(part for part in found if part is not None))
        return found


def sound(*tensors: Tensor) -> None:
    for tensor in tensors:
        assert tensor.isfinite().all()
        assert not tensor.numel() or tensor.abs().max() < 1e6


@pytest.fixture(params=POISONS, ids=str)
def poisoned_gemm(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """`F.grouped_mm` whose unwritten rows hold a poison; the rows of each call."""
    genuine, calls = F.grouped_mm, []

    def grouped_mm(a: Tensor, b: Tensor, *, offs: Tensor) -> Tensor:
        sound(a, b)
        found = genuine(a, b, offs=offs)
        if found.ndim == 2:
            found[int(offs[-1]) :] = request.param
            calls.append(len(found) - int(offs[-1]))
        return found

    monkeypatch.setattr(F, "grouped_mm", grouped_mm)
    return calls


@pytest.mark.parametrize("experts", [[1, 2], [0, 5]], ids=str)
def test_fp8_reference(poisoned_gemm, experts):
    leaves, order = tokens_of(37, torch.float32) | weights_of(torch.float32), order_of(37, experts)
    found = run(Fp8Reference(Watched()), order, leaves)
    assert max(poisoned_gemm) > 0
    sound(*found.values())
    assert_close(found, run(loop, order, leaves), 0.2)


@pytest.mark.parametrize("tokens", [37, 0])
def test_fused(poisoned_gemm, tokens):
    """It pads nothing, unless there is no row at all: then one row is unwritten."""
    leaves = tokens_of(tokens, torch.float32) | weights_of(torch.float32)
    found = run(FusedGroupedMM(Watched()), order_of(tokens), leaves)
    assert len(poisoned_gemm) == 4
    sound(*found.values())
    assert_close(found, run(loop, order_of(tokens), leaves), 1e-5)


@pytest.mark.parametrize("experts", [range(E), [1, 2]], ids=["all experts", "two of six"])
@pytest.mark.parametrize("held", [False, True])
def test_transformer_engine(stand_in, experts, held):
    """The stand-in leaves NaN in its results and gradients where the real one writes nothing."""
    leaves, order = tokens_of(37, torch.float32) | weights_of(torch.float32), order_of(37, experts)
    backend = TransformerEngine(stand_in, Watched())
    backend.hold_weights(held)
    found = run(backend, order, leaves)
    sound(*found.values())
    assert_close(found, run(loop, order, leaves), 2e-2)
