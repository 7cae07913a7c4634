"""`octavo train`: compose once, then run torchrun's own agent with `-m trainer --resolved FILE` on every rank."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from launch.configurations import compose_on
from launch.dry_run import dry_run
from launch.ranks import import_torchrun, run_ranks
from parallel.environment import LAST_PORT
from parallel.errors import Fault
from parallel.interrupts import cleaning_up_on_termination
from trainer.config.checks import fit
from trainer.config.command_line import Parser, as_typed, whole_number
from trainer.config.compose import to_yaml
from trainer.config.errors import ConfigError
from trainer.config.keys import Config
from trainer.config.run_files import CONFIG_FILE
from trainer.corpora.needed import refuse_missing_packages
from trainer.data.vocabulary import refuse_small_vocabulary
from trainer.metrics import host
from trainer.run import directory

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
GPU_DEVICES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")  # of CUDA, ROCm and Windows' Linux
WAIT_S = 10.0  # seconds after which a launcher says which machines it waits for
AGAIN = "the same command resumes from the newest checkpoint"
MEMORY = f"`octavo train --dry-run` prints what a run holds; with less, or with more memory, {AGAIN}"


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
    import_torchrun()
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
            return run_ranks([*launch, *logs, "-m", "trainer", *handed], AGAIN, MEMORY)


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
