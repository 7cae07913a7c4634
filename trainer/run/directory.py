"""The directory of a run: its name, and whether the run there is new, to be resumed, or finished. No torch here.

The default name holds the hash of everything that defines the result, so the same command resumes its own run and
another configuration gets another directory.
"""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from trainer.config import coerce
from trainer.config.compose import to_yaml
from trainer.config.errors import ConfigError
from trainer.config.keys import BEFORE, Config, config_hash
from trainer.config.run_files import (
    CHECKPOINTS,
    CONFIG_FILE,
    SOURCE,
    SOURCE_FACT,
    TOKENIZER_DIRECTORY,
    TOKENIZER_FACT,
    newest_manifests,
    read_run,
)
from trainer.config.say import few, show
from trainer.metrics.history import RECORD
from trainer.optim.schedule import jump
from trainer.storage.atomic import atomic_file, remove_unfinished
from trainer.storage.lock import FileLock, LockedError, holder
from trainer.storage.manifest import CHECKPOINT

LOCK_FILE = "run.lock"
GLANCE = 0.2  # seconds; `octavo runs` shares a lock for a moment to see whether it is held


@dataclass(frozen=True)
class RunDir:
    """The directory of a run and what is to be done in it: start, resume, or nothing more."""

    path: Path
    status: Literal["new", "resume", "finished"]
    step: int = 0  # of the newest complete checkpoint
    changes: list[str] = field(default_factory=list)  # `key: old -> new` of keys that may change on resume, with effect
    repaired: str | None = None  # a line about the configuration, where its file had to be replaced
    warnings: list[str] = field(default_factory=list)  # lines about what does not continue as it was
    command: list[str] = field(default_factory=list)  # the words that started the run, where `octavo train` did
    found: list[str] | None = None  # names that were in the directory of a new one; None where there was none


def choose(cfg: Config) -> RunDir:
    """The directory for `cfg`. Writes nothing; call it once for a run, on one rank.

    Raises `ConfigError` if the directory belongs to another configuration (naming the keys that differ), holds
    something else, or cannot be written.
    """
    path = Path(cfg.run.dir) if cfg.run.dir else Path("runs", f"{cfg.run.name}-{config_hash(cfg)[:8]}")
    if cfg.train.resume == "never":
        path = _next_free(path)
    try:
        run = _inspect(path, cfg)
    except OSError as error:
        raise _unwritable(path, error) from None
    if run.step == 0 and cfg.checkpoint.init_from is not None:
        _check_source(path / SOURCE, cfg.checkpoint.init_from)
    return run


def _inspect(path: Path, cfg: Config) -> RunDir:
    if not path.exists() or all(_left_by_a_failed_start(entry) for entry in path.iterdir()):
        _must_be_writable(path)
        found = [entry.name for entry in path.iterdir()] if path.exists() else None
        return RunDir(path, "new", found=found)
    stored, repaired = _stored(path)
    differing = _differences(cfg, stored, "fixed")
    if differing:
        advice = "Use the old values or another run.dir, or set train.resume=never to start a new run directory"
        listed = few(differing, f"`octavo config --diff {path} 'RECIPE and overrides'`")
        text = f"run.dir={path} has a different configuration: {listed}. {advice}"
        raise ConfigError(text, where="run.dir", value=str(path), allowed=differing)
    step = last_step(path)
    if step >= cfg.train.steps:
        return RunDir(path, "finished", step, repaired=repaired)
    _must_be_writable(path)
    return RunDir(path, "resume", step, _differences(cfg, stored, "named"), repaired, _jumps(path, cfg, stored, step))


def _jumps(path: Path, cfg: Config, stored: Mapping[str, Any], step: int) -> list[str]:
    """A line where another train.steps makes the learning rate jump, with the checkpoint before which it would not."""
    planned = stored.get("train.steps")
    if not step or not isinstance(planned, int) or (line := jump(step, cfg.optim, planned, cfg.train.steps)) is None:
        return []
    steps = [int(manifest.parent.name.removeprefix("step-")) for manifest in newest_manifests(path)]
    smooth = (one for one in steps if jump(one, cfg.optim, planned, cfg.train.steps) is None)
    if (one := next(smooth, None)) is not None:
        line = f"{line}; to continue from step {one} instead, move the later steps out of {path / CHECKPOINTS}"
    return [line]


def _left_by_a_failed_start(entry: Path) -> bool:
    """True for files of a run that failed before its first step; later runs may overwrite them."""
    if entry.name == TOKENIZER_DIRECTORY:
        return CHECKPOINT.holds_only_its_files(entry, TOKENIZER_FACT)
    if entry.name == SOURCE:
        return (entry.parent / CONFIG_FILE).is_file() and CHECKPOINT.holds_only_its_files(entry, SOURCE_FACT)
    return entry.name in (CONFIG_FILE, LOCK_FILE) or entry.suffix == ".tmp"


def _check_source(copy: Path, init_from: str) -> None:
    """Raises `ConfigError` if the run's copy of `init_from` would overlap it or overwrite foreign files."""
    target, given = (Path(os.path.realpath(path)) for path in (copy, init_from))
    if target == given or target in given.parents or given in target.parents:
        text = f"checkpoint.init_from={init_from} overlaps {copy}, where the run stores its copy"
        elsewhere = "a run.dir elsewhere"
        raise ConfigError(f"{text}; use {elsewhere}", where="checkpoint.init_from", value=init_from, allowed=elsewhere)
    if os.path.lexists(copy) and not CHECKPOINT.holds_only_its_files(copy, SOURCE_FACT):
        text = f"{copy}, where the run stores its copy of checkpoint.init_from, holds other files"
        advice = "move them away, or use another run.dir"
        raise ConfigError(f"{text}; {advice}", where="run.dir", value=str(copy.parent), allowed=advice)


def hold(path: Path) -> FileLock:
    """Make the run directory and lock it for this process, until the returned lock is closed or the process ends.

    Two processes that write to one directory would mix their records and checkpoints. For rank 0 only. Raises
    `ConfigError` if another process, which it names, holds the directory, or if it cannot be made.
    """
    try:
        owner = f"process {os.getpid()} on {socket.gethostname()}"
        return FileLock(path / LOCK_FILE, owner=owner, wait=GLANCE)
    except OSError as error:
        raise _unwritable(path, error) from None
    except LockedError as error:
        raise _in_use(path, error.owner) from None


def must_be_free(path: Path) -> None:
    """Raises `ConfigError` if another process holds the directory. `hold` decides; a launcher need not wait for it."""
    owner = holder(path / LOCK_FILE)
    if owner is not None:
        raise _in_use(path, owner)


def prepare(run: RunDir, cfg: Config) -> None:
    """Make the directory and write the resolved configuration into it, atomically. For rank 0 only.

    A run that starts from random weights also removes the source copy of an earlier start: an export would take it for
    its own. Raises `ConfigError` if the directory cannot be written, or the weights to start from are missing.
    """
    source = cfg.checkpoint.init_from
    if run.step == 0 and source is not None and not Path(source).is_dir():
        found = "is not a directory" if Path(source).exists() else "does not exist on this machine"
        allowed = "a Hugging Face directory, or null for random weights"
        text = f"checkpoint.init_from={source} {found}; use {allowed}"
        raise ConfigError(text, where="checkpoint.init_from", value=source, allowed=allowed)
    try:
        run.path.mkdir(parents=True, exist_ok=True)
        if run.step == 0:
            remove_unfinished(run.path / TOKENIZER_DIRECTORY)
            remove_unfinished(run.path / SOURCE)  # left by a start that was killed while it copied
            if source is None:
                CHECKPOINT.remove_directory(run.path / SOURCE, SOURCE_FACT)
        with atomic_file(run.path / CONFIG_FILE) as temporary:
            temporary.write_text(to_yaml(replace(cfg, run=replace(cfg.run, dir=str(run.path)))), encoding="utf-8")
    except OSError as error:
        raise _unwritable(run.path, error) from None


def withdraw(run: RunDir) -> None:
    """Remove the directory of a run that is refused before its first step, which lists of runs would show as failed.

    What was there before the run stays, with the directory, and so does one that holds anything but files of failed
    starts, and that of a resumed run. For rank 0 only, while it holds the directory. What cannot be removed stays.
    """
    try:
        entries = list(run.path.iterdir())
        if run.status == "new" and all(_left_by_a_failed_start(entry) or _is_empty_record(entry) for entry in entries):
            last = (CONFIG_FILE, LOCK_FILE)  # without which the rest would look like files of others
            for entry in sorted(entries, key=lambda entry: last.index(entry.name) if entry.name in last else -1):
                if run.found is None or entry.name not in run.found:
                    shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
            if run.found is None:
                run.path.rmdir()
    except OSError:
        pass


def _is_empty_record(entry: Path) -> bool:
    """Return True for a record that was opened and has no line yet: rollout engines and workers start behind it."""
    return entry.name == RECORD and entry.is_file() and entry.stat().st_size == 0


def last_step(path: Path) -> int:
    """Step of the newest complete checkpoint in a run directory; 0 without one."""
    return max((int(manifest.parent.name.removeprefix("step-")) for manifest in newest_manifests(path)), default=0)


def finished_line(run: RunDir, cfg: Config) -> str:
    """The message for a run that has all its steps."""
    return (
        f"{run.path} is finished: it has {run.step} steps and train.steps={cfg.train.steps}. "
        f"Set train.steps above {run.step} to continue it, or train.resume=never for a new run"
    )


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """`key: old -> new` for every key whose values differ, in the order of `new`."""
    lines = []
    for key in [*new, *(key for key in old if key not in new)]:
        before, after = (show(side[key]) if key in side else "(missing)" for side in (old, new))
        if before != after:
            lines.append(f"{key}: {before} -> {after}")
    return lines


def _stored(path: Path) -> tuple[dict[str, Any], str | None]:
    """The directory's configuration, by dotted keys, and a line if it had to be taken from a checkpoint; keys that its
    time did not have yet are as `BEFORE` says."""
    try:
        stored, repaired = read_run(path)
    except FileNotFoundError:
        if last_step(path):  # saved before checkpoints had a copy of the configuration
            file = path / CONFIG_FILE
            remedy = f"write it with `octavo config`, the words of the run and `> {file}`"
            text = f"run.dir={path} has checkpoints but no {CONFIG_FILE}; {remedy}"
            raise ConfigError(text, where=str(file), value=None, allowed=remedy) from None
        text = f"run.dir={path} holds files but no {CONFIG_FILE}, so it is not a run directory"
        allowed = "a new or an empty directory"
        raise ConfigError(f"{text}; use {allowed}", where="run.dir", value=str(path), allowed=allowed) from None
    known = coerce.keys(Config)
    flat = coerce.flatten(stored, known)
    sections = {key.rpartition(".")[0] for key in flat}  # a section that is there has no value of its own
    return {**{key: value for key, value in BEFORE.items() if key not in sections}, **flat}, repaired


def _differences(cfg: Config, stored: Mapping[str, Any], kind: Literal["fixed", "named"]) -> list[str]:
    """Keys of one kind in which a directory's configuration and `cfg` differ. Keys that no longer exist count as
    fixed."""
    known = coerce.keys(Config)
    kinds = {kind: set(coerce.keys(Config, resume=[kind])) for kind in ("fixed", "named", "free")}
    others = set().union(*(keys for other, keys in kinds.items() if other != kind))
    asked = coerce.flatten(coerce.to_dict(cfg), known)
    leaf = {key: coerce.leaf_of(key, known) for key in [*stored, *asked]}
    old = {
        key: value
        for key, value in stored.items()
        if leaf[key] in kinds[kind] or (kind == "fixed" and leaf[key] not in others)
    }
    return differences(old, {key: value for key, value in asked.items() if leaf[key] in kinds[kind]})


def _next_free(path: Path) -> Path:
    candidate, number = path, 1
    while candidate.exists() and not (candidate.is_dir() and not any(candidate.iterdir())):
        number += 1
        candidate = path.with_name(f"{path.name}-{number}")
    return candidate


def _must_be_writable(path: Path) -> None:
    """Write a nameless file into the nearest directory that exists. Permission bits prove nothing: root passes them
    on a read-only file system too. Raises `OSError`."""
    place = next(place for place in (path.absolute(), *path.absolute().parents) if place.exists())
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(place)) from None


def _in_use(path: Path, owner: str) -> ConfigError:
    text = f"run.dir={path} is in use by {owner or 'another process'}"
    advice = "wait for it, stop it, or set train.resume=never for a new directory"
    return ConfigError(f"{text}; {advice}", where="run.dir", value=str(path), allowed=advice)


def _unwritable(path: Path, error: OSError) -> ConfigError:
    place = Path(error.filename or path)
    where = f" ({place})" if place.absolute() != path.absolute() else ""
    allowed = "a directory that you may write to"
    text = f"run.dir={path} cannot be written: {error.strerror or error}{where}; use {allowed}"
    return ConfigError(text, where="run.dir", value=str(path), allowed=allowed)
