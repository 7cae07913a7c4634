"""`octavo train`: compose once, then run torchrun's own agent with `-m trainer --resolved FILE` on every rank."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from parallel.errors import UserError
from trainer.config.command_line import Parser, whole_number
from trainer.config.compose import compose, to_yaml
from trainer.config.errors import report
from trainer.config.keys import Config
from trainer.config.run_files import CONFIG_FILE
from trainer.run import directory

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

# torchrun's options about how the machines find each other, passed on as they are.
RENDEZVOUS = {
    "--node-rank": "index of this machine, starting at 0 (static rendezvous)",
    "--master-addr": "address of machine 0 (static rendezvous)",
    "--master-port": "a free port on machine 0 (static rendezvous)",
    "--rdzv-backend": "rendezvous back end of torchrun, such as c10d",
    "--rdzv-endpoint": "HOST:PORT of the rendezvous",
    "--rdzv-id": "rendezvous name; must be the same on every machine in the run",
    "--rdzv-conf": "extra rendezvous settings, as KEY=VALUE,...",
    "--local-addr": "address of this machine, if torchrun does not detect the right one",
}
# Seconds that ranks get to finish their step and save after a signal; torchrun's own 30 are too few for a large model.
TIME_TO_SAVE = "900"
STOPPED = (130, 143)  # a rank saved after SIGINT or SIGTERM and exited as asked


def prepare(parser: Parser, words: Sequence[str]) -> Callable[[], int]:
    """Raises `CommandError` and `ConfigError`, also for a run directory that cannot be used."""
    # torchrun also takes its options with underscores
    dashed = [re.sub(r"^--[^=]+", lambda name: name[0].replace("_", "-"), word) for word in words]
    parser.add_overrides(dashed)
    add = parser.add_argument
    add("--nproc-per-node", type=whole_number(1), default=1, metavar="N", help="processes on this machine (default: 1)")
    add(
        "--nnodes",
        type=whole_number(1),
        default=1,
        metavar="N",
        help="number of machines; run the command on each (default: 1)",
    )
    for option, what in RENDEZVOUS.items():
        add(option, metavar="X", help=what)
    options = parser.read(dashed)
    machines, ranks = options.nnodes, options.nproc_per_node
    given = {option: vars(options)[option[2:].replace("-", "_")] for option in RENDEZVOUS}
    rendezvous = [word for option, value in given.items() if value is not None for word in (option, value)]
    if machines == 1 and not rendezvous:
        rendezvous = ["--standalone"]  # a free port: two runs on one machine do not meet
    cfg = compose(options.overrides, config_dirs=options.config_dir, world_size=ranks * machines)
    # With several machines only that of rank 0 can choose, and no machine knows yet whether it is that one.
    run = directory.choose(cfg) if machines == 1 else None
    if run is not None and run.status == "finished":
        line = directory.finished_line(run, cfg)
        return lambda: print(line) or 0
    sizes = ["--nnodes", str(machines), "--nproc-per-node", str(ranks)]
    return partial(_train, cfg, run, ranks, [*sizes, *rendezvous])


def _train(cfg: Config, run: directory.RunDir | None, ranks: int, launch: Sequence[str]) -> int:
    """Hand the configuration and the run directory to the ranks in files, and return their exit code."""
    with tempfile.TemporaryDirectory(prefix="octavo-") as folder:
        resolved = Path(folder, CONFIG_FILE)
        resolved.write_text(to_yaml(cfg), encoding="utf-8")
        handed = ["--resolved", str(resolved)]
        if run is not None:
            chosen = Path(folder, "run.json")
            chosen.write_text(json.dumps(asdict(run), default=str), encoding="utf-8")
            handed += ["--run-directory", str(chosen)]
        if ranks > 1:
            # torchrun would take 1 thread a rank, which leaves most cores of a CPU machine idle
            os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // ranks)))
        logs = ["--log-dir", str(Path(folder, "logs"))]  # else torchrun leaves an empty one in the temporary folder
        return _torchrun([*launch, *logs, "-m", "trainer", *handed])


def _torchrun(arguments: Sequence[str]) -> int:
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", TIME_TO_SAVE)
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    # The agent logs every exit code but 0 as a crash, and every signal; what matters is printed below, in one line.
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
        report(UserError(f"rank {rank} was killed by {first.signal_name()}", where=f"rank {rank}", value=code))
        return 128 - code
    if code != 2 and code not in STOPPED and len(failures) > 1:
        report(UserError(f"rank {rank} failed first, with exit code {code}", where=f"rank {rank}", value=code))
    return code
