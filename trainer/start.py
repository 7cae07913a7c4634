"""`torchrun -m trainer recipe=toy optim.lr=1e-3`: compose and check, then import torch and train.

Exit codes: 0 done, 2 an error that the user can fix, found before the first step (a configuration or run directory that
cannot be used, missing data or weights, a damaged checkpoint), 130 and 143 stopped by SIGINT or SIGTERM after saving,
1 everything else.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from parallel.environment import read_environment
from parallel.errors import UserError
from parallel.interrupts import exiting_on_interrupt
from trainer.config.command_line import Parser
from trainer.config.compose import compose, load
from trainer.config.errors import CommandError, report
from trainer.config.keys import Config
from trainer.corpora.needed import refuse_missing_packages
from trainer.data.vocabulary import refuse_small_vocabulary
from trainer.run import directory

# Seconds. torchrun stops the other ranks as soon as one has failed; the rank that prints the errors must not be among
# them.
TIME_TO_REPORT = 2.0


def main(argv: Sequence[str] | None = None) -> int:
    reports = os.environ.get("LOCAL_RANK", "0")  # one rank of each machine does
    try:
        given = read_environment()
        reports = str(given.local_rank)
        options = _read(sys.argv[1:] if argv is None else argv)
        if options.resolved is None:
            cfg = compose(options.overrides, config_dirs=options.config_dir, world_size=given.world_size)
            refuse_missing_packages(cfg.data)
        else:
            cfg = load(options.resolved, world_size=given.world_size)
        refuse_small_vocabulary(cfg)
        run = _run_directory(cfg, options.run_directory) if given.rank == 0 else None
        if run is not None and run.status == "finished" and given.world_size == 1:
            print(directory.finished_line(run, cfg))
            return 0
    except UserError as error:
        if reports == "0" or not reports.isdecimal():
            return report(error, started=False)
        time.sleep(TIME_TO_REPORT)
        return 2

    if options.resolved is not None:
        _stop_with_the_launcher()
    with exiting_on_interrupt():
        from trainer.run.process import train  # imports torch: only now that the configuration is checked

    return train(cfg, run)


def _run_directory(cfg: Config, chosen: str | None) -> directory.RunDir:
    """The run directory: the launcher's choice, read from the file `chosen`, or else the choice of this process."""
    if chosen is None:
        return directory.choose(cfg)
    try:
        fields = json.loads(Path(chosen).read_text(encoding="utf-8"))
        return directory.RunDir(**{**fields, "path": Path(fields["path"])})
    except (OSError, ValueError, TypeError, KeyError) as error:
        remedy = "remove the option, which is for `octavo train` alone"
        text = f"--run-directory {chosen} cannot be read ({getattr(error, 'strerror', None) or error}); {remedy}"
        raise CommandError(text, where="--run-directory", value=chosen, allowed=remedy) from None


def _stop_with_the_launcher() -> None:
    """Have the kernel send SIGTERM when the launcher is killed (kill -9), so that this rank saves and exits.

    Linux only; elsewhere such a rank trains on alone.
    """
    set_parent_death_signal = 1  # PR_SET_PDEATHSIG of sys/prctl.h
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(set_parent_death_signal, signal.SIGTERM)


def _read(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser("torchrun -m trainer", "Train one rank of a run; torchrun starts one such process per rank.")
    parser.add_overrides(argv)
    parser.add_argument(
        "--resolved", metavar="FILE", help="file with a resolved configuration, such as the config.yaml of a run"
    )
    parser.add_argument("--run-directory", metavar="FILE", help=argparse.SUPPRESS)  # between octavo train and its ranks
    options = parser.read(argv)
    if options.resolved is not None and (options.overrides or options.config_dir):
        remedy = "remove the overrides and --config-dir"
        raise CommandError(
            f"--resolved {options.resolved} is a complete configuration; {remedy}", where="--resolved", allowed=remedy
        )
    return options
