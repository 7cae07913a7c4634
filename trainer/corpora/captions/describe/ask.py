"""Crops asked about side by side, each once, with every answer in a ledger before the next is taken."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field

from trainer.chat.server import ServerError, Stopped
from trainer.corpora.captions.crops import Crop
from trainer.corpora.captions.describe.budget import Budget, Cost, cost_of
from trainer.corpora.captions.describe.captioner import Captioner, Endpoint, Reply
from trainer.corpora.captions.describe.outcomes import CUT, REJECTED, failure_of
from trainer.data.errors import DataError
from trainer.data.hashing import text_key
from trainer.storage.ledger import Entry, Ledger

AHEAD = 4  # crops taken per concurrent request, so that one slow answer does not hold up the others
SAID = 400  # characters of an error in the ledger
GIVE_UP = 20  # failures of a captioner in a row: it is unavailable, and asking on would only take time


@dataclass(frozen=True)
class Question:
    """A crop with its prompt and the name of its captioner's route."""

    crop: Crop
    prompt: str
    route: str


@dataclass
class Asked:
    """counts: asked, found (in the ledger), failed (after all tries). keys: of the ledger, and failures: reasons of the
    failed, by crop id."""

    counts: Counter[str] = field(default_factory=Counter)
    keys: dict[str, str] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Pending:
    question: Question
    reserved: Cost


def key_of(question: Question, endpoint: Endpoint) -> str:
    """The ledger's key: a hash of the crop, its pixels, the prompt, the model and its temperature. The address does not
    count, and neither does max_tokens: an answer that was cut is asked for again with a higher one."""
    image = hashlib.sha256(question.crop.image).hexdigest()
    facts = [question.crop.id, image, question.prompt, endpoint.model, endpoint.temperature]
    return hashlib.sha256(json.dumps(facts, ensure_ascii=False).encode()).hexdigest()


def is_answered(entry: Entry | None, endpoint: Endpoint) -> bool:
    """Return True unless the captioner has to be asked, for the first time or for more of a cut answer."""
    return entry is not None and (failure_of(entry) != CUT or entry["max_tokens"] >= endpoint.max_tokens)


class Asking:
    """Captioners by route, with a pool of threads each."""

    def __init__(self, captioners: Mapping[str, Captioner], budget: Budget) -> None:
        self.captioners, self.budget = captioners, budget
        self._pools = {
            name: ThreadPoolExecutor(one.endpoint.concurrency, thread_name_prefix=f"ask-{name}")
            for name, one in captioners.items()
        }
        self._most = AHEAD * sum(one.endpoint.concurrency for one in captioners.values())
        self._in_a_row = Counter[str]()
        self._waiting: dict[Future[Reply | ServerError | None], _Pending] = {}

    def close(self) -> None:
        """End what is under way, and close the connections."""
        for one in self.captioners.values():
            one.stop()
        for pool in self._pools.values():
            pool.shutdown(cancel_futures=True)
        for one in self.captioners.values():
            one.close()

    def ask(self, questions: Iterable[Question], ledger: Ledger) -> Asked:
        """Ask what the ledger does not have; `AHEAD` crops per concurrent request are in memory.

        Raises DataError if a captioner refuses or is unavailable, or if the budget is spent. The answers so far are in
        the ledger then, those of requests that were under way included."""
        asked = Asked()
        try:
            for question in questions:
                endpoint = self.captioners[question.route].endpoint
                key = asked.keys[question.crop.id] = key_of(question, endpoint)
                if is_answered(ledger.get(key), endpoint):
                    asked.counts["found"] += 1
                    continue
                while len(self._waiting) >= self._most:
                    self._collect(asked)
                while (reserved := None if self.budget.late() else self.budget.reserve(endpoint)) is None:
                    if self.budget.late() or not self._waiting:
                        raise self._spent()
                    self._collect(asked)
                future = self._pools[question.route].submit(self._describe, question, key, ledger)
                self._waiting[future] = _Pending(question, reserved)
            while self._waiting:
                self._collect(asked)
        except DataError:
            self._drain(asked)
            raise
        return asked

    def _collect(self, asked: Asked) -> None:
        done, _ = wait(self._waiting, return_when=FIRST_COMPLETED)
        for future in done:
            self._settle(self._waiting.pop(future), future.result(), asked)

    def _drain(self, asked: Asked) -> None:
        """Wait for the requests that were sent, as their answers are paid for, and forget those that were not."""
        for future, pending in self._waiting.items():
            if future.cancel():
                self.budget.settle(pending.reserved, Cost(), None)
        self._waiting = {future: pending for future, pending in self._waiting.items() if not future.cancelled()}
        while self._waiting:
            with suppress(DataError, Stopped):
                self._collect(asked)

    def _describe(self, question: Question, key: str, ledger: Ledger) -> Reply | ServerError | None:
        """Ask and record, in a thread of a pool: it asks nothing else before the answer is on the disk. None where the
        time had passed before the request was sent."""
        if self.budget.late():
            return None
        crop, captioner = question.crop, self.captioners[question.route]
        endpoint, seed = captioner.endpoint, text_key(question.crop.id) % 2**31
        facts: Entry = {"crop": crop.id, "route": question.route, "model": endpoint.model}
        facts["max_tokens"] = endpoint.max_tokens
        try:
            reply = captioner.describe(question.prompt, crop.image, crop.format, seed)
        except ServerError as error:
            if not error.again:
                rejected = asdict(Reply("", REJECTED, False, None, None))
                ledger.add(key, {**facts, **rejected, "why": str(error)[:SAID]})
            return error
        cost = cost_of(endpoint, reply.tokens_in, reply.tokens_out)
        ledger.add(key, {**facts, **asdict(reply), "cost": asdict(cost)})
        return reply

    def _settle(self, pending: _Pending, reply: Reply | ServerError | None, asked: Asked) -> None:
        question = pending.question
        if isinstance(reply, Reply):
            cost = cost_of(self.captioners[question.route].endpoint, reply.tokens_in, reply.tokens_out)
            self.budget.settle(pending.reserved, cost, reply.tokens_in)
        else:
            self.budget.settle(pending.reserved, Cost(), None)
            if reply is None:
                raise self._spent()
            if reply.again:
                self._fail(question, str(reply), asked)
                return
        asked.counts["asked"] += 1
        self._in_a_row[question.route] = 0

    def _fail(self, question: Question, why: str, asked: Asked) -> None:
        asked.counts["failed"] += 1
        captioner = self.captioners[question.route]
        asked.failures[question.crop.id] = f"{why} ({captioner.address})"
        self._in_a_row[question.route] += 1
        if self._in_a_row[question.route] == GIVE_UP:
            captioner.stop()  # the other captioners' answers are waited for
            remedy = "check the server and run the command again"
            text = f"the captioner at {captioner.address} failed {GIVE_UP} times in a row ({why}); {remedy}"
            raise DataError(text, where=captioner.option, value=why, allowed=remedy)

    def _spent(self) -> DataError:
        budget, spent = self.budget, self.budget.spent
        remedy = "run the command again with a larger budget"
        text = f"the budget is spent: {spent.requests:,} requests, {spent.tokens:,} tokens, {spent.money:,.2f} of money"
        if budget.late():
            remedy = "run the command again"
            text = f"the time of {budget.seconds:g} s has passed"
        return DataError(f"{text}; {remedy}", where="budget", value=asdict(spent), allowed=remedy)


@contextmanager
def asking(captioners: Mapping[str, Captioner], budget: Budget) -> Iterator[Asking]:
    made = Asking(captioners, budget)
    try:
        yield made
    finally:
        made.close()
