"""The two kinds of jobs for worker processes: a unit of the first pass, a shard of the second."""

import json
from collections import Counter
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from trainer.corpora.packages import Document
from trainer.corpora.tokenize.inputs import documents, place
from trainer.corpora.tokenize.media.documents import documents as media_documents
from trainer.corpora.tokenize.media.encode import Bad
from trainer.corpora.tokenize.spool import Content, Encoder, UnfitError, spool_unit
from trainer.corpora.tokenize.units import Unit
from trainer.corpora.tokenize.write import write_shard
from trainer.data.errors import DataError
from trainer.data.media.rules import MediaRules
from trainer.data.shards.prefixes import Prefixes
from trainer.data.shards.tokenizer import Tokenizer
from trainer.storage.workers import Task

Job = dict[str, Any]
OnUnitProgress = Callable[[int, int], None]  # called with the bytes and tokens of a job so far


def load_plan(work: Path) -> dict[str, Any]:
    plan: dict[str, Any] = json.loads((work / "plan.json").read_text())
    return plan


def encoder_of(work: Path, at_least: int = 0) -> Encoder:
    """The encoder that the plan in the work directory describes."""
    return _encoder((work / "plan.json").read_text(), work, at_least)


@lru_cache(maxsize=1)
def _encoder(plan_text: str, work: Path, at_least: int) -> Encoder:
    plan = json.loads(plan_text)
    tokenizer = Tokenizer.load(
        work / "tokenizer.json", plan["eos"], special_text=plan["special_text"], before=plan["before"]
    )
    prefix = plan["prefix"]
    prefixes = Prefixes({prefix["group"]: prefix["texts"]}, tokenizer) if prefix else None
    group = prefix["group"] if prefix else None
    fraction, dtype = plan["heldout_fraction"], np.dtype(plan["dtype"])
    after = tuple(plan["after"])
    rules = MediaRules.from_json(plan["media"]) if "media" in plan else None
    skip = plan.get("bad_media") == "skip"
    return Encoder(
        tokenizer, dtype, plan["name"], plan["seed"], fraction, prefixes, group, at_least, after, rules, skip,
        plan.get("heldout_origins", ()),
    )  # fmt: skip


def contents_of(
    documents: Iterable[Any], media: MediaRules | None, root: Path | None
) -> list[tuple[int, str, Content | Bad]]:
    """Documents in memory as `spool_unit` takes them. root: of the paths in their parts."""
    found: list[tuple[int, str, Content | Bad]] = []
    for number, document in enumerate(documents, 1):
        if isinstance(document, Document):
            found.append((0, document.origin, document.text))
        elif media is not None:
            found.append((0, document.origin, document.content(number, media, root)))
    return found


def unfit(where: str, error: UnfitError) -> DataError:
    """The error about a document that cannot be stored, by its place in the input."""
    return DataError(f"{where}: {error.problem}", where=where, value=error.value, allowed=error.allowed)


def start_jobs(work: Path) -> Task:
    """The task of a worker: run the jobs of a work directory and report the bytes and tokens of a unit so far."""
    return lambda job, report: run_job(work, job, lambda read, tokens: report((read, tokens)))


def run_job(work: Path, job: Job, on_progress: OnUnitProgress) -> Any:
    """Facts of a unit or of a shard. Raises DataError."""
    if job["do"] == "unit":
        plan = load_plan(work)
        unit = Unit(**job["unit"])
        found: Any
        unread = Counter[str]()
        encoder = encoder_of(work, job["at_least"])
        if encoder.rules is None:
            found = documents(unit, plan["field"], plan["origin"])
        else:
            root = None if plan["media_root"] is None else Path(plan["media_root"])
            found = media_documents(unit, plan["field"], plan["origin"], encoder.rules, root, unread)
        try:
            return spool_unit(work / "spool", job["number"], found, encoder, on_progress, unread)
        except UnfitError as error:
            raise unfit(place(unit, error.number), error) from None
    parts = json.loads((work / "spool" / job["parts"]).read_text())
    dtype = np.dtype(load_plan(work)["dtype"])
    return write_shard(work / "spool", work, job["stem"], tuple(job["keys"]), parts, dtype, job["media"])
