"""The questions of a suite: asked once each, kept in the ledger, judged and scored."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from trainer.evaluation.asked import (
    Answer,
    Failure,
    Model,
    Question,
    Settings,
    existing_media,
    key_of,
    with_seed,
)
from trainer.evaluation.suite import Item, Scored, Suite, SuiteError
from trainer.storage.ledger import Entry, Ledger, LedgerLineError
from trainer.storage.lock import LockedError
from trainer.storage.progress import OnProgress, Progress

LEDGER = "answers.jsonl"


@dataclass(frozen=True)
class Outcome:
    """The answers to a suite's questions. scored: one entry an answer, in the order of items. failures: by item, why
    there is no answer or no score. empty: by item, why an answer is scored as an empty one. left_out: by item, why the
    value is without it. kept: answers that an
    earlier start had made. truncated: answers that max_tokens or the context ended. tokens: of all answers, as
    far as they are counted."""

    scored: list[Scored] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    empty: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    kept: int = 0
    truncated: int = 0
    tokens: int = 0


def open_ledger(directory: Path) -> Ledger:
    """The ledger of a directory of results. Raises SuiteError for one that is in use or damaged."""
    path = directory / LEDGER
    try:
        return Ledger(path)
    except LockedError:
        remedy = "wait for it, or use another --out"
        text = f"{path} is in use by another process; {remedy}"
        raise SuiteError(text, where=str(path), allowed=remedy) from None
    except LedgerLineError as error:
        remedy = "remove the line, or use another --out"
        where = f"{path}, line {error.line}"
        raise SuiteError(f"{error}; {remedy}", where=where, value=error.text, allowed=remedy) from error


def read_items(suite: Suite, data: Path, limit: int | None) -> list[Item]:
    """The items of a suite from its folder in `data`, all or the first `limit`.

    Raises SuiteError for files that are missing or damaged, for ids that are used twice, and for missing media.
    """
    directory = data / suite.folder
    items: list[Item] = []
    for item in suite.read(directory):
        if limit is not None and len(items) == limit:
            break
        items.append(item)
    if not items:
        text = f"{directory}: the files of {suite.name} have no items; {suite.where_data}"
        raise SuiteError(text, where=str(directory), value=0, allowed=suite.where_data)
    if twice := [name for name, count in Counter(item.id for item in items).items() if count > 1]:
        text = f"{directory}: the id {twice[0]} is used by {len(twice) + 1} or more items"
        raise SuiteError(text, where=str(directory), value=twice, allowed="an id for each item")
    if missing := [path for item in items for path in existing_media(item.messages)]:
        text = f"{missing[0]} is missing, with {len(missing) - 1} others of {suite.name}; {suite.where_data}"
        raise SuiteError(text, where=str(missing[0]), value=len(missing), allowed=suite.where_data)
    return items


def run_suite(
    suite: Suite,
    items: Sequence[Item],
    model: Model,
    settings: Settings,
    ledger: Ledger,
    report: OnProgress,
    judge: tuple[Model, Settings] | None = None,
) -> Outcome:
    """Ask what the ledger does not have, then judge and score every answer.

    A greedy answer is the same each time, so that items are then asked once, whatever the suite's `repeats`. Where a
    prompt exceeds the context, or an answer breaks the scorer, the item is scored as if the answer were empty: left
    out, it would raise the score.
    """
    repeats = suite.repeats if settings.temperature else 1
    wanted: list[tuple[Item, Question]] = []
    for item in items:
        for repeat in range(repeats):
            how = with_seed(settings, repeat)
            wanted.append((item, Question(key_of(suite.folder, item.id, item.messages, how, model.identity),
                                          item.messages, how)))  # fmt: skip
    questions = [question for _, question in wanted]
    kept = sum(question.key in ledger for question in questions)
    failures = _ask(suite.name, questions, model, ledger, report)
    outcome = Outcome(kept=kept)
    answers = [(item, _answer(ledger.get(question.key)), question) for item, question in wanted]
    present = [(item, answer) for item, answer, _ in answers if answer is not None]
    verdicts = _judge(suite, present, judge, ledger, report)
    truncated = tokens = 0
    for item, answer, question in answers:
        if answer is None:
            failure = failures[question.key]
            if failure.final:
                _score_empty(suite, item, failure.reason, outcome)
            else:
                outcome.failures[item.id] = failure.reason
            continue
        verdict = next(verdicts)
        truncated += answer.finish == "length"
        tokens += answer.tokens or 0
        if isinstance(verdict, Failure):
            outcome.failures[item.id] = f"judge: {verdict.reason}"
            continue
        try:
            values = suite.score(item, answer.text, verdict)
        except Exception as error:  # of a scorer's library, for one answer among thousands
            _score_empty(suite, item, f"scorer: {type(error).__name__}: {error}", outcome)
            continue
        outcome.scored.append(Scored(item, answer.text, values))
    return replace(outcome, truncated=truncated, tokens=tokens)


def _score_empty(suite: Suite, item: Item, reason: str, outcome: Outcome) -> None:
    try:
        values = {**suite.score(item, "", None), "parsed": False}
    except Exception as error:
        outcome.failures[item.id] = f"{reason}; scorer of an empty answer: {type(error).__name__}: {error}"
        return
    outcome.empty[item.id] = reason
    outcome.scored.append(Scored(item, "", values))


def _ask(
    stage: str, questions: Sequence[Question], model: Model, ledger: Ledger, report: OnProgress
) -> Mapping[str, Failure]:
    """Ask what the ledger does not have. Each answer is on the disk before the next is taken. Returns the failures by
    key."""
    failures: dict[str, Failure] = {}
    todo = [question for question in questions if question.key not in ledger]
    kept = done = len(questions) - len(todo)
    tokens: int | None = None

    def show() -> None:
        detail = f"{len(failures):,} failed" if failures else ""
        report(Progress(stage, done, len(questions), "answers", kept, tokens, detail))

    show()
    for question, answer in model.answer(todo) if todo else ():
        done += 1
        if isinstance(answer, Failure):
            failures[question.key] = answer
        else:
            ledger.add(question.key, asdict(answer))
            if answer.tokens is not None:
                tokens = (tokens or 0) + answer.tokens
        show()
    return failures


def _answer(entry: Entry | None) -> Answer | None:
    if entry is None:
        return None
    return Answer(**{name: entry.get(name) for name in Answer.__dataclass_fields__})  # type: ignore[arg-type]


def _judge(
    suite: Suite,
    answers: Sequence[tuple[Item, Answer]],
    judge: tuple[Model, Settings] | None,
    ledger: Ledger,
    report: OnProgress,
) -> Iterator[str | Failure | None]:
    """The judge's verdict on each answer, None where there is none to give."""
    if suite.judge is None or judge is None:
        yield from [None] * len(answers)
        return
    model, settings = judge
    questions: list[Question | None] = []
    for item, answer in answers:
        messages = suite.judge(item, answer.text)
        key = key_of(suite.folder, item.id, messages or (), settings, model.identity, "judge")
        questions.append(None if messages is None else Question(key, messages, settings))
    asked = list({question.key: question for question in questions if question is not None}.values())
    failures = _ask(f"{suite.name}, judge", asked, model, ledger, report)
    for question in questions:
        if question is None:
            yield None
        elif (verdict := _answer(ledger.get(question.key))) is not None:
            yield verdict.text
        else:
            yield failures[question.key]
