"""Processes that make files of one directory, and the one process that tells them which.

They are forked: what makes the tensors is closures over a source that is opened already, and a fork takes milliseconds
where a fresh interpreter spends seconds on importing torch. torch's threads do not live through a fork, so a worker
computes with one thread, as the workers of torch's own data loaders do; more workers are what more cores are for.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch

from trainer.storage.manifest import verify_file
from trainer.weights.hf_files import HuggingFaceError
from trainer.weights.hf_write import Shard, write_shard
from trainer.weights.upcycle.errors import UpcycleError


@dataclass(frozen=True)
class Task:
    """A file to be made, or with `facts` one that was finished earlier: to be verified, and made again if it is not."""

    shard: Shard
    facts: dict[str, Any] | None


@dataclass(frozen=True)
class Made:
    """Some bytes of tensors are written, or were there already."""

    nbytes: int
    kept: bool = False


@dataclass(frozen=True)
class Finished:
    """A file is on disk."""

    shard: Shard
    facts: dict[str, Any]
    kept: bool
    fault: str | None  # what was wrong with the file that was there


def perform(tasks: Sequence[Task], directory: Path, count: int) -> Generator[Made | Finished]:
    """Have `count` processes do all tasks; what they report, as it comes.

    Raises HuggingFaceError, one line, where a file cannot be made or a worker dies. No worker outlives the iteration.
    """
    waiting = list(reversed(range(len(tasks))))
    with ExitStack() as stack:
        workers: dict[Connection, tuple[multiprocessing.process.BaseProcess, int]] = {}
        for _ in range(min(count, len(tasks))):
            process, connection = stack.enter_context(_worker(tasks, directory, list(workers)))
            number = waiting.pop()
            connection.send(number)
            workers[connection] = process, number
        while workers:
            for ready in wait(list(workers)):
                assert isinstance(ready, Connection)
                process, number = workers[ready]
                try:
                    report = ready.recv()
                except (EOFError, ConnectionError):
                    raise _lost(process, tasks[number].shard) from None
                if isinstance(report, str):
                    raise HuggingFaceError(report)
                if isinstance(report, tuple):
                    facts, kept, fault = report
                    if waiting:
                        workers[ready] = process, waiting.pop()
                        ready.send(workers[ready][1])
                    else:
                        del workers[ready]
                    yield Finished(tasks[number].shard, facts, kept, fault)
                else:
                    yield report


@contextmanager
def _worker(
    tasks: Sequence[Task], directory: Path, others: Sequence[Connection]
) -> Iterator[tuple[multiprocessing.process.BaseProcess, Connection]]:
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    arguments = (tasks, directory, there, [*others, here], os.getpid())
    process = context.Process(target=_serve, args=arguments, daemon=True)
    process.start()
    there.close()
    try:
        yield process, here
    finally:
        process.kill()  # at an end that is no good one there is nothing to wait for: files in the making do not count
        process.join()
        here.close()


def _serve(
    tasks: Sequence[Task], directory: Path, connection: Connection, others: Sequence[Connection], parent: int
) -> None:
    """A worker's life."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's Ctrl-C is the parent's to answer
    for other in others:  # else nobody would see that the parent is gone
        other.close()
    torch.set_num_threads(1)

    def report(nbytes: int) -> None:
        if os.getppid() != parent:
            os._exit(1)
        connection.send(Made(nbytes))

    while True:
        try:
            task = tasks[connection.recv()]
        except (EOFError, ConnectionError):  # the parent is gone, the latter with a report of this worker unread
            return
        try:
            connection.send(_outcome(task, directory, connection, report))
        except ConnectionError:
            return


def _outcome(
    task: Task, directory: Path, connection: Connection, report: Callable[[int], None]
) -> tuple[dict[str, Any], bool, str | None] | str:
    """What `_do` returns, or one line where it cannot. Raises ConnectionError where the parent is gone."""
    try:
        return _do(task, directory, connection, report)
    except ConnectionError:
        raise
    except (HuggingFaceError, UpcycleError) as error:
        return str(error)
    except MemoryError:
        return f"{directory / task.shard.name}: out of memory; use fewer --workers"
    except OSError as error:
        return f"{directory / task.shard.name} cannot be written: {error.strerror or error}"


def _do(
    task: Task, directory: Path, connection: Connection, report: Callable[[int], None]
) -> tuple[dict[str, Any], bool, str | None]:
    fault = None
    if task.facts is not None:
        fault = verify_file(directory, task.shard.name, task.facts)
        if fault is None:
            connection.send(Made(task.shard.nbytes, kept=True))
            return task.facts, True, None
    return write_shard(directory / task.shard.name, task.shard, report), False, fault


def _lost(process: multiprocessing.process.BaseProcess, shard: Shard) -> HuggingFaceError:
    process.join()
    code = process.exitcode or 0
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    hint = " (out of memory? use fewer --workers)" if code == -signal.SIGKILL else ""
    return HuggingFaceError(f"a worker {how} while it made {shard.name}{hint}")
