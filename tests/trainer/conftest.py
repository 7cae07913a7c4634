from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tests.trainer.model.experts.te import te_stand_in
from tests.trainer.model.experts.te.te_wiring import PATHS
from trainer.model.experts.te import linear as te


@pytest.fixture
def poisoned_memory() -> Iterator[None]:
    """torch.empty is NaN: unwritten values always show, and not only when the memory held something else."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def stand_in(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The stand-in, on the path that the test's parameter names; its recipe."""
    path = getattr(request, "param", "native")
    what: dict[str, Any] = {"list": {"cublaslt": 130000}, "mxfp8": {"capability": (10, 0)}}.get(path, {})
    te_stand_in.install(monkeypatch, **what)
    return PATHS[path]


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(te, "GEMM_DTYPE", torch.float64)
