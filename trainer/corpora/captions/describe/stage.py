"""The stage `captions`: every crop to a caption, part by part, each answer in a ledger before the next is taken.

For each part of the crops there is a ledger, which is kept, as answers cost money; and, once every crop has an answer,
a file of rows and an account. Rows follow from crops and ledger alone, so no interruption changes them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from math import inf
from pathlib import Path
from typing import Any

from trainer.config.say import counted
from trainer.corpora.captions.crops import Crop
from trainer.corpora.captions.describe.ask import Asked, Asking, Question, asking
from trainer.corpora.captions.describe.budget import Budget, Cost
from trainer.corpora.captions.describe.captioner import Captioner, Endpoint
from trainer.corpora.captions.describe.outcomes import caption_in, failure_of
from trainer.corpora.captions.describe.prompts import BUILT_IN, DESCRIBED, WORDS, Prompt, prompt_of, read_templates
from trainer.corpora.captions.describe.rows import Row, rows_path, write_rows
from trainer.corpora.captions.plans import keep_settings
from trainer.corpora.captions.reports import Count, StageReport
from trainer.corpora.captions.tables import parts_of, read_part
from trainer.data.errors import DataError
from trainer.storage.atomic import atomic_file
from trainer.storage.ledger import Ledger, LedgerLineError
from trainer.storage.progress import OnProgress, Progress, ignore

STAGE = "captions"
LEDGER, ACCOUNT = ".ledger.jsonl", ".account.json"
ALONE, NO_IMAGE, NO_CAPTIONER, FAILED = "caption alone", "no image", "no captioner", "failed"

RoutesOf = Callable[[Path], Mapping[str, str]]


@dataclass(frozen=True)
class CaptionOptions:
    """endpoints: the captioners by route. templates: the file of prompts. seed: of their choice. words: the longest
    caption that is asked for. printed: prompts have the document's caption and context. drop_failed: crops without an
    answer after all tries are dropped; else the stage does not finish, and its next start asks for them again.
    requests, tokens, money: limits over all starts, and seconds: of this start; see `Budget`."""

    endpoints: Mapping[str, Endpoint]
    templates: Path = BUILT_IN
    seed: int = 0
    words: int = WORDS
    printed: bool = True
    drop_failed: bool = False
    requests: float = inf
    tokens: float = inf
    money: float = inf
    seconds: float = inf

    def identity(self) -> dict[str, Any]:
        """JSON that changes with anything that answers depend on."""
        prompts = json.dumps(read_templates(self.templates), sort_keys=True)
        return {
            "captioners": {route: [one.model, one.temperature] for route, one in sorted(self.endpoints.items())},
            "prompts": hashlib.sha256(prompts.encode()).hexdigest(),
            "seed": self.seed,
            "words": self.words,
            "printed": self.printed,
        }


@dataclass
class _Account:
    """The account of one part: crops, crops by route, and what their answers cost."""

    crops: Count = field(default_factory=Count)
    routes: dict[str, Count] = field(default_factory=dict)
    cost: Cost = field(default_factory=Cost)

    def to_json(self) -> dict[str, Any]:
        routes = {route: count.to_json() for route, count in sorted(self.routes.items())}
        return {"crops": self.crops.to_json(), "routes": routes, "cost": asdict(self.cost)}

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> _Account:
        routes = {route: Count.from_json(count) for route, count in found["routes"].items()}
        return cls(Count.from_json(found["crops"]), routes, Cost(**found["cost"]))

    def add(self, row: Row) -> None:
        for count in (self.crops, self.routes.setdefault(row.route, Count()) if row.route else None):
            if count is not None and row.dropped:
                count.drop(row.dropped)
            elif count is not None:
                count.keep()


def run_captions(
    directory: Path, crops: Path, routes_of: RoutesOf, options: CaptionOptions, *, progress: OnProgress = ignore
) -> StageReport:
    """Ask a captioner about every figure, table and formula in the parts of `crops`, and return the account.

    `directory` then has rows (`rows.read_captions`), ledgers and `report.json`. routes_of: the captioners of the crops
    of a part by their id, each a key of `options.endpoints`; crops of another route are dropped. A finished stage is
    not done again, and no crop whose answer is in a ledger is asked about again.
    Raises DataError, also where the budget is spent and where crops are left without an answer; OSError.
    """
    directory.mkdir(parents=True, exist_ok=True)
    keep_settings(directory, options.identity())
    if (report := StageReport.read(directory)) is not None:
        return report
    parts = parts_of(crops)
    accounts = [_read_account(directory, part) for part in parts]
    budget = Budget(options.requests, options.tokens, options.money, options.seconds)
    for part, account in zip(parts, accounts, strict=True):
        budget.spent += account.cost if account else _cost(_ledger_path(directory, part))
    left = [part for part, account in zip(parts, accounts, strict=True) if account is None]
    failures: list[str] = []
    if left:
        captioners = {route: Captioner(one, f"captioner {route}") for route, one in options.endpoints.items()}
        with asking(captioners, budget) as asker:
            for number, part in enumerate(left, len(parts) - len(left)):
                failures += _describe(directory, part, asker, routes_of(part), options)
                progress(Progress(STAGE, number + 1, len(parts), "records", len(parts) - len(left)))
    if failures:
        remedy = "run the command again to ask about them, or drop them with --drop-failed"
        text = f"{counted(len(failures), 'crop')} without an answer, the first one because of {failures[0]}; {remedy}"
        raise DataError(text, where=str(directory), value=len(failures), allowed=remedy)
    return _report(directory, [account for part in parts if (account := _read_account(directory, part))])


def _describe(
    directory: Path, part: Path, asker: Asking, routes: Mapping[str, str], options: CaptionOptions
) -> list[str]:
    """Ask about the crops of a part, and write its rows and account unless some are to be asked about again. Returns
    the reasons of those."""
    templates = read_templates(options.templates)

    def prompt(crop: Crop) -> Prompt:
        return prompt_of(crop, templates, seed=options.seed, words=options.words, printed=options.printed)

    def questions() -> Iterator[Question]:
        for crop in read_part(part):
            if not _unasked(crop, route := routes.get(crop.id, ""), options, has_image=bool(crop.image)):
                yield Question(crop, prompt(crop).text, route)

    with _open(_ledger_path(directory, part)) as ledger:
        asked = asker.ask(questions(), ledger)
        if asked.failures and not options.drop_failed:
            return list(asked.failures.values())
        account = _Account(cost=_cost(_ledger_path(directory, part)))
        write_rows(rows_path(directory, part), _rows(part, routes, prompt, options, asked, ledger, account))
    with atomic_file(_account_path(directory, part)) as temporary:
        temporary.write_text(json.dumps(account.to_json()) + "\n")
    return []


def _rows(
    part: Path,
    routes: Mapping[str, str],
    prompt: Callable[[Crop], Prompt],
    options: CaptionOptions,
    asked: Asked,
    ledger: Ledger,
    account: _Account,
) -> Iterator[Row]:
    for crop in read_part(part, images=False):
        route = routes.get(crop.id, "")
        reason = _unasked(crop, route, options, has_image=crop.id in asked.keys)
        entry = ledger.get(asked.keys[crop.id]) if not reason else None
        if reason:
            row = Row(crop.id, crop.kind, dropped=reason)
        elif entry is None:
            row = Row(crop.id, crop.kind, route, options.endpoints[route].model, dropped=FAILED)
        else:
            row = Row(
                crop.id, crop.kind, route, entry["model"], prompt(crop).instruction, caption_in(entry["text"]),
                entry["tokens_in"], entry["tokens_out"], dropped=failure_of(entry) or "",
            )  # fmt: skip
        account.add(row)
        yield row


def _unasked(crop: Crop, route: str, options: CaptionOptions, *, has_image: bool) -> str:
    """The reason why no captioner is asked about a crop; "" where one is."""
    if crop.kind not in DESCRIBED:
        return ALONE
    if route not in options.endpoints:
        return NO_CAPTIONER
    return "" if has_image else NO_IMAGE


def _ledger_path(directory: Path, part: Path) -> Path:
    return directory / (part.stem + LEDGER)


def _account_path(directory: Path, part: Path) -> Path:
    return directory / (part.stem + ACCOUNT)


def _open(path: Path) -> Ledger:
    try:
        return Ledger(path)
    except LedgerLineError as error:
        remedy = "remove the line"
        raise DataError(f"{error}; {remedy}", where=f"{path}, line {error.line}", allowed=remedy) from error


def _cost(path: Path) -> Cost:
    """The cost of the answers of a ledger, those included that later ones replaced."""
    if not path.exists():
        return Cost()
    total = Cost()
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):  # else the process ended while it wrote
                total += Cost(**json.loads(line).get("cost", {}))
    return total


def _read_account(directory: Path, part: Path) -> _Account | None:
    try:
        return _Account.from_json(json.loads(_account_path(directory, part).read_text()))
    except FileNotFoundError:
        return None


def _report(directory: Path, accounts: list[_Account]) -> StageReport:
    crops, routes, cost = Count(), dict[str, Count](), Cost()
    for account in accounts:
        crops.add(account.crops)
        cost += account.cost
        for route, count in account.routes.items():
            routes.setdefault(route, Count()).add(count)
    counts = {"crops": crops, **{f"crops of {route}": count for route, count in sorted(routes.items())}}
    report = StageReport(STAGE, counts, asdict(cost))
    report.write(directory)
    return report
