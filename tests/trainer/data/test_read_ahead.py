"""Reading ahead changes when windows are read, never what they are, whatever happens to the processes that read."""

from __future__ import annotations

import functools
import os
import signal
from collections.abc import Iterator

import numpy as np
import pytest

from trainer.data import read_ahead
from trainer.data.errors import DataError
from trainer.data.read_ahead import MAX_REPLACED, ReadAhead
from trainer.data.windows import Windows


class Counting:
    """Windows whose tokens are their sample number; says which process read it, and can be made to fail."""

    def __init__(self, poison: int = -1, unreadable: int = -1, home: int = 0) -> None:
        self.poison, self.unreadable, self.home = poison, unreadable, home

    def read(self, first_sample: int, count: int) -> Windows:
        if self.unreadable in range(first_sample, first_sample + count):
            raise DataError(f"sample {self.unreadable} cannot be read", where=f"sample {self.unreadable}")
        if first_sample == self.poison and os.getpid() != self.home:
            os.kill(os.getpid(), signal.SIGKILL)  # as the system does where memory runs out
        tokens = np.repeat(np.arange(first_sample, first_sample + count)[:, None], 5, axis=1)
        none = np.zeros(tokens.shape, bool)
        return Windows(tokens, none, none, (f"read by {os.getpid()}",))


def ahead(workers: int, **arguments: int) -> ReadAhead:
    open_reader = functools.partial(Counting, home=os.getpid(), **arguments)
    return ReadAhead(open_reader(), open_reader, workers)


@pytest.fixture
def reading() -> Iterator[list[ReadAhead]]:
    opened: list[ReadAhead] = []
    yield opened
    for each in opened:
        each.close()


@pytest.mark.parametrize("workers", [0, 3])
def test_windows_come_in_order_and_from_other_processes(reading, workers: int) -> None:
    reading.append(ahead(workers))
    asked = [*range(0, 60, 6), *range(500, 520, 2), 7]  # a rank's stride, then another one, then a jump
    readers = set()
    for first in asked:
        windows = reading[0].read(first, 3)
        assert windows.tokens_BL[:, 0].tolist() == [first, first + 1, first + 2]
        readers.add(windows.faults[0])
    assert len(readers) == 1 + workers


def test_a_killed_worker_is_replaced_and_no_window_lost(reading) -> None:
    reading.append(ahead(2, poison=24))
    for first in range(0, 48, 3):
        if first == 12:
            os.kill(reading[0]._processes[1].worker.pid, signal.SIGKILL)
        assert reading[0].read(first, 3).tokens_BL[:, 0].tolist() == [first, first + 1, first + 2]
    assert sum(worker._replaced for worker in reading[0]._processes) == 2
    workers = [process.worker for process in reading[0]._processes]
    assert all(worker._process.poll() is None for worker in workers)
    workers[0].connection.close()  # what the system does for a trainer that is killed
    assert workers[0]._process.wait(timeout=20) in (0, 1)  # idle, or with an answer


def read_and_kill(reader: ReadAhead) -> None:
    for first in range(0, 100, 2):
        reader.read(first, 2)
        for process in reader._processes:
            os.kill(process.worker.pid, signal.SIGKILL)
            process.worker._process.wait()


def test_workers_that_keep_dying_end_the_run_with_a_word(reading) -> None:
    reading.append(ahead(1))
    with pytest.raises(DataError) as error:
        read_and_kill(reading[0])
    assert (error.value.where, error.value.value, error.value.allowed) == ("data.workers", MAX_REPLACED + 1, (0,))
    assert "SIGKILL" in error.value.lines[0]
    assert reading[0]._processes[0]._replaced == MAX_REPLACED + 1


def test_deaths_long_ago_are_forgotten(reading, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read_ahead, "FORGIVEN_AFTER", 5)
    reading.append(ahead(1))
    first = 0
    for _ in range(MAX_REPLACED + 2):
        for _ in range(10):
            assert reading[0].read(first, 1).tokens_BL[0, 0] == first
            first += 1
        os.kill(reading[0]._processes[0].worker.pid, signal.SIGKILL)
        reading[0]._processes[0].worker._process.wait()


def test_what_cannot_be_read_is_reported_when_it_is_asked_for(reading) -> None:
    reading.append(ahead(1, unreadable=11))
    for first in (0, 2, 4, 6, 8):
        reading[0].read(first, 2)
    with pytest.raises(DataError) as error:
        reading[0].read(10, 2)
    assert error.value.where == "sample 11"
