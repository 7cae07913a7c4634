"""A checkpoint written under one layout and read under another: the same state, samples and exported files. `make
test-resume` runs every pair of the large layouts."""

from __future__ import annotations

import shutil
from functools import cache
from pathlib import Path

import pytest

from tests.trainer.stages.resuming import LARGE, LAYOUTS, Outcome, differences, resume, write

WRITERS = ("pp 2 x ep 2", "pp 2, zbv", "pp 3", "ep 4", "pp 2 x cp 2 x ep 2")
SMALL = [name for name in LAYOUTS if name not in LARGE or name == "pp 2 x cp 2 x ep 2"]
QUICK = ("pp 2 x ep 2", "pp 2, zbv", "adamw")
NEXT = dict(zip(LARGE, (*LARGE[1:], LARGE[0]), strict=True))
CASES = [
    *((writer, reader, "adamw") for writer in WRITERS for reader in SMALL if reader != writer),
    *((writer, reader, "adamw") for writer, reader in NEXT.items()),
    # Muon's momenta are sharded as the weights are, and each matrix is updated on one rank.
    ("pp 2 x ep 4", "cp 4 x ep 2", "muon"),
    ("pp 4 x ep 2", "pp 2 x rep 2 x shard 2 x ep 2", "muon"),
    ("cp 4 x ep 2", "pp 2 x cp 2 x ep 2", "muon"),
]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    @cache
    def make(name: str, optim: str) -> tuple[Path, Outcome]:
        """A run of this layout, and how it continues there."""
        run = tmp_path_factory.mktemp("written") / "run"
        return run, write(run, name, optim)

    return make


@pytest.mark.parametrize(
    ("writer", "reader", "optim"),
    [pytest.param(*case, id=": ".join(case), marks=[] if case == QUICK else pytest.mark.slow) for case in CASES],
)
def test_another_layout_resumes_with_the_same_state_and_exports_the_same_bytes(
    tmp_path, written, writer, reader, optim
):
    run, expected = written(writer, optim)
    assert differences(resume(shutil.copytree(run, tmp_path / "on"), reader, optim), expected) == []
