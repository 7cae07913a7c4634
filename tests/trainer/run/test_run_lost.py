"""The message and exit code of a run when one of its ranks fails or hangs."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

import pytest

from tests.distributed.doomed import Ended, play_all, run_ranks
from tests.printed import error_line
from tests.trainer.tiny_run import tiny_config
from trainer.checkpoint.store import CheckpointStore
from trainer.data.errors import DataError
from trainer.data.text import TextStream
from trainer.run.process import train

pytestmark = pytest.mark.timeout(600)  # all cases are played before the first test
TIMEOUT_S = 6.0
SLACK_S = 15.0
FAULTS = ["data", "bug", "asleep", "writer"]


def run(folder: Path, fault: str) -> int:
    cfg = tiny_config(folder / "run", steps=6, micro_batch=1)
    cfg.parallel.timeout_s = TIMEOUT_S
    genuine = TextStream.batch

    def batch(self: TextStream, first_sample: int, count: int):
        if first_sample == 2 * 4 + 1:  # rank 1's first micro-batch of step 3
            (folder / "ready").touch()
            if fault == "data":
                raise DataError("shard 7 is damaged", where="shard 7")
            if fault == "bug":
                raise KeyError("shard")
            time.sleep(3600)
        return genuine(self, first_sample, count)

    def own_files(*_):
        (folder / "ready").touch()
        time.sleep(3600)

    if os.environ["RANK"] == "1":
        if fault == "writer":
            CheckpointStore._own_files = own_files
        else:
            TextStream.batch = batch
    return train(cfg)


@pytest.fixture(scope="module")
def ended(tmp_path_factory) -> dict[str, Ended]:
    base = tmp_path_factory.mktemp("lost")

    def play(fault: str) -> Ended:
        folder = base / fault
        return run_ranks(folder, 2, run, folder, fault, limit_s=TIMEOUT_S + SLACK_S)

    return play_all(FAULTS, play)


def test_the_error_of_one_rank_is_the_only_line(ended):
    ending = ended["data"]
    assert ending.codes == [1, 1], ending
    error_line(ending.output, "shard 7")


def test_a_bug_on_one_rank_keeps_its_traceback(ended):
    ending = ended["bug"]
    assert ending.codes == [1, 1], ending
    assert ending.output.count("Traceback (most recent call last)") == 1, ending
    assert "in _next_batches" in ending.output
    assert ending.output.rstrip().endswith("KeyError: 'shard'")


def test_a_rank_that_hangs_in_its_data(ended):
    ending = ended["asleep"]
    assert ending.codes == [1, 1], ending
    line = error_line(ending.output, "rank 1 ", "step 3: data", "parallel.timeout_s=6")
    assert re.search(r"\bhost \S+, pid \d+\b.*\b[6-9] s\b.*\btrainer/run/loop\.py:\d+\b", line), line


def test_a_checkpoint_writer_that_hangs(ended):
    """All main threads wait for their own writers, which wait for rank 1's."""
    ending = ended["writer"]
    assert ending.codes == [1, 1], ending
    line = error_line(ending.output, "rank 1 ", "last checkpoint")
    assert re.search(r"\b[6-9] s\b.*\btrainer/\S+\.py:\d+\b", line), line
