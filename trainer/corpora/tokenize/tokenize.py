"""`octavo tokenize`: turn documents into shuffled shards of Megatron's .bin and .idx, with a manifest.

There are two passes. The first tokenizes units of the input and gives every document a random key. The second writes
one shard for each range of keys, with its documents in order of key. This shuffles the whole source uniformly, in the
memory of one shard. Everything random is a hash of the seed and a document's position in the input, so the result
depends on neither the workers nor interruptions.
"""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np

from parallel.errors import one_of
from trainer.corpora.packages import Document
from trainer.corpora.tokenize import agreement, jobs, resume
from trainer.corpora.tokenize.inputs import documents as documents_of
from trainer.corpora.tokenize.inputs import units_of
from trainer.corpora.tokenize.media.card import write_card
from trainer.corpora.tokenize.media.documents import PartsDocument
from trainer.corpora.tokenize.media.documents import texts_of as media_texts
from trainer.corpora.tokenize.media.options import check_marks
from trainer.corpora.tokenize.media.spooled import MEDIA_COUNTS, unread_members
from trainer.corpora.tokenize.resume import LOCK, PLAN, SPOOL
from trainer.corpora.tokenize.spool import (
    COUNTS,
    HELDOUT,
    TRAIN,
    UnfitError,
    check_heldout,
    finished_unit,
    lacks_heldout,
    spool_unit,
    write_json,
)
from trainer.corpora.tokenize.units import Rows, Unit
from trainer.corpora.tokenize.write import finished_shard, key_ranges, token_dtype
from trainer.data.errors import DataError
from trainer.data.media.rules import MediaRules
from trainer.data.shards import files as shard_files
from trainer.data.shards.around import Template, template_of
from trainer.data.shards.prefixes import Prefixes
from trainer.data.shards.tokenizer import SpecialText, Tokenizer, tokenizer_file
from trainer.storage.atomic import FILE_SUFFIX, publish
from trainer.storage.lock import FileLock, LockedError
from trainer.storage.progress import OnProgress, Progress, ignore
from trainer.storage.space import free_space
from trainer.storage.workers import WorkerDied, Workers

FORMAT = 3  # increase it with any change of the output for the same input
COMPARED = 32  # documents of the input that transformers encodes as well
FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
LEFT_OUT = "left_out.jsonl"  # the documents whose media cannot be used, and why
CHARS_PER_TOKEN = 3  # fewer than usual, so that the check for space errs on the safe side

Facts = dict[str, Any]


def tokenize_source(
    documents: Iterable[Document | PartsDocument] | Sequence[Path | Rows],
    tokenizer: Path,
    out: Path,
    *,
    name: str,
    domain: Literal["science", "general"],
    group: str | None = None,
    prefixes: dict[str, list[str]] | None = None,
    heldout_fraction: float = 0.001,
    heldout_origins: Sequence[str] = (),
    shard_tokens: int = 1 << 28,
    seed: int = 0,
    workers: int = 1,
    field: str = "text",
    origin: str | None = None,
    eos: str | None = None,
    special_text: SpecialText = "spell",
    template: Literal["keep", "omit"] = "keep",
    media: MediaRules | None = None,
    media_root: Path | None = None,
    bad_media: Literal["fail", "skip"] = "fail",
    note: Callable[[str], None] = lambda line: None,
    progress: OnProgress = ignore,
) -> Facts:
    """Tokenize one source into the directory `out`, which must not exist, and return its manifest.

    documents: files (see `inputs.find_files`), or documents in memory, which this process tokenizes itself. tokenizer:
    a tokenizer.json. prefixes: all groups of the mixture, so that conflicts are found here; each document gets one of
    the paraphrases of `group`. heldout_fraction: share of the documents to hold out, by a hash of their origin or text;
    with two or more origins at least one is held out, unless it is 0. heldout_origins: held out as well. field, origin:
    the names of the fields or columns with the text and with its origin (None: each text is its own origin). workers:
    processes; 0 does everything in this one. special_text: what becomes of text that spells a special token (see
    `Tokenizer`). template: keep or omit the ids that the tokenizer puts around a text. media: how images and signals
    become tokens; documents are then lists of parts (`media.parts`), whose paths start from `media_root` or the file's
    directory. bad_media: fail at the first document whose media cannot be used, or leave it out and list it in
    `left_out.jsonl`. note: called with a line that the user should see.

    The work is in `<out>.tmp` until it is complete. Started again with the same arguments after any interruption, it
    resumes from the finished units and shards, with the same result byte for byte. Raises DataError.
    """
    in_memory = not isinstance(documents, Sequence) or not all(isinstance(item, Path | Rows) for item in documents)
    if out.exists():
        remedy = "remove it or give another directory"
        raise DataError(f"{out} already exists and will not be overwritten; {remedy}", where=str(out), allowed=remedy)
    work = out.with_name(f"{out.name}.tmp")
    try:
        work.mkdir(parents=True, exist_ok=True)
        with _alone(work) as lock, Workers(partial(jobs.start_jobs, work), workers, inherit=[lock.file]) as pool:
            tokenizer = tokenizer_file(tokenizer)
            loaded = Tokenizer.load(tokenizer, eos, special_text=special_text)
            units = [] if in_memory else units_of([item for item in documents if isinstance(item, Path | Rows)])
            some = list(islice(_texts(units, field, origin, media, media_root), COMPARED))
            around = _agreed_template(loaded, tokenizer, template, some, note)
            loaded.before = [*around.before]
            plan = {
                "format": FORMAT, "name": name, "domain": domain, "field": field, "origin": origin, "seed": seed,
                "prefix": _prefix(group, prefixes or {}, loaded), "heldout_fraction": heldout_fraction,
                "shard_tokens": shard_tokens, "dtype": token_dtype(loaded.vocab_size).str,
                "eos": loaded.end_of_document, "special_text": special_text,
                "before": loaded.before, "after": [*around.after],
                "tokenizer": hashlib.sha256(tokenizer.read_bytes()).hexdigest(),
                "files": _identities(sorted({unit.path for unit in units})),
                "rows": [[unit.path, unit.first, unit.last] for unit in units if unit.kind == "arrow" and unit.last],
            }  # fmt: skip
            if media is not None:
                check_marks(media, loaded)
                root = None if media_root is None else str(media_root.resolve())
                plan |= {"media": media.to_json(), "media_root": root, "bad_media": bad_media}
            if heldout_origins:
                plan["heldout_origins"] = sorted({*heldout_origins})
            resume.start_or_resume(work, plan)
            if in_memory:  # these documents may have changed since an earlier start
                shutil.rmtree(work / SPOOL, ignore_errors=True)
            # An earlier start may have been killed before it made these, or while it removed the spool at its end.
            (work / SPOOL).mkdir(exist_ok=True)
            shutil.copyfile(tokenizer, work / shard_files.TOKENIZER)
            if in_memory:
                each = jobs.contents_of(documents, media, media_root)
                try:
                    spooled = [spool_unit(work / SPOOL, 0, each, jobs.encoder_of(work))]
                    if at_least := lacks_heldout(spooled):
                        spooled = [spool_unit(work / SPOOL, 0, each, jobs.encoder_of(work, at_least))]
                except UnfitError as error:
                    raise jobs.unfit(f"{each[error.number][1]} (document {error.number + 1})", error) from None
            else:
                _check_space(work, sum(unit.text_bytes for unit in units) // CHARS_PER_TOKEN, plan, copies=2)
                spooled = _first_pass(work, units, pool, progress)
                if at_least := lacks_heldout(spooled):
                    spooled = _first_pass(work, units, pool, progress, at_least)
            if lacking := check_heldout(spooled, heldout_origins, seed):
                note(f"{len(lacking):,} of the origins to hold out have no document, first {lacking[0]!r}")
            shards = _second_pass(work, spooled, plan, pool, progress)
            manifest = _describe(work, plan, loaded, spooled, shards)
            if media is not None:
                write_card(work, manifest)
                for line in unread_members(spooled):
                    note(line)
                if not manifest["records"]:
                    note(f"no document of {name} has one of: {', '.join(media.kinds)}")
            shutil.rmtree(work / SPOOL)
            publish(work, out)  # with the plan: if killed just before, the next start still recognizes its work
            (out / PLAN).unlink()
            (out / LOCK).unlink()
    except OSError as error:
        path = str((error.filename2 if error.errno in FULL else None) or error.filename or work)  # copies name both
        raise DataError(
            f"{path}: {error.strerror or error}",
            where=path,
            value=error.strerror,
            allowed="correct the path or its disk",
        ) from error
    return manifest


@contextmanager
def _alone(work: Path) -> Iterator[FileLock]:
    """The lock of a work directory. Worker processes inherit it, so that it is held until the last of them ends."""
    try:
        lock = FileLock(work / LOCK)
    except LockedError:
        remedy = "wait for it to end"
        raise DataError(
            f"{work} is being written by another process: {remedy}", where=str(work), allowed=remedy
        ) from None
    with lock:
        try:
            yield lock
        except Exception:
            resume.remove_if_unfinished(work)
            raise


def _texts(
    units: Sequence[Unit], field: str, origin: str | None, media: MediaRules | None, root: Path | None
) -> Iterator[str]:
    for unit in units:
        if media is None:
            yield from (text for _, _, text in documents_of(unit, field, origin) if text)
        else:
            yield from media_texts(unit, field, origin, media, root)


def _agreed_template(
    tokenizer: Tokenizer,
    file: Path,
    template: Literal["keep", "omit"],
    some: Sequence[str],
    note: Callable[[str], None],
) -> Template:
    """The ids to put around a text, once the tokenizer is known to do what transformers does. Raises DataError."""
    agreement.check_end(tokenizer)
    agreement.check_tokens(tokenizer, file)
    around = template_of(tokenizer, file)
    for line in agreement.contradictions(tokenizer, around, file):
        note(line)
    if reason := agreement.compare(file, tokenizer, around, some):
        note(reason)
    if template == "omit":
        return Template()
    after = around.after[:-1] if around.after[-1:] == (tokenizer.eos_id,) else around.after  # ends a document already
    return Template(around.before, after)


def _prefix(group: str | None, prefixes: dict[str, list[str]], tokenizer: Tokenizer) -> Facts | None:
    if group is None:
        return None
    if group not in prefixes:
        raise DataError(
            f"there is no prefix group {group}; the mixture has {one_of(prefixes) if prefixes else 'none'}",
            where="data.prefixes",
            value=group,
            allowed=tuple(prefixes),
        )
    every = Prefixes(prefixes, tokenizer)
    if faults := every.faults():
        raise DataError(faults)
    return {"group": group, "texts": every.groups[group], "ids": every.ids[group]}


def _identities(paths: Sequence[str]) -> list[Facts]:
    """Path, size and time of each file, by which a later start recognizes it as unchanged."""
    found = [(path, os.stat(path)) for path in paths]
    return [{"path": path, "bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns} for path, stat in found]


def _check_space(work: Path, tokens: int, plan: Facts, copies: int) -> None:
    needed = copies * tokens * np.dtype(plan["dtype"]).itemsize
    _, free = free_space(work)
    if needed > free:
        raise DataError(
            f"{work}: about {tokens / 1e9:,.2f} billion tokens need {needed / 1e9:,.1f} GB while they are written, and "
            f"{free / 1e9:,.1f} GB are free",
            where=str(work),
            value=free,
            allowed=f"at least {needed} bytes of free space",
        )


def _first_pass(
    work: Path, units: Sequence[Any], pool: Workers, progress: OnProgress, at_least: int = 0
) -> list[Facts]:
    """Spool the units that are not finished, and those with an origin below `at_least` that were spooled without it."""
    spool = work / SPOOL
    spooled = {
        number: facts
        for number in range(len(units))
        if (facts := finished_unit(spool, number))
        and (facts["heldout_below"] >= at_least or facts["origins"][0] >= at_least)
    }
    total = sum(unit.nbytes for unit in units)
    kept = sum(units[number].nbytes for number in spooled)
    left = [number for number in range(len(units)) if number not in spooled]
    read, tokens = dict.fromkeys(left, 0), dict.fromkeys(left, 0)

    def show(place: int, bytes_read: int, tokens_made: int) -> None:
        number = left[place]
        read[number], tokens[number] = min(bytes_read, units[number].nbytes), tokens_made
        done = kept + sum(read.values())
        progress(Progress("tokenizing", done, total, kept=kept, tokens=sum(tokens.values())))

    todo = [{"do": "unit", "number": number, "unit": asdict(units[number]), "at_least": at_least} for number in left]
    for place, facts in _run(pool, todo, lambda place, so_far: show(place, *so_far)):
        spooled[left[place]] = facts
        show(place, units[left[place]].nbytes, facts["tokens"])
    return [spooled[number] for number in range(len(units))]


def _second_pass(
    work: Path, spooled: Sequence[Facts], plan: Facts, pool: Workers, progress: OnProgress
) -> dict[str, list[Facts]]:
    spool, dtype = work / SPOOL, np.dtype(plan["dtype"])
    written: dict[str, dict[int, Facts]] = {TRAIN: {}, HELDOUT: {}}
    total = sum(facts["tokens"] for facts in spooled)
    _check_space(work, total, plan, copies=1)
    todo, places = [], []
    for split in (TRAIN, HELDOUT):
        parts = [part for facts in spooled for part in facts["parts"] if part["split"] == split]
        write_json(spool / f"{split}.parts", parts)
        for number, keys in enumerate(key_ranges(spool, parts, plan["shard_tokens"], dtype)):
            stem = f"{split}-{number:05}"
            facts = finished_shard(spool, work, stem)
            if facts is not None:
                written[split][number] = facts
                continue
            job = {"do": "shard", "stem": stem, "keys": keys, "parts": f"{split}.parts", "media": "media" in plan}
            todo.append(job)
            places.append((split, number))
    for leftover in work.glob(f"*{FILE_SUFFIX}"):  # of processes that were killed
        leftover.unlink()
    kept = sum(facts["tokens"] for some in written.values() for facts in some.values())
    done = 0
    for place, facts in _run(pool, todo):
        split, number = places[place]
        written[split][number] = facts
        done += facts["tokens"]
        progress(Progress("writing", kept + done, total, "tokens", kept))
    return {split: [some[number] for number in sorted(some)] for split, some in written.items()}


def _run(
    pool: Workers, todo: Sequence[jobs.Job], reported: Callable[[int, Any], None] = lambda place, report: None
) -> Iterator[tuple[int, Facts]]:
    try:
        yield from pool.run(todo, reported)
    except WorkerDied as death:
        hint = ": was it out of memory? Use fewer --workers" if death.by_sigkill else ""
        raise DataError(
            f"a worker process {death.how}{hint}; the same command resumes from here",
            where="--workers",
            value=death.how,
            allowed="use fewer --workers" if death.by_sigkill else "run the same command again",
        ) from death


def _describe(
    work: Path, plan: Facts, tokenizer: Tokenizer, spooled: Sequence[Facts], shards: dict[str, list[Facts]]
) -> Facts:
    counts = {key: sum(facts["counts"].get(key, 0) for facts in spooled) for key in COUNTS}
    empty = counts.pop("empty_documents")
    nothing = empty + counts["documents_without_tokens"]
    left_out = [line for facts in spooled for line in facts.get("left_out", ())]
    if not shards[TRAIN]:
        if left_out:
            where, problem = left_out[0]
            text = f"{plan['name']}: there is no document to train on; {len(left_out)} have media that cannot be used"
            raise DataError(
                f"{text}, first {where}: {problem}", where=where, value=len(left_out), allowed="sound media"
            )
        held = f" All {sum(s['documents'] for s in shards[HELDOUT])} are held out." if shards[HELDOUT] else ""
        raise DataError(
            f"{plan['name']}: there is no document to train on; {nothing} texts are empty.{held}",
            where="--heldout" if held else "INPUT",
            value=plan["heldout_fraction"] if held else nothing,
            allowed="a smaller --heldout" if held else "an input with texts",
        )
    if left_out:
        lines = [json.dumps(dict(zip(("where", "problem"), line, strict=True))) for line in left_out]
        (work / LEFT_OUT).write_text("".join(f"{line}\n" for line in lines))
    media: Facts = {}
    if "media" in plan:
        every = [shard for split in shards.values() for shard in split]
        media = {"media": plan["media"], **{key: sum(shard.get(key, 0) for shard in every) for key in MEDIA_COUNTS}}
    unusual = {"before": plan["before"], "after": plan["after"]}
    if plan["special_text"] != "spell":
        unusual["special_text"] = plan["special_text"]
    return shard_files.write_manifest(
        work,
        {
            "name": plan["name"],
            "domain": plan["domain"],
            "dtype": plan["dtype"],
            "seed": plan["seed"],
            "tokenizer": {
                "sha256": plan["tokenizer"],
                "vocab_size": tokenizer.vocab_size,
                "eos": tokenizer.end_of_document,
                "eos_id": tokenizer.eos_id,
                **{key: value for key, value in unusual.items() if value},
            },
            "prefix": plan["prefix"],
            "tokens": sum(shard["tokens"] for shard in shards[TRAIN]),
            "documents": sum(shard["documents"] for shard in shards[TRAIN]),
            "empty_documents": empty,  # left out
            **{key: count for key, count in counts.items() if count},
            **({"documents_left_out": len(left_out)} if left_out else {}),
            **media,
            "shards": shards[TRAIN],
            "heldout": shards[HELDOUT],
        },
    )
