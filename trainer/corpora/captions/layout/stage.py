"""The stage `layout`: every document to crops, resumable after each document, in the order of the inputs.

A document's crops are written to a spool file by the process that reads it, and then entered in a ledger. When all are
there, spool files are joined to parts. Nothing in a part, and so no byte of it, depends on interruptions or processes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from trainer.corpora.captions.crops import Crop
from trainer.corpora.captions.guarded import Lost, run_guarded
from trainer.corpora.captions.inputs import Input
from trainer.corpora.captions.layout.document import Reading, RefusedError, read_document
from trainer.corpora.captions.reports import Count, StageReport
from trainer.corpora.captions.tables import part_path, read_part, write_part
from trainer.storage.atomic import atomic_file
from trainer.storage.ledger import Ledger
from trainer.storage.progress import OnProgress, Progress, ignore
from trainer.storage.workers import Reporter, Task

STAGE = "layout"
DPI, SECONDS = 150.0, 120.0
MEMORY = 4 << 30  # bytes of address space of a process that reads documents
PART_BYTES = 256 << 20  # of spool files that make one part; a part has whole documents
FOLDER = 1000  # spool files of a directory
LEDGER, SPOOL, DOCUMENTS = "ledger.jsonl", "spool", "documents.jsonl"
Facts = dict[str, Any]


@dataclass(frozen=True)
class Options:
    """dpi: of the crops. seconds: that a document may take, with `workers`. workers: processes; 0: none but this."""

    dpi: float = DPI
    seconds: float = SECONDS
    workers: int = 1


def run_layout(
    directory: Path,
    inputs: Sequence[Input],
    options: Options,
    *,
    progress: OnProgress = ignore,
    lock: int | None = None,
) -> StageReport:
    """Read every document, and return the account. `directory` then has parts of crops (`tables.read_crops`),
    `documents.jsonl` with what became of each input, and `report.json`.

    lock: the descriptor of a lock that processes inherit, so that it is held until the last of them ends.
    A finished stage is not done again. Raises DataError, LedgerLineError, OSError.
    """
    if (report := StageReport.read(directory)) is not None:
        _clean(directory)  # the stage may have been killed just after its report
        return report
    directory.mkdir(parents=True, exist_ok=True)
    with Ledger(directory / LEDGER) as ledger:
        _read_all(directory, inputs, options, ledger, progress, lock)
        facts = [ledger.get(str(number)) or {} for number in range(len(inputs))]
    every = _without_copies(facts)
    _join(directory, every, progress)
    with atomic_file(directory / DOCUMENTS) as temporary:
        temporary.write_text("".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in every))
    report = _account(inputs, every, options)
    report.write(directory)
    _clean(directory)
    return report


def _clean(directory: Path) -> None:
    """Remove what only an unfinished stage needs."""
    shutil.rmtree(directory / SPOOL, ignore_errors=True)
    (directory / LEDGER).unlink(missing_ok=True)


def _read_all(
    directory: Path, inputs: Sequence[Input], options: Options, ledger: Ledger, progress: OnProgress, lock: int | None
) -> None:
    left = [number for number in range(len(inputs)) if str(number) not in ledger]
    jobs = [{"number": number, **asdict(inputs[number])} for number in left]
    kept = len(inputs) - len(left)
    start = partial(start_reading, directory, options.dpi, options.workers > 0)
    inherit = [] if lock is None else [lock]
    for done, (place, result) in enumerate(
        run_guarded(start, jobs, options.workers, options.seconds, inherit=inherit), kept + 1
    ):
        if isinstance(result, Lost):
            result = _dropped(inputs[left[place]], "too slow" if result.reason == "deadline" else "crashed", result.how)
        ledger.add(str(left[place]), result)
        progress(Progress("layout", done, len(inputs), "documents", kept))


def start_reading(directory: Path, dpi: float, own_process: bool) -> Task:
    """The task of a process: read one document into its spool file. own_process: bound its memory."""
    if own_process:
        import resource

        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY if hard == resource.RLIM_INFINITY else min(MEMORY, hard), hard))
    return partial(_read, directory, dpi)


def _read(directory: Path, dpi: float, job: Facts, report: Reporter) -> Facts:
    number, document = job["number"], Input(**{key: value for key, value in job.items() if key != "number"})
    reading, path = Reading(), _spool(directory, number)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        crops = write_part(path, read_document(document, dpi, reading))
    except RefusedError as error:
        return _dropped(document, error.reason, error.problem)
    except MemoryError:
        return _dropped(document, "too large", "reading it takes too much memory")
    except OSError as error:
        if error.filename not in (None, document.path):  # of the output, such as a full disk
            raise
        return _dropped(document, "unreadable", error.strerror or str(error))
    return {
        "document": document.name, "pdf": reading.pdf, "crops": crops, "bytes": path.stat().st_size,
        "pages": reading.pages.to_json(), "regions": reading.crops.to_json(), "problems": reading.problems,
    }  # fmt: skip


def _dropped(document: Input, reason: str, problem: str) -> Facts:
    return {"document": document.name, "dropped": reason, "problems": [problem]}


def _spool(directory: Path, number: int) -> Path:
    return directory / SPOOL / f"{number // FOLDER:06}" / f"{number:09}.parquet"


def _without_copies(facts: Sequence[Facts]) -> list[Facts]:
    """The facts of all documents, in order, in which a PDF that came before is dropped."""
    seen: dict[str, str] = {}
    found = []
    for fact in facts:
        pdf = fact.get("pdf")
        if pdf in seen:
            fact = {"document": fact["document"], "dropped": "copy", "pdf": pdf, "problems": [f"a copy of {seen[pdf]}"]}
        elif pdf:
            seen[pdf] = fact["document"]
        found.append(fact)
    return found


def _join(directory: Path, every: Sequence[Facts], progress: OnProgress) -> None:
    """Write the parts that are missing. The numbers of documents in each follow from the ledger alone."""
    groups: list[list[int]] = [[]]
    size = 0
    for number, fact in enumerate(every):
        if fact.get("crops"):
            if groups[-1] and size + fact["bytes"] > PART_BYTES:
                groups.append([])
                size = 0
            groups[-1].append(number)
            size += fact["bytes"]
    for part, numbers in enumerate(groups):
        path = part_path(directory, part)
        if not path.exists():
            write_part(path, _crops_of(directory, numbers))
        for number in numbers:
            _spool(directory, number).unlink(missing_ok=True)
        progress(Progress("joining", part + 1, len(groups), "records"))


def _crops_of(directory: Path, numbers: Sequence[int]) -> Iterator[Crop]:
    for number in numbers:
        yield from read_part(_spool(directory, number))


def _account(inputs: Sequence[Input], every: Sequence[Facts], options: Options) -> StageReport:
    documents, pages, crops = Count(), Count(), Count()
    lines = []
    for fact in every:
        if "dropped" in fact:
            documents.drop(fact["dropped"])
        else:
            documents.keep()
            pages.add(Count.from_json(fact["pages"]))
            crops.add(Count.from_json(fact["regions"]))
        if fact["problems"]:
            lines.append(
                f"{fact['document']}: {fact.get('dropped', 'read in part')}: {'; '.join(fact['problems'][:3])}"
            )
    counts = {"documents": documents, "pages": pages, "crops": crops}
    return StageReport(STAGE, counts, {"dpi": options.dpi}, lines)
