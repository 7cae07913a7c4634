"""One process of a run: join the other ranks, take the run directory, train, and end with the right exit code."""

from __future__ import annotations

import contextlib
import logging
import shutil
import socket
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from parallel.environment import ranks_of_machine, read_environment
from parallel.errors import Fault, UserError
from parallel.pipeline import private as pipeline
from parallel.world import World, start_world
from parallel.zero import nvme
from trainer import parallelize, precision
from trainer.config import coerce
from trainer.config.checks import fit
from trainer.config.errors import ConfigError, report
from trainer.config.keys import Config
from trainer.config.memory import rank_memory
from trainer.kernels import choose as kernels
from trainer.metrics import host
from trainer.model.frozen import blocks_gemm
from trainer.run import directory
from trainer.run.build import build
from trainer.run.directory import RunDir
from trainer.run.host_memory import prepare_host_memory
from trainer.run.loop import Trainer
from trainer.run.policy.trainer import PolicyTrainer
from trainer.storage.scratch import remove_abandoned


def train(cfg: Config, run: RunDir | None = None) -> int:
    """Train `cfg` to its last step, on every rank of a torchrun launch or alone.

    run: what `directory.choose` returned on rank 0; None chooses there. Other ranks get rank 0's.
    Returns the exit code: 0 done; 2 for an error that the user can fix, found before the first step, such as missing
    data or a damaged checkpoint; 1 any other failure; both reported on stderr; 130 or 143 stopped by SIGINT or SIGTERM
    after saving.
    """
    world, started = World(), False
    taken: RunDir | None = None  # held by this process
    resources = contextlib.ExitStack()  # the run directory's lock, the handler of log lines
    try:
        if unfit := _unavailable_pipeline(cfg) or _too_large_for_any(cfg) or _unavailable_nvme(cfg):
            return report(unfit) if read_environment().local_rank == 0 else 2
        world = start_world(cfg.train.device, cfg.parallel.timeout_s)
        world.watch.at("start: configuration")
        if world.rank == 0 and cfg.logging.console != "off":
            resources.enter_context(_log_to_stdout())
        if world.device.type == "cpu":
            prepare_host_memory()
        world.agree("configuration", coerce.digest(coerce.to_dict(cfg)))
        _check_hardware(cfg, world)
        run = _take_directory(run, cfg, world, resources)
        if run.status == "finished":
            if world.rank == 0:
                print(directory.finished_line(run, cfg))
            return 0
        taken = run if world.rank == 0 else None
        parts = build(cfg, run, world)
        resources.callback(parts.engine.close)
        kind = PolicyTrainer if cfg.train.objective == "policy" else Trainer
        trainer = kind(cfg, run, world, parts)
        started = True
        return trainer.run()
    except ConfigError as error:  # the same on every rank
        if taken is not None and not started:
            directory.withdraw(taken)
        return report(error) if world.rank == 0 else 2
    except UserError as error:
        if taken is not None and not started:
            directory.withdraw(taken)
        return report(error, started=started) if world.watch.report_failure(error) else 1 if started else 2
    except Exception as error:
        if world.watch.report_failure(error):
            raise
        return 1
    except KeyboardInterrupt:
        if world.rank == 0:
            print("interrupted before the first step; there is nothing to save", file=sys.stderr)
        return 130
    finally:
        world.close()
        resources.close()


@contextlib.contextmanager
def _log_to_stdout() -> Iterator[None]:
    """Print what `trainer` and `parallel` log at INFO and above, a line each, among the lines of the console."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
    loggers = [logging.getLogger(name) for name in ("trainer", "parallel")]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)


def _check_hardware(cfg: Config, world: World) -> None:
    """Raises `ConfigError` on every rank where the machine of any rank cannot do what `cfg` asks for."""
    found = [
        *_too_large(cfg, world),
        precision.unavailable(cfg.precision, world.device)
        or blocks_gemm.unavailable(cfg.lora, cfg.precision.experts, world.device),
        kernels.unavailable(cfg.train.kernels, cfg.precision.payload, world.device),
        parallelize.unavailable(cfg, world.device),
    ]
    for rank, (name, faults) in enumerate(world.gather((socket.gethostname(), [fault for fault in found if fault]))):
        if faults:
            place = f"rank {rank} (host {name}): " if world.size > 1 else ""
            raise ConfigError([replace(fault, text=place + fault.text) for fault in faults])


def _too_large_for_any(cfg: Config) -> ConfigError | None:
    """Return an error if the rank that needs the most memory does not fit into that of this process.

    It is found before any process group starts, and is the same on all machines with equal memory.
    """
    try:
        given = read_environment()
    except UserError:
        return None  # reported when the process group starts
    cuda = cfg.train.device != "cpu" and torch.cuda.is_available()
    device = torch.device("cuda", given.local_rank % max(1, torch.cuda.device_count())) if cuda else torch.device("cpu")
    available, place = _memory(cfg, device)
    fault = fit.too_large(cfg, given.world_size, available, place) if available else None
    return ConfigError([fault]) if fault else None


def _unavailable_pipeline(cfg: Config) -> ConfigError | None:
    """An error if this torch cannot run a pipeline, before there is any process group."""
    fault = pipeline.unavailable() if cfg.parallel.pp > 1 else None
    return ConfigError([fault]) if fault else None


def _unavailable_nvme(cfg: Config) -> ConfigError | None:
    """An error if this machine cannot keep the state on NVMe, before there is any process group."""
    if cfg.optim.offload != "nvme":
        return None
    try:
        world_size = read_environment().world_size
    except UserError:
        return None  # reported when the process group starts
    place = Path(cfg.optim.nvme_dir or "")
    fault = nvme.unavailable(place) or nvme.lock_fault(rank_memory(cfg, world_size).locked)
    if fault is None:
        remove_abandoned(place)
        fault = fit.too_large_to_store(cfg, world_size, ranks_of_machine(), shutil.disk_usage(place).free)
    return ConfigError([fault]) if fault else None


def _too_large(cfg: Config, world: World) -> list[Fault | None]:
    """Faults if this rank needs more memory than its GPU or its machine has; nothing is allocated yet."""
    available, place = _memory(cfg, world.device)
    found = [fit.too_large(cfg, world.size, available, place, world.rank)] if available else []
    if world.device.type == "cuda" and (of_host := host.memory()):
        found.append(fit.too_large_beside(cfg, world.size, ranks_of_machine(), of_host))
    return found


def _memory(cfg: Config, device: torch.device) -> tuple[int | None, str]:
    """Bytes that this process can use on `device`, None if unknown, and where they are."""
    if device.type == "cuda":
        size = torch.cuda.get_device_properties(device).total_memory
        if cfg.lora.target == "none":  # at least what is counted is needed, and much more may be
            return size, "this GPU"
        return int(size * (1 - fit.SPARE)), "this GPU, with a tenth to spare,"
    ranks = ranks_of_machine()
    of_host = host.memory()
    return of_host and of_host // ranks, f"the share of each of {ranks} rank(s) of this machine"


def _take_directory(run: RunDir | None, cfg: Config, world: World, resources: contextlib.ExitStack) -> RunDir:
    """Rank 0 locks and prepares the run directory; every rank returns it, or raises `ConfigError`."""
    faults: tuple[Fault, ...] = ()
    held: RunDir | None = None
    if world.rank == 0:
        try:
            run = run or directory.choose(cfg)
            if run.status != "finished":
                resources.enter_context(directory.hold(run.path))
                held = run
                directory.prepare(run, cfg)
        except ConfigError as error:
            faults = error.faults
            if held is not None:
                directory.withdraw(held)
    run, faults = world.broadcast((run, faults))
    if faults:
        raise ConfigError(faults)
    assert run is not None
    return run
