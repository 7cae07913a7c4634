"""Work directories: whether the next start may resume the work of an earlier one, and if not, because of what."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trainer.corpora.tokenize.spool import write_json
from trainer.data.errors import DataError
from trainer.data.shards import files as shard_files
from trainer.storage.manifest import MANIFEST

Facts = dict[str, Any]

LOCK, PLAN, SPOOL = "lock", "plan.json", "spool"
OPTIONS = {
    "name": "--name", "domain": "--domain", "field": "--field", "origin": "--origin", "seed": "--seed",
    "heldout_fraction": "--heldout", "shard_tokens": "--shard-tokens", "eos": "--eos", "special_text": "--special-text",
    "media_root": "--media-root", "bad_media": "--bad-media",
}  # fmt: skip
DERIVED = {
    "format": "the version of Octavo", "prefix": "the prefixes of --mixture", "tokenizer": "the content of --tokenizer",
    "dtype": "the size of the vocabulary", "before": "--template or the tokenizer_config.json",
    "after": "--template or the tokenizer_config.json", "rows": "--split", "media": "--media, --image or --signal",
}  # fmt: skip


def has_finished_parts(work: Path) -> bool:
    """True if a work directory has anything that would save the next start some work."""
    return (work / MANIFEST).exists() or any((work / SPOOL).glob("*.json"))


def discard(work: Path) -> None:
    """Remove what a start wrote before it finished any part, except the lock."""
    shutil.rmtree(work / SPOOL, ignore_errors=True)
    for name in (f"{PLAN}.tmp", shard_files.TOKENIZER, PLAN):
        (work / name).unlink(missing_ok=True)


def remove_if_unfinished(work: Path) -> None:
    """After an error, with the lock held: remove a work directory that has no finished part."""
    if (work / PLAN).exists() and not has_finished_parts(work):
        discard(work)
    if [path.name for path in work.iterdir()] == [LOCK]:
        (work / LOCK).unlink()
        work.rmdir()


def differences(earlier: Facts, plan: Facts) -> Iterator[str]:
    """The differences between the plan of the earlier start and this one, each in a few words."""
    for key, now in plan.items():
        was = earlier.get(key)
        if was == now:
            continue
        if key == "files":
            yield from _changed_files({file["path"]: file for file in was or []}, {file["path"]: file for file in now})
        elif key in OPTIONS:
            yield f"{OPTIONS[key]} was {was} and is {now}"
        else:
            yield f"{DERIVED[key]} has changed"


def _changed_files(was: dict[str, Facts], now: dict[str, Facts]) -> Iterator[str]:
    yield from (f"the input {path} has changed" for path in now if path in was and was[path] != now[path])
    yield from (f"the input {path} is new" for path in now if path not in was)
    yield from (f"the input {path} is no longer named" for path in was if path not in now)


def start_or_resume(work: Path, plan: Facts) -> None:
    """Write the plan to a new work directory, or check that the earlier start had the same one. Raises DataError for a
    directory with other work or with files of others."""
    path = work / PLAN
    if path.exists():
        earlier = json.loads(path.read_text())
        if earlier == plan:
            return
        if has_finished_parts(work):
            changed = list(differences(earlier, plan))
            raise DataError(
                f"{work} has finished work of an earlier start with another command or input: {', '.join(changed)}. "
                f"Remove {work} to start over",
                where=str(work),
                value=changed,
                allowed=f"remove {work}, or repeat the earlier command",
            )
        discard(work)
    strangers = [entry.name for entry in work.iterdir() if entry.name not in (LOCK, f"{PLAN}.tmp")]
    if strangers:
        raise DataError(
            f"{work} has {min(strangers)}, which this command did not write; give another directory",
            where=str(work),
            value=min(strangers),
            allowed="give another directory",
        )
    write_json(path, plan)
