"""Ranks that die, hang or never come. Each is a process of its own, forked like the pool's workers from one with torch.

Nothing ends them from outside, as a launcher would: what ends is what the ranks end themselves. When they do is
looked at in seconds, so few runs go at a time.
"""

from __future__ import annotations

import multiprocessing as mp
import os
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.distributed.pool import PRELOAD, STARTING_S

AT_A_TIME = 3


@dataclass(frozen=True)
class Ended:
    """codes: of the ranks that ran, in their order; negative for a signal, None for one that had to be killed here."""

    codes: list[int | None]
    seconds: float  # from the moment at which `ready` was there
    errors: list[str]  # the lines of all ranks that start with "error:"
    output: str


def run_ranks(
    folder: Path, size: int, function: Callable[..., int], *arguments: Any, absent: Collection[int] = (), limit_s: float
) -> Ended:
    """Run `function(*arguments)`, which returns an exit code, on `size` ranks of one machine until all have ended.

    folder: where a rank writes the file `ready`, from which on `limit_s` seconds are counted. A module-level function.
    """
    import torch.distributed as dist

    folder.mkdir(exist_ok=True)
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # as a launcher does
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    ranks = [rank for rank in range(size) if rank not in absent]
    task = (store.port, len(ranks), function, arguments)
    processes = [context.Process(target=_rank, args=(folder, rank, size, *task), daemon=True) for rank in ranks]
    start, began = time.monotonic(), None
    try:
        for process in processes:
            process.start()
        while any(process.is_alive() for process in processes):
            now = time.monotonic()
            if began is None and (folder / "ready").exists():
                began = now
            if now - (began or start) > (limit_s if began else STARTING_S):
                break
            time.sleep(0.02)
        seconds, codes = time.monotonic() - (began or start), [process.exitcode for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.join()
    output = "".join((folder / f"output-{rank}").read_text() for rank in ranks)
    return Ended(codes, seconds, [line for line in output.splitlines() if line.startswith("error:")], output)


def play_all(faults: Sequence[str], play: Callable[[str], Ended]) -> dict[str, Ended]:
    """Run `play` for each fault and return how each run ended. They mostly wait, so several run at a time."""
    with ThreadPoolExecutor(AT_A_TIME) as threads:
        return dict(zip(faults, threads.map(play, faults), strict=True))


def _rank(
    folder: Path, rank: int, size: int, port: int, running: int, function: Callable[..., int], arguments: Any
) -> None:
    file = os.open(folder / f"output-{rank}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        GROUP_RANK="0",
        WORLD_SIZE=str(size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        TORCHELASTIC_USE_AGENT_STORE="True",
    )
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    # The modules are imported now; ranks whose timeout is a few seconds start together even on a busy machine.
    store = dist.TCPStore("127.0.0.1", port, is_master=False, wait_for_workers=False)
    store.add("imported", 1)
    while store.add("imported", 0) < running:
        time.sleep(0.01)
    raise SystemExit(function(*arguments))
