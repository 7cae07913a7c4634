"""Whether what an earlier start left is the work of this one, and if it is not, what is another."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trainer.corpora.tokenize.spool import write_json
from trainer.data.shards import files as shard_files
from trainer.storage.manifest import MANIFEST

Facts = dict[str, Any]

LOCK, PLAN, SPOOL = "lock", "plan.json", "spool"
OPTIONS = {
    "name": "--name", "domain": "--domain", "field": "--field", "origin": "--origin", "seed": "--seed",
    "heldout_fraction": "--heldout", "shard_tokens": "--shard-tokens", "eos": "--eos",
}  # fmt: skip
WHAT = {
    "format": "the version of Octavo", "prefix": "the prefixes of --mixture", "tokenizer": "the content of --tokenizer",
    "dtype": "the size of the vocabulary",
}  # fmt: skip


def has_finished_parts(work: Path) -> bool:
    """Whether anything in a work directory would spare the next start some work."""
    return (work / MANIFEST).exists() or any((work / SPOOL).glob("*.json"))


def forget(work: Path) -> None:
    """Remove what a start has written of which nothing is finished, all but the lock."""
    shutil.rmtree(work / SPOOL, ignore_errors=True)
    for name in (f"{PLAN}.tmp", shard_files.TOKENIZER, PLAN):
        (work / name).unlink(missing_ok=True)


def take_down(work: Path) -> None:
    """After an error, with the lock held: a work directory of which nothing is finished does not stay."""
    if (work / PLAN).exists() and not has_finished_parts(work):
        forget(work)
    if [path.name for path in work.iterdir()] == [LOCK]:
        (work / LOCK).unlink()
        work.rmdir()


def differences(begun: Facts, plan: Facts) -> Iterator[str]:
    """What is another than it was at the earlier start, each in some words."""
    for key, now in plan.items():
        was = begun.get(key)
        if was == now:
            continue
        if key == "files":
            yield from _changed_files({file["path"]: file for file in was or []}, {file["path"]: file for file in now})
        elif key in OPTIONS:
            yield f"{OPTIONS[key]} was {was} and is {now}"
        else:
            yield f"{WHAT[key]} has changed"


def _changed_files(was: dict[str, Facts], now: dict[str, Facts]) -> Iterator[str]:
    yield from (f"the input {path} has changed" for path in now if path in was and was[path] != now[path])
    yield from (f"the input {path} is new" for path in now if path not in was)
    yield from (f"the input {path} is no longer named" for path in was if path not in now)


def take_up(work: Path, plan: Facts) -> str | None:
    """Begin a work directory, or make sure that the one there was begun with the same plan; what is wrong, if
    anything is."""
    path = work / PLAN
    if path.exists():
        begun = json.loads(path.read_text())
        if begun == plan:
            return None
        if has_finished_parts(work):
            return (
                f"{work} holds what an earlier start with another command or input has finished: "
                f"{', '.join(differences(begun, plan))}. Remove {work} to start anew"
            )
        forget(work)
    strangers = [entry.name for entry in work.iterdir() if entry.name not in (LOCK, f"{PLAN}.tmp")]
    if strangers:
        return f"{work} holds {min(strangers)}, which is no work of this command: name another directory"
    write_json(path, plan)
    return None
