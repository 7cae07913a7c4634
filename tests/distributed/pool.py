"""Workers for tests that need several ranks: started once a test run, because eight fresh torch imports cost 20 s.

`on_ranks(2, function, *arguments)` runs a module-level function on that many workers with torchrun's environment set,
and returns what each rank returned; the function (or what it calls, such as `start_world`) joins the process group.
With `init=True` a gloo group is set up first. Sizes may differ from call to call; workers are added as needed.

Every call has a rendezvous store of its own, kept by this process on a port that the system chose, and every process
group of a call has its own corner of that store: no race for a port, and no address of an earlier group is ever read.
A call that fails or hangs ends the pool; the next call starts another.
"""

from __future__ import annotations

import atexit
import faulthandler
import gc
import itertools
import multiprocessing as mp
import os
import pickle
import signal
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from typing import IO, Any

# Imported once, by the server that the workers are forked from. None of them starts a thread.
PRELOAD = ["torch", "torch._dynamo", "torch.distributed.checkpoint", "torch.distributed.fsdp", "hydra", "datasets"]
STARTING_S = 120.0  # for imports on a busy machine; a call's own time runs from when all its workers have its function
GRACE_S = 2.0  # after one rank has failed the others most likely wait for it


@dataclass
class Worker:
    process: ForkServerProcess
    pipe: Connection
    stacks: IO[str]  # where the worker writes what it is doing when it is asked with SIGUSR1


@dataclass
class Failure:
    when: float
    rank: int
    text: str


_workers: list[Worker] = []


def on_ranks(
    size: int, function: Callable[..., Any], *arguments: Any, init: bool = False, timeout_s: float = 60.0
) -> list[Any]:
    """Return what `function(*arguments)` returned on each of `size` ranks, by rank. Everything travels pickled.

    Raises AssertionError with what failed in the order in which it failed, and with the stacks of ranks that hang.
    """
    import torch.distributed as dist

    task = pickle.dumps((function, arguments, init, timeout_s))
    if not all(worker.process.is_alive() for worker in _workers):
        stop()
    while len(_workers) < size:
        _workers.append(_start())
    workers = _workers[:size]
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    try:
        for rank, worker in enumerate(workers):
            worker.pipe.send((rank, size, store.port))
            worker.pipe.send_bytes(task)
        _collect(workers, STARTING_S)
        results = _collect(workers, timeout_s)
        for worker in workers:
            worker.pipe.send("tidy up")  # only now: no rank leaves a group that another still uses
        _collect(workers, timeout_s)
    except BaseException:  # Ctrl-C and pytest-timeout too
        stop()
        raise
    return results


@atexit.register
def stop() -> None:
    for worker in _workers:
        worker.process.kill()
        worker.process.join()
        worker.pipe.close()
        worker.stacks.close()
    _workers.clear()


def _collect(workers: list[Worker], timeout_s: float) -> list[Any]:
    """One answer of each worker. Raises AssertionError where one fails, dies or gives none in time."""
    values: list[Any] = [None] * len(workers)
    failures: list[Failure] = []
    waiting = {worker.pipe: rank for rank, worker in enumerate(workers)}
    deadline = time.monotonic() + timeout_s
    while waiting and (ready := wait(list(waiting), max(0.0, deadline - time.monotonic()))):
        for pipe in ready:
            rank = waiting.pop(pipe)
            try:
                when, text, values[rank] = pickle.loads(pipe.recv_bytes())
            except (EOFError, ConnectionError):
                workers[rank].process.join()
                when, text = time.monotonic(), f"the worker died, exit code {workers[rank].process.exitcode}"
            if text:
                failures.append(Failure(when, rank, text))
                deadline = min(deadline, time.monotonic() + GRACE_S)
    if not failures and not waiting:
        return values
    failures.sort(key=lambda failure: failure.when)
    for rank in waiting.values():
        text = "still waiting then" if failures else f"no answer in {timeout_s} s"
        failures.append(Failure(time.monotonic(), rank, f"{text}\n{_stacks(workers[rank])}"))
    raise AssertionError("\n".join(f"rank {failure.rank}: {failure.text}" for failure in failures))


def _stacks(worker: Worker) -> str:
    os.kill(worker.process.pid, signal.SIGUSR1)
    for _ in range(20):
        time.sleep(0.05)
        worker.stacks.seek(0)
        if text := worker.stacks.read():
            return text
    return "(not even its stack)"


def _start() -> Worker:
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    ours, theirs = context.Pipe()
    stacks = tempfile.NamedTemporaryFile("r", prefix="octavo-stacks-")  # noqa: SIM115  # closed by stop()
    process = context.Process(target=_serve, args=(theirs, stacks.name), daemon=True)
    process.start()
    theirs.close()
    return Worker(process, ours, stacks)


def _serve(pipe: Connection, stacks: str) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    environment = dict(os.environ)
    file = open(stacks, "w")  # noqa: SIM115  # open as long as the process lives
    gc.freeze()  # the imports need not be looked through after every call
    faulthandler.register(signal.SIGUSR1, file=file, all_threads=True)
    while True:
        try:
            rank, size, port = pipe.recv()
        except (EOFError, ConnectionError):
            return
        os.environ.update(
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            WORLD_SIZE=str(size),
            LOCAL_WORLD_SIZE=str(size),
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(port),
            TORCHELASTIC_USE_AGENT_STORE="True",  # the store is there: rank 0 opens none
        )
        _give_each_group_its_own_keys()
        try:
            function, arguments, init, timeout_s = pickle.loads(pipe.recv_bytes())
            _answer(pipe)
            if init:
                dist.init_process_group("gloo", timeout=timedelta(seconds=timeout_s))
            _answer(pipe, value=function(*arguments))
        except BaseException:
            _answer(pipe, failure=traceback.format_exc())
            return
        pipe.recv()
        if dist.is_initialized():
            dist.destroy_process_group()
        _forget_groups()
        os.environ.clear()
        os.environ.update(environment)
        _answer(pipe)


def _forget_groups() -> None:
    """Let go of whatever still holds the groups of this call, so that their threads and sockets end.

    Such threads do not sleep once the other side has closed its sockets, and a run of all tests makes hundreds.
    """
    from torch.distributed.tensor import _redistribute
    from torch.distributed.tensor.debug import _clear_sharding_prop_cache

    # DTensor remembers shardings by mesh; the next call's mesh of the same shape would get this one's groups, too.
    _clear_sharding_prop_cache()
    _redistribute.clear_redistribute_planner_cache()
    _redistribute._gen_transform_infos.cache_clear()
    for _ in range(2):  # the first may free graphs of autograd that held more
        gc.collect()


def _answer(pipe: Connection, *, failure: str = "", value: Any = None) -> None:
    pipe.send_bytes(pickle.dumps((time.monotonic(), failure, value)))


def _give_each_group_its_own_keys() -> None:
    """Let every `init_process_group` of a call see only keys of its own.

    torch numbers its groups from 0 again after `destroy_process_group`. In a store that outlives the first group, the
    second would meet on the addresses that the first had left there.
    """
    from torch.distributed import PrefixStore
    from torch.distributed.rendezvous import _rendezvous_handlers as handlers

    genuine = getattr(handlers["env"], "genuine", handlers["env"])
    numbers = itertools.count()

    def numbered(*args: Any, **kwargs: Any) -> Iterator[tuple[PrefixStore, int, int]]:
        for store, rank, size in genuine(*args, **kwargs):
            yield PrefixStore(f"group-{next(numbers)}", store), rank, size

    numbered.genuine = genuine
    handlers["env"] = numbered
