"""Workers for tests that need a process group: started once a test run, because eight fresh torch imports cost seconds.

`on_ranks(2, function, *arguments)` runs a module-level function on that many workers with torchrun's environment set
(a port of its own each time) and returns what each rank returned. A test that fails or hangs ends the pool; the next
one starts another.
"""

from __future__ import annotations

import atexit
import multiprocessing as mp
import os
import socket
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

_workers: list[tuple[mp.process.BaseProcess, Connection]] = []


def on_ranks(size: int, function: Callable[..., Any], *arguments: Any, timeout_s: float = 60.0) -> list[Any]:
    """Results by rank. Raises AssertionError with the first failing rank's traceback."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    while len(_workers) < size:
        _workers.append(_start())
    for rank in range(size):
        _workers[rank][1].send((rank, size, port, function, arguments))
    results, failures = [], []
    for rank in range(size):
        pipe = _workers[rank][1]
        try:
            ok, value = pipe.recv() if pipe.poll(timeout_s) else (False, f"no answer in {timeout_s} s")
        except EOFError:
            ok, value = False, "the worker died"
        results.append(value)
        if not ok:
            failures.append(f"rank {rank}: {value}")
            timeout_s = 2.0  # the others most likely wait for this one
    if failures:
        stop()
        raise AssertionError("\n".join(failures))
    return results


@atexit.register
def stop() -> None:
    for process, pipe in _workers:
        pipe.close()
        process.kill()
        process.join()
    _workers.clear()


def _start() -> tuple[mp.process.BaseProcess, Connection]:
    context = mp.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs,), daemon=True)
    process.start()
    theirs.close()
    return process, ours


def _serve(pipe: Connection) -> None:
    import torch

    torch.set_num_threads(1)
    while True:
        try:
            rank, size, port, function, arguments = pipe.recv()
        except EOFError:
            return
        os.environ.update(
            RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
        )
        try:
            pipe.send((True, function(*arguments)))
        except BaseException:
            pipe.send((False, traceback.format_exc()))
            return
