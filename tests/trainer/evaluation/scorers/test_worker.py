"""Processes that answer: stray lines, and replies to another question."""

from __future__ import annotations

import pytest

from trainer.evaluation.scorers.worker import Worker


def test_what_a_library_prints_is_no_reply() -> None:
    worker = Worker("tests.trainer.evaluation.scorers.chatty")
    try:
        assert [worker.ask(number) for number in range(3)] == [0, 1, 2]
        worker._asked += 1  # as if a reply were still to come
        assert worker._process is not None
        assert worker._process.stdin is not None
        print("[1, 0]", file=worker._process.stdin, flush=True)
        worker._asked += 1
        with pytest.raises(ValueError, match="chatty"):
            worker.ask(4)
        assert worker._process is None
    finally:
        worker.close()
