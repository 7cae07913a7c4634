"""`octavo train --dry-run`: what a command would train, hold, write and continue. Starts and writes nothing."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from launch.arithmetic import arithmetic
from parallel.errors import Fault, UserError
from parallel.zero.nvme import directory_fault
from trainer.chat.errors import ChatError
from trainer.chat.records import chat_files
from trainer.config.checks.optim import doubtful
from trainer.config.checks.unused import without_effect
from trainer.config.errors import print_warning, report
from trainer.config.keys import Config
from trainer.config.memory import NUMBER, checkpoint_bytes, gigabytes, host_memory, largest_memory
from trainer.config.ranks import map_ranks, most_windows
from trainer.config.run_files import newest_manifests
from trainer.data.errors import DataError
from trainer.data.shards import files as shard_files
from trainer.metrics import host
from trainer.run.directory import LOCK_FILE, RunDir
from trainer.storage.lock import holder
from trainer.storage.manifest import CHECKPOINT, CorruptError


def dry_run(cfg: Config, run: RunDir, world_size: int, too_large: Fault | None) -> int:
    """Print the plan of `cfg` on `world_size` ranks in `run`, and what is wrong with the files that it would read.

    Returns 0, also where the command would be refused here or its data are elsewhere, as a plan for a cluster is made
    on a laptop; 2 where files that are here are not as they were written. too_large: the reason for a refusal.
    """
    checkpoint, faults, left_out = _files(cfg, run)
    for name, text in _plan(cfg, replace(run, step=checkpoint), world_size, too_large):
        print(f"{name:<14}{text}")
    unused = without_effect(cfg, map_ranks(cfg.parallel, cfg.model, world_size))
    for line in (*run.warnings, *doubtful(cfg.optim, cfg.train.steps), *unused, *left_out):
        print_warning(line)
    return report(UserError(faults), started=False) if faults else 0


def _files(cfg: Config, run: RunDir) -> tuple[int, list[Fault], list[str]]:
    """Check the sizes of the files that the run would read.

    Returns the step that it would continue after, faults, and warnings about files that it would do without."""
    warnings, faults = [], []
    if cfg.data.name == "mixture" and cfg.data.build == "none":
        elsewhere = []
        for name, source in cfg.data.sources.items():
            directory = Path(cfg.data.root, source.path)
            if not directory.exists():
                elsewhere.append(f"{name} ({directory})")
                continue
            found = [replace(one, text=f"data.sources.{name}: {one.text}") for one in _source_faults(directory)]
            if cfg.data.on_fault == "skip":
                warnings += [one.text for one in found]
            else:
                faults += found
        if elsewhere:
            some = f"{', '.join(elsewhere[:3])}{', ...' if len(elsewhere) > 3 else ''}"
            warnings.append(f"{len(elsewhere)} of {len(cfg.data.sources)} sources are not on this machine: {some}")
    if cfg.data.name == "chat" and cfg.data.build == "none":
        warnings += _chats_elsewhere(cfg)
    warnings += _elsewhere(cfg, run)
    damaged: list[Fault] = []
    for manifest in newest_manifests(run.path) if run.step and run.status == "resume" else ():
        damage = _checkpoint_damage(manifest.parent)
        if damage is None:
            warnings += [f"{one.text}; the run would continue from {manifest.parent}" for one in damaged]
            return int(manifest.parent.name.removeprefix("step-")), faults, warnings
        damaged.append(Fault(str(damage), str(damage.path), damage.value, "restore the file, or use another run.dir"))
    return run.step, faults + damaged, warnings


def _chats_elsewhere(cfg: Config) -> list[str]:
    """A line for each source of chats that has no file on this machine."""
    lines = []
    for name, source in cfg.data.chats.items():
        for path in filter(None, (source.path, source.heldout)):
            try:
                chat_files(path, Path(cfg.data.root))
            except ChatError as error:
                lines.append(f"data.chats.{name}: {error}")
    return lines


def _elsewhere(cfg: Config, run: RunDir) -> list[str]:
    """Directories and files of questions that the run would need and that are not on this machine, each in a line."""
    asked = cfg.data.questions if cfg.data.name == "questions" and cfg.data.build == "none" else {}
    needed = {
        "checkpoint.init_from": None if run.step else cfg.checkpoint.init_from,
        "rl.kl_reference": None if run.step else cfg.rl.kl_reference,
        **{
            f"data.questions.{name}.{key}": str(Path(cfg.data.root, path))
            for name, source in asked.items()
            for key, path in (("path", source.path), ("heldout", source.heldout))
            if path
        },
        "optim.nvme_dir": cfg.optim.nvme_dir if cfg.optim.offload == "nvme" else None,
    }
    return [f"{key}={path} is not on this machine" for key, path in needed.items() if path and not Path(path).exists()]


def _source_faults(directory: Path) -> list[Fault]:
    try:
        manifest = shard_files.read_manifest(directory)
    except DataError as error:
        return [*error.faults]
    shards = [*manifest["shards"], *manifest["heldout"]]
    return [fault for shard in shards if (fault := shard_files.size_fault(directory, shard)) is not None]


def _checkpoint_damage(path: Path) -> CorruptError | None:
    try:
        files = CHECKPOINT.read(path)["files"]
    except CorruptError as error:
        return error
    return next((damage for name in files if (damage := CHECKPOINT.check_size(path, name, files[name]))), None)


def _plan(cfg: Config, run: RunDir, world_size: int, too_large: Fault | None) -> Iterator[tuple[str, str]]:
    model = cfg.model
    yield "recipe", cfg.run.name
    yield "parameters", f"{model.num_params():,}, {model.active_params():,} active per token"
    for name in ("vision", "signals"):
        if (tower := getattr(model, name)) is not None:
            yield f"  {name}", f"{sum(math.prod(shape) for shape in tower.shapes()):,} in this tower"
    if frozen := [name for name, part in vars(cfg.optim.parts).items() if part.freeze]:
        yield "  frozen", " and ".join(frozen)
    axes = [f"{axis}={ranks}" for axis, ranks, _ in map_ranks(cfg.parallel, model, world_size).layout.rows()]
    yield "ranks", " ".join([f"{world_size:,}", *axes])
    yield "tokens", _tokens(cfg)
    yield "arithmetic", arithmetic(cfg)
    if phases := _phases(cfg):
        yield "phases", phases
    rank, held = largest_memory(cfg, world_size)
    whose = f"on rank {rank}, which needs the most" if world_size > 1 else "in total"
    roughly = "" if held.exact else "roughly "
    yield "memory", f"{roughly}{gigabytes(held.held)} {whose}, excluding activations"
    for name, size in (("weights", held.weights), ("gradients", held.gradients), ("optimizer", held.optimizer)):
        yield f"  {name}", gigabytes(size)
    if held.gathered:
        yield "  gathered", f"{gigabytes(held.gathered)} of whole weights, for a step"
    if held.accumulated:
        yield "  accumulated", f"{gigabytes(held.accumulated)} of whole gradients, until they are reduced"
    yield "  activations", f"at least {gigabytes(held.activations)} ({_inputs(cfg)})"
    if held.offloaded or held.moved:
        ranks = f"of {world_size} rank(s)" if world_size > 1 else "in all"
        rank, most = largest_memory(cfg, world_size, gpu=True)
        yield "  device", f"at least {gigabytes(most.device)} on rank {rank}, gathered weights included"
        here = f"; this machine has {gigabytes(has)}" if (has := host.memory()) else ""
        yield "  host", f"{gigabytes(host_memory(cfg, world_size, world_size))} {ranks}{here}"
        if held.stored:
            disk = Path(cfg.optim.nvme_dir or "")
            here = f", which has {gigabytes(shutil.disk_usage(disk).free)} free" if disk.exists() else ""
            stored = gigabytes(held.stored * world_size)
            yield "  NVMe", f"{stored} {ranks}, in optim.nvme_dir={cfg.optim.nvme_dir}{here}"
    place = next(place for place in (run.path.absolute(), *run.path.absolute().parents) if place.exists())
    free = f"{gigabytes(shutil.disk_usage(place).free)} are free"
    kept = f"the newest {cfg.checkpoint.keep} are kept"
    yield "checkpoints", f"{gigabytes(checkpoint_bytes(cfg))} each; {kept}; {free}"
    yield "directory", str(run.path)
    yield "would", _would(cfg, run, too_large)


def _inputs(cfg: Config) -> str:
    """The activations that are counted, and what towers keep besides them: as bounds where the configuration has bounds
    for images, which is one vector of a patch for every layer."""
    vision, data, size = cfg.model.vision, cfg.data, cfg.train.micro_batch
    if vision is None and cfg.model.signals is None:
        return f"the inputs of the layers, in a micro-batch of {size}"
    text = f"the inputs of the text model's layers, in a micro-batch of {size}; "
    if vision is None or data.name != "pairs":
        return text + "those of the towers' are not counted"
    if cfg.optim.parts.vision.freeze:
        return text + "a frozen tower keeps none"
    of_patch = vision.width * vision.num_layers * NUMBER[cfg.precision.linears]
    least, most = (
        gigabytes(size * pixels // vision.patch_size**2 * of_patch) for pixels in (data.min_pixels, data.max_pixels)
    )
    return f"{text}those of the image tower's are {least} to {most} more"


def _tokens(cfg: Config) -> str:
    train, length = cfg.train, cfg.data.seq_len
    per_step = most_windows(cfg) * length
    if train.objective != "policy":
        return f"{train.steps * per_step:,}: {train.steps:,} steps of {train.global_batch} x {length}"
    rollouts = f"{cfg.rl.group_size} rollouts for each of {train.global_batch} questions"
    return f"at most {train.steps * per_step:,}: {train.steps:,} steps of {rollouts}, each of at most {length:,}"


def _phases(cfg: Config) -> str:
    """The phases of the mixture with their first and last steps; those that the run does not reach say so."""
    per_step, first, shown = cfg.train.global_batch * cfg.data.seq_len, 0, []
    for number, (name, phase) in enumerate(cfg.data.phases.items(), 1):
        last = cfg.train.steps if number == len(cfg.data.phases) else (first + phase.tokens) // per_step
        if first // per_step >= cfg.train.steps:
            shown.append(f"{name} not reached")
        else:
            shown.append(f"{name} to step {min(last, cfg.train.steps):,}")
        first += phase.tokens
    return ", ".join(shown)


def _would(cfg: Config, run: RunDir, too_large: Fault | None) -> str:
    steps = cfg.train.steps
    owner = holder(run.path / LOCK_FILE)
    if owner is not None:
        return f"be refused: the directory is in use by {owner or 'another process'}"
    if run.status == "finished":
        return f"do nothing: step {run.step:,} is saved; a larger train.steps continues the run"
    if too_large is not None:
        needed = f"the {gigabytes(too_large.value)} needed"
        if cfg.optim.offload != "none" and too_large.where != "optim.offload":  # without a GPU all is in one memory
            needed += " on GPU and host together"
        return f"be refused on this machine, whose memory is smaller than {needed}"
    disk = Path(cfg.optim.nvme_dir or "")
    if cfg.optim.offload == "nvme" and disk.exists() and (fault := directory_fault(disk)) is not None:
        return f"be refused on this machine: {fault.text}"
    changed = f", with {'; '.join(run.changes)}" if run.changes else ""
    if run.status == "resume" and run.step:
        return f"resume after step {run.step:,}: {steps - run.step:,} steps remain{changed}"
    return f"start a new run{changed}"
