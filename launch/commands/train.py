"""`octavo train`: compose once, then run torchrun's own agent with `-m trainer --resolved FILE` on every rank."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from launch.configurations import compose_on
from launch.dry_run import dry_run
from parallel.environment import LAST_PORT
from parallel.errors import Fault, UserError
from parallel.interrupts import cleaning_up_on_termination, exiting_on_interrupt
from trainer.config.checks import fit
from trainer.config.command_line import Parser, as_typed, whole_number
from trainer.config.compose import to_yaml
from trainer.config.errors import ConfigError, report
from trainer.config.keys import Config
from trainer.config.run_files import CONFIG_FILE
from trainer.corpora.needed import refuse_missing_packages
from trainer.data.vocabulary import refuse_small_vocabulary
from trainer.metrics import host
from trainer.run import directory

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

# torchrun's options about how the machines find each other, passed on as they are.
RENDEZVOUS = {
    "--node-rank": "index of this machine, starting at 0 (static rendezvous)",
    "--master-addr": "address of machine 0 (static rendezvous)",
    "--master-port": "a free port on machine 0 (static rendezvous)",
    "--rdzv-backend": "torchrun's rendezvous back end, such as c10d",
    "--rdzv-endpoint": "HOST:PORT of the rendezvous",
    "--rdzv-id": "rendezvous name; must be the same on every machine in the run",
    "--rdzv-conf": "extra rendezvous settings, as KEY=VALUE,...",
    "--local-addr": "address of this machine, if torchrun does not detect the right one",
}
NUMBERS = {"--node-rank": whole_number(0), "--master-port": whole_number(0, LAST_PORT)}
# Seconds that ranks get to finish their step and save after a signal; torchrun's own 30 are too few for a large model.
TIME_TO_SAVE = "900"
GPU_DEVICES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")  # of CUDA, ROCm and Windows' Linux
WAIT_S = 10.0  # seconds after which a launcher says which machines it waits for
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
    add(
        "--dry-run",
        action="store_true",
        help="print what the run would train, hold in memory and write, without starting it",
    )
    for option, what in RENDEZVOUS.items():
        add(option, metavar="X", help=what, type=as_typed(NUMBERS[option]) if option in NUMBERS else str)
    options = parser.read(dashed)
    machines, ranks = options.nnodes, options.nproc_per_node
    given = {option: vars(options)[option[2:].replace("-", "_")] for option in RENDEZVOUS}
    rendezvous = [word for option, value in given.items() if value is not None for word in (option, value)]
    if machines == 1 and not rendezvous:
        rendezvous = ["--standalone"]  # a free port: two runs on one machine do not meet
    option = "--nproc-per-node" if machines == 1 else "--nnodes x --nproc-per-node"
    cfg = compose_on(ranks * machines, option, options.overrides, options.config_dir)
    refuse_small_vocabulary(cfg)
    too_large = _too_large_for_host(cfg, ranks) if machines == 1 else None
    if not options.dry_run:
        refuse_missing_packages(cfg.data)
    else:
        return partial(dry_run, cfg, directory.choose(cfg), ranks * machines, too_large)
    if too_large is not None:
        raise ConfigError([too_large])
    # With several machines only that of rank 0 can choose, and no machine knows yet whether it is that one.
    run = directory.choose(cfg) if machines == 1 else None
    if run is not None and run.status == "finished":
        line = directory.finished_line(run, cfg)
        return lambda: print(line) or 0
    if run is not None:
        directory.must_be_free(run.path)
        run = replace(run, command=[*_program(), "train", *words])
    sizes = ["--nnodes", str(machines), "--nproc-per-node", str(ranks)]
    waits_for = _missing_machines(machines, given) if machines > 1 else None
    return partial(_train, cfg, run, ranks, [*sizes, *rendezvous], waits_for)


def _program() -> list[str]:
    """The words that start this program, as they can be typed again."""
    started = Path(sys.argv[0])
    if started.name == "cli.py":
        return ["python", "-m", "launch.cli"]
    found = shutil.which(started.name)
    on_path = found is not None and started.exists() and os.path.samefile(found, started)
    return [started.name if on_path else str(started)]


def _too_large_for_host(cfg: Config, ranks: int) -> Fault | None:
    """A model that is too large for a machine without GPUs, or what one with GPUs keeps beside them. Every rank checks
    the same; here no torch is needed."""
    gpus = [device for device in GPU_DEVICES if Path(device).exists()]
    available = host.memory()
    if gpus and cfg.train.device != "cpu":
        return fit.too_large_beside(cfg, ranks, ranks, available) if available else None
    if not available:
        return None
    place = f"the share of each of {ranks} rank(s) of this machine"
    return fit.too_large(cfg, ranks, available // ranks, place)


def _missing_machines(machines: int, given: Mapping[str, str | None]) -> str:
    """The machines that this launcher waits for, and what to type on them."""
    others = f"waiting for {machines - 1} other machine(s), as --nnodes is {machines}"
    if given["--rdzv-endpoint"] is not None:
        return f"{others}: run the same command there; all meet at --rdzv-endpoint {given['--rdzv-endpoint']}"
    if given["--rdzv-backend"] not in (None, "static"):
        return f"{others}: give all of them --rdzv-endpoint HOST:PORT, which one of them can be reached at"
    node, port = given["--node-rank"] or "0", given["--master-port"] or "29500"
    address = given["--master-addr"]
    if node.isdecimal() and int(node) > 0:
        return f"{others}: machine 0 must run the same command with --node-rank 0, at {address or '127.0.0.1'}:{port}"
    where = f"--master-addr {address or 'ADDRESS-OF-THIS-MACHINE'} --master-port {port}"
    here = "" if address else f"; this machine needs that --master-addr as well, or others cannot reach {port} on it"
    return f"{others}: run the same command there with --node-rank 1 (2, ...) {where}{here}"


def _train(cfg: Config, run: directory.RunDir | None, ranks: int, launch: Sequence[str], waits_for: str | None) -> int:
    """Hand the configuration and the run directory to the ranks in files, and return their exit code."""
    _import_torchrun()
    with cleaning_up_on_termination(), tempfile.TemporaryDirectory(prefix="octavo-") as folder:
        resolved = Path(folder, CONFIG_FILE)
        resolved.write_text(to_yaml(cfg), encoding="utf-8")
        handed = ["--resolved", str(resolved)]
        if run is not None:
            chosen = Path(folder, "run.json")
            chosen.write_text(json.dumps(asdict(run), default=str), encoding="utf-8")
            handed += ["--run-directory", str(chosen)]
        if ranks > 1:
            # torchrun would take 1 thread a rank, which leaves most cores of a CPU machine idle
            os.environ.setdefault("OMP_NUM_THREADS", str(max(1, int(host.cores() / ranks))))
        if sys.stderr.isatty() and cfg.logging.console != "off":  # ranks import torch before they print anything
            place = f" in {run.path}" if run is not None else ""
            print(f"starting {ranks} rank(s){place} ...", file=sys.stderr, flush=True)
        logs = ["--log-dir", str(Path(folder, "logs"))]  # else torchrun leaves an empty one in the temporary folder
        with _say_while_waiting(waits_for, Path(folder, "logs")):
            return _torchrun([*launch, *logs, "-m", "trainer", *handed])


@contextmanager
def _say_while_waiting(waits_for: str | None, logs: Path) -> Iterator[None]:
    """Print `waits_for` if no rank has been started within `WAIT_S`. logs: the agent's, made with the first rank."""

    def say() -> None:
        if not any(logs.glob("*/attempt_*")):
            print(waits_for, file=sys.stderr, flush=True)

    timer = threading.Timer(WAIT_S, say)
    timer.daemon = True
    if waits_for is not None:
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _import_torchrun() -> None:
    """Import what `_torchrun` needs, which takes seconds, while there is no temporary directory to leave behind."""
    with exiting_on_interrupt():
        import torch.distributed.run  # noqa: F401


def _torchrun(arguments: Sequence[str]) -> int:
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
        return _exit_code(failed)
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
        again = "the same command resumes from the newest checkpoint"
        if code == -signal.SIGKILL:
            text = "was killed by SIGKILL, which is how the system frees memory"
            remedy = f"`octavo train --dry-run` prints what a run holds; with less, or with more memory, {again}"
        else:
            text, remedy = f"was killed by {first.signal_name()}", again
        report(UserError(f"rank {rank} {text}; {remedy}", where=f"rank {rank}", value=code, allowed=remedy))
        return 128 - code
    if code != 2 and code not in STOPPED and len(failures) > 1:
        report(UserError(f"rank {rank} failed first, with exit code {code}", where=f"rank {rank}", value=code))
    return code
