"""Ranks of this machine, started by torchrun's own agent."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from parallel.errors import UserError
from parallel.interrupts import cleaning_up_on_termination, exiting_on_interrupt
from trainer.config.errors import report

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

# Seconds that ranks get to finish their step and save after a signal; torchrun's own 30 are too few for a large model.
TIME_TO_SAVE = "900"
STOPPED = (130, 143)  # a rank saved after SIGINT or SIGTERM and exited as asked


def run_on_ranks(ranks: int, words: Sequence[str], again: str, memory: str) -> int:
    """Run a command of `octavo` on ranks of this machine. The rest is as of `run_ranks`.

    words: of the command. They go through a file: torchrun would take some for its own options, or abbreviations of
    them.
    """
    import_torchrun()
    with cleaning_up_on_termination(), tempfile.TemporaryDirectory(prefix="octavo-") as folder:
        file = Path(folder, "words.json")
        file.write_text(json.dumps([*words]), encoding="utf-8")
        launch = ["--standalone", "--nproc-per-node", str(ranks), "--log-dir", str(Path(folder, "logs"))]
        return run_ranks([*launch, "-m", "launch.ranks", str(file)], again, memory)


def import_torchrun() -> None:
    """Import what `run_ranks` needs, which takes seconds, while there is no temporary directory to leave behind."""
    with exiting_on_interrupt():
        import torch.distributed.run  # noqa: F401


def run_ranks(arguments: Sequence[str], again: str, memory: str) -> int:
    """Start ranks by torchrun's agent, and wait for them. Returns the exit code of the one that failed first, or 0.

    arguments: of torchrun. again, memory: remedies for a rank that was killed, and for one that took too much memory.
    """
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", TIME_TO_SAVE)
    from torch.distributed import DistError
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError
    from torch.distributed.run import parse_args, run

    # The agent logs every exit code but 0 as a crash, and every signal; what matters is printed below, in one line.
    for name in ("torch.distributed.elastic", "torch.distributed.elastic.agent.server.api"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        run(parse_args(arguments))
    except ChildFailedError as failed:
        return exit_code(failed, again, memory)
    except SignalException as stopped:
        # Each rank leads a session of its own, so Ctrl-C in the terminal reaches this process alone. The agent has sent
        # the signal on and waited for the ranks to save.
        return 128 + int(stopped.sigval)
    except (RendezvousError, DistError) as error:
        reason = " ".join((str(error) or type(error).__name__).split())
        remedy = "the same --nnodes and rendezvous on every machine, at an address that all can reach"
        report(
            UserError(
                f"the machines of this run did not meet ({reason}); use {remedy}", where="--nnodes", allowed=remedy
            )
        )
        return 1
    return 0


def exit_code(failed: ChildFailedError, again: str, memory: str) -> int:
    """The exit code of the rank that failed first; 128 + the signal's number if a signal killed it."""
    failures = failed.failures
    codes = {failure.exitcode for failure in failures.values()}
    saved = codes & set(STOPPED)
    if saved and codes <= {*STOPPED, -signal.SIGTERM}:
        return max(saved)  # one rank was asked to stop, all saved, and the agent hurried the others at their exit

    def order(rank: int) -> tuple[bool, int, bool]:
        # The agent stops the other ranks by SIGTERM. Within a second, a rank that was killed came before one that then
        # missed it in a collective; of equals the agent lists the first one first.
        failure = failures[rank]
        return failure.exitcode in (-signal.SIGTERM, 128 + signal.SIGTERM), failure.timestamp, failure.exitcode > 0

    rank = min(failures, key=order)
    first, code = failures[rank], failures[rank].exitcode
    if code < 0:
        if code == -signal.SIGKILL:
            text = "was killed by SIGKILL, which is how the system frees memory"
            remedy = memory
        else:
            text, remedy = f"was killed by {first.signal_name()}", again
        report(UserError(f"rank {rank} {text}; {remedy}", where=f"rank {rank}", value=code, allowed=remedy))
        return 128 - code
    if code != 2 and code not in STOPPED and len(failures) > 1:
        report(UserError(f"rank {rank} failed first, with exit code {code}", where=f"rank {rank}", value=code))
    return code


if __name__ == "__main__":
    from launch.cli import main

    sys.exit(main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))
