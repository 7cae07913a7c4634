"""`torchrun -m trainer recipe=toy optim.lr=1e-3`: compose and check, then import torch and train.

Exit codes: 0 done, 2 a configuration or run directory that cannot be used, 130 and 143 stopped by SIGINT or SIGTERM
after saving, 1 everything else.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import sys
import time
from collections.abc import Sequence

from trainer.config.compose import compose, load, overview
from trainer.config.errors import ConfigError, report
from trainer.config.keys import Config
from trainer.run import directory as rundir

# Seconds. torchrun ends the other ranks as soon as one has failed; the rank that explains why must not be among them.
LET_THE_FIRST_RANK_SPEAK = 2.0


def main(argv: Sequence[str] | None = None) -> int:
    world_size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    try:
        options = _parse(sys.argv[1:] if argv is None else argv)
        cfg = _configuration(options, world_size)
        if rank == 0:
            run = rundir.choose(cfg)
            if run.status == "finished" and world_size == 1:
                print(rundir.finished_line(run, cfg))
                return 0
    except ConfigError as error:
        if int(os.environ.get("LOCAL_RANK", "0")) == 0:
            return report(error)
        time.sleep(LET_THE_FIRST_RANK_SPEAK)
        return 2
    except KeyboardInterrupt:
        return 130

    if options.resolved is not None:
        _end_with_the_launcher()
    from trainer.run.process import train  # imports torch: only now that the configuration holds

    return train(cfg)


def _end_with_the_launcher() -> None:
    """Have the kernel send SIGTERM when the launcher dies without a word (kill -9), so that this rank saves and ends.

    Linux only; elsewhere such a rank trains on alone.
    """
    set_parent_death_signal = 1  # PR_SET_PDEATHSIG of sys/prctl.h
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(set_parent_death_signal, signal.SIGTERM)


def _configuration(options: argparse.Namespace, world_size: int) -> Config:
    if options.resolved is None:
        return compose(options.overrides, config_dirs=options.config_dir, world_size=world_size)
    if options.overrides or options.config_dir:
        raise ConfigError(["--resolved FILE is a whole configuration; give no overrides and no --config-dir with it"])
    return load(options.resolved, world_size=world_size)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="torchrun -m trainer",
        description="Train. Overrides are recipe=NAME, GROUP=OPTION and KEY=VALUE, as in: recipe=toy optim.lr=1e-3",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=overview(argv) + "\n`octavo config recipe=toy` prints every key with its value.",
    )
    parser.add_argument("overrides", nargs="*", metavar="override")
    parser.add_argument("--config-dir", action="append", default=[], help="more recipes and options; may be repeated")
    parser.add_argument("--resolved", metavar="FILE", help="a resolved configuration, such as a run's config.yaml")
    return parser.parse_intermixed_args(argv)


if __name__ == "__main__":
    sys.exit(main())
