"""`octavo captions`: the stages in their order, in one directory that the same command resumes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.corpora.captions.dedup.stage import STAGE as DEDUP
from trainer.corpora.captions.dedup.stage import run_dedup
from trainer.corpora.captions.inputs import Input, identity
from trainer.corpora.captions.layout.stage import STAGE, Options, run_layout
from trainer.corpora.captions.reports import REPORT, StageReport
from trainer.corpora.captions.routing import stage as routing
from trainer.data.errors import DataError
from trainer.storage.atomic import FILE_SUFFIX, atomic_file
from trainer.storage.ledger import LedgerLineError
from trainer.storage.lock import FileLock, LockedError
from trainer.storage.progress import OnProgress, ignore

if TYPE_CHECKING:
    from trainer.corpora.captions.describe.stage import RoutesOf
    from trainer.corpora.captions.describing import Describing

FORMAT = 4  # increase it with any change of the output for the same input
PLAN, LOCK = "plan.json", "lock"
STAGES = (STAGE, DEDUP, routing.STAGE, "captions", "quality")  # each reads those before it
LEDGERS = "*.ledger.jsonl"  # answers of captioners
PACKAGES = {"pypdfium2": "pypdfium2", "PIL": "pillow", "imagehash": "imagehash"}  # imported name -> distribution
EXTRA = "pip install -e '.[captions]'"


def run_pipeline(
    out: Path,
    inputs: Sequence[Input],
    options: Options,
    describing: Describing | None = None,
    *,
    routes: routing.Options = routing.DEFAULTS,
    progress: OnProgress = ignore,
) -> list[StageReport]:
    """Run the stages that are not finished in `out`, one directory each, and return the accounts of all.

    describing: of the stages `captions` and `quality`, which do not run without it; a later start may add it.

    Started again with the same arguments after any interruption, it resumes from the documents that are read, with the
    same result byte for byte. Raises DataError, also for a directory of other inputs or options; OSError.
    """
    refuse_missing_packages()
    plan = {"format": FORMAT, "dpi": options.dpi, "documents": len(inputs), "inputs": identity(inputs)}
    _is_planned(out, plan)  # before anything is written in a directory of something else
    out.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(out / LOCK) as lock:
            if not _is_planned(out, plan):
                with atomic_file(out / PLAN) as temporary:
                    temporary.write_text(json.dumps(plan, indent=1) + "\n")
            _refuse_stale(out)
            routes_of = None if describing is None else _routes(describing, routes, out / routing.STAGE)
            reports = [run_layout(out / STAGE, inputs, options, progress=progress, lock=lock.file)]
            reports.append(run_dedup(out / DEDUP, out / STAGE, progress=progress))
            reports.append(routing.run_routing(out / routing.STAGE, out / DEDUP, routes, progress=progress))
            if describing is not None and routes_of is not None:
                from trainer.corpora.captions.describing import run_describing  # imports httpx

                reports += run_describing(out, out / DEDUP, routes_of, describing, progress)
            return reports
    except LockedError:
        remedy = "wait for it to end"
        text = f"{out} is being written by another process: {remedy}"
        raise DataError(text, where=str(out), allowed=remedy) from None
    except LedgerLineError as error:
        remedy = f"remove {error.path.parent} to start the stage over"
        raise DataError(f"{error}; {remedy}", where=str(error.path), value=error.text, allowed=remedy) from None


def _routes(describing: Describing, routes: routing.Options, routed: Path) -> RoutesOf:
    """A single captioner takes all crops. Raises DataError for a route that has none of several."""
    from trainer.corpora.captions.describing import one_route

    given = tuple(describing.captions.endpoints)
    if len(given) == 1:
        return one_route(given[0])
    if lacking := [name for name in routing.names_of(routes) if name not in given]:
        allowed = f"one captioner, or one for each of {', '.join(routing.names_of(routes))}"
        text = f"--captioners has {', '.join(given)} and none for {', '.join(lacking)}; give {allowed}"
        raise DataError(text, where="--captioners", value=given, allowed=allowed)
    return routing.captioners_of(routed)


def refuse_missing_packages() -> None:
    """Raises DataError with the command that installs what the stages need."""
    if lacking := [package for name, package in PACKAGES.items() if find_spec(name) is None]:
        text = f"reading PDFs and finding copies needs {' and '.join(lacking)}: not installed; {EXTRA}"
        raise DataError(text, where="INPUT", value=tuple(lacking), allowed=EXTRA)


def _refuse_stale(out: Path) -> None:
    """Raises DataError where a stage has results and one before it is gone, whose results may change when it is done
    again. Answers of captioners are not results: they are found by what was asked."""
    for number, stage in enumerate(STAGES):
        if (out / stage / REPORT).exists():
            continue
        for later in STAGES[number + 1 :]:
            results = [path for path in (out / later).glob("*") if path.name != PLAN and not path.match(LEDGERS)]
            if results:
                remedy = f"remove {out / later}"
                if any((out / later).glob(LEDGERS)):
                    remedy = f"remove all but {LEDGERS} and {PLAN} in {out / later}, which keeps the answers"
                text = f"{out / later} is of another {out / stage}, which is not finished; {remedy}"
                raise DataError(text, where=str(out / later), value=results[0].name, allowed=remedy)
        return


def _is_planned(out: Path, plan: dict[str, Any]) -> bool:
    """Return True if an earlier start had the same plan, False for a new directory. Raises DataError for others."""
    path = out / PLAN
    if not out.exists():
        return False
    if path.exists():
        try:
            earlier = json.loads(path.read_text())
        except ValueError:
            earlier = None
        if not isinstance(earlier, dict):
            remedy = "give another directory"
            text = f"{path} is not a plan of this command; {remedy}"
            raise DataError(text, where=str(path), allowed=remedy)
        changed = [f"{key} was {earlier.get(key)} and is {plan[key]}" for key in plan if plan[key] != earlier.get(key)]
        if not changed:
            return True
        remedy = "give another directory, or repeat the earlier command"
        where = "the inputs or their files have changed" if changed[0].startswith("inputs ") else "; ".join(changed)
        text = f"{out} has work of another command: {where}; {remedy}"
        raise DataError(text, where=str(out), value=tuple(changed), allowed=remedy)
    strangers = sorted({entry.name for entry in out.iterdir()} - {LOCK, PLAN + FILE_SUFFIX})
    if strangers:
        remedy = "give a new directory"
        text = f"{out} has {strangers[0]}, which this command did not write; {remedy}"
        raise DataError(text, where=str(out), value=strangers[0], allowed=remedy)
    return False
