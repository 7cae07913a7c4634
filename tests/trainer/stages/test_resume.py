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
QUICK = ("pp 2 x ep 2", "pp 2, zbv", "adamw", "")
NEXT = dict(zip(LARGE, (*LARGE[1:], LARGE[0]), strict=True))
CASES = [
    *((writer, reader, "adamw", "") for writer in WRITERS for reader in SMALL if reader != writer),
    *((writer, reader, "adamw", "") for writer, reader in NEXT.items()),
    # Muon's momenta are sharded as the weights are, and each matrix is updated on one rank.
    ("pp 2 x ep 4", "cp 4 x ep 2", "muon", ""),
    ("pp 4 x ep 2", "pp 2 x rep 2 x shard 2 x ep 2", "muon", ""),
    ("cp 4 x ep 2", "pp 2 x cp 2 x ep 2", "muon", ""),
    # with towers, which are on the first stage, and of whose images each rank of a sequence has some
    ("pp 2, zbv", "ep 4", "adamw", "native"),
    ("pp 2 x ep 2", "ring cp 2 x shard 2", "adamw", "native"),
    ("ring cp 2 x shard 2", "pp 3", "muon", "native"),
    ("pp 2 x cp 2 x ep 2", "pp 2 x rep 2, interleaved", "adamw", "tiles"),
    ("ep 4", "pp 2 x cp 2 x ep 2", "adamw", "tiles"),
    ("pp 4 x ep 2", "ring, rep 2 x cp 4 x ep 2", "adamw", "native"),
]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    @cache
    def make(name: str, optim: str, towers: str) -> tuple[Path, Outcome]:
        """A run of this layout, and how it continues there."""
        run = tmp_path_factory.mktemp("written") / "run"
        return run, write(run, name, optim, towers)

    return make


@pytest.mark.parametrize(
    ("writer", "reader", "optim", "towers"),
    [
        pytest.param(*case, id=": ".join(filter(None, case)), marks=[] if case == QUICK else pytest.mark.slow)
        for case in CASES
    ],
)
def test_another_layout_resumes_with_the_same_state_and_exports_the_same_bytes(
    tmp_path, written, writer, reader, optim, towers
):
    run, expected = written(writer, optim, towers)
    found = resume(shutil.copytree(run, tmp_path / "on"), reader, optim, towers)
    assert differences(found, expected) == []
    if towers:
        assert found.next_step["images"] == expected.next_step["images"] > 0
        assert any(name.startswith("model.vision.") for name in found.state)
