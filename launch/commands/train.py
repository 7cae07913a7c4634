"""`octavo train`: compose once, then torchrun's own agent with `-m trainer --resolved FILE` on every rank."""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.config.compose import compose, to_yaml
from trainer.config.run_files import CONFIG_FILE
from trainer.run import directory as rundir

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

# torchrun's options about how the machines find each other, handed on as they are.
RENDEZVOUS = {
    "--node-rank": "number of this machine, from 0 (static rendezvous)",
    "--master-addr": "address of machine 0 (static rendezvous)",
    "--master-port": "free port of machine 0 (static rendezvous)",
    "--rdzv-backend": "torchrun's rendezvous back end, such as c10d",
    "--rdzv-endpoint": "HOST:PORT of the rendezvous",
    "--rdzv-id": "a name that all machines of the run give",
    "--rdzv-conf": "more settings of the rendezvous, as KEY=VALUE,...",
    "--local-addr": "address of this machine, if the right one is not found",
}
# Seconds that ranks get to end their step and save after a signal; torchrun's own 30 are too few for a large model.
TIME_TO_SAVE = "900"
STOPPED = (130, 143)  # a rank saved after SIGINT or SIGTERM and ended as asked


def train(
    overrides: Sequence[str],
    *,
    config_dirs: Sequence[str] = (),
    nproc_per_node: int = 1,
    nnodes: int = 1,
    rendezvous: Mapping[str, str],
) -> int:
    """Check everything that can be checked without torch, then run the ranks. Returns their exit code.

    Raises `ConfigError` before any process is started.
    """
    cfg = compose(overrides, config_dirs=config_dirs, world_size=nproc_per_node * nnodes)
    if nnodes == 1:  # else the directory is for the machine of rank 0 to judge
        run = rundir.choose(cfg)
        if run.status == "finished":
            print(rundir.finished_line(run, cfg))
            return 0
    with tempfile.TemporaryDirectory(prefix="octavo-") as folder:
        resolved = Path(folder, CONFIG_FILE)
        resolved.write_text(to_yaml(cfg), encoding="utf-8")
        places = [word for option, value in rendezvous.items() for word in (option, value)]
        if nnodes == 1 and not places:
            places = ["--standalone"]  # a free port: two runs on one machine do not meet
        if nproc_per_node > 1:
            # torchrun would take 1 thread a rank, which leaves most cores of a CPU machine idle
            os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // nproc_per_node)))
        sizes = ["--nnodes", str(nnodes), "--nproc-per-node", str(nproc_per_node)]
        logs = ["--log-dir", str(Path(folder, "logs"))]  # else torchrun leaves an empty one in the temporary folder
        return _torchrun([*sizes, *places, *logs, "-m", "trainer", "--resolved", str(resolved)])


def _torchrun(arguments: Sequence[str]) -> int:
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", TIME_TO_SAVE)
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    # The agent reports every exit code but 0 as a crash, and every signal; what needs saying is said below in one line.
    for name in ("torch.distributed.elastic", "torch.distributed.elastic.agent.server.api"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        run(parse_args(arguments))
    except ChildFailedError as failed:
        return _exit_code(failed)
    except SignalException as stopped:
        # Each rank leads a session of its own, so Ctrl-C in the terminal reaches this process alone. The agent has sent
        # the signal on and waited for the ranks to save.
        return 128 + int(stopped.sigval)
    return 0


def _exit_code(failed: ChildFailedError) -> int:
    """The exit code of the rank that failed first; 128 + the signal's number if a signal ended it."""
    failures = failed.failures
    codes = {failure.exitcode for failure in failures.values()}
    saved = codes & set(STOPPED)
    if saved and codes <= {*STOPPED, -signal.SIGTERM}:
        return max(saved)  # one rank was asked to stop, all saved, and the agent hurried the others at their exit

    def order(rank: int) -> tuple[bool, int, bool]:
        # The agent ends the other ranks by SIGTERM. Within a second, a rank that was killed came before one that then
        # missed it in a collective; of equals the agent lists the first one first.
        failure = failures[rank]
        return failure.exitcode in (-signal.SIGTERM, 128 + signal.SIGTERM), failure.timestamp, failure.exitcode > 0

    rank = min(failures, key=order)
    first, code = failures[rank], failures[rank].exitcode
    if code < 0:
        print(f"error: rank {rank} was ended by {first.signal_name()}", file=sys.stderr)
        return 128 - code
    if code != 2 and code not in STOPPED and len(failures) > 1:
        print(f"error: rank {rank} failed first, with exit code {code}", file=sys.stderr)
    return code
