"""Short answers expanded by a server into chains of reasoning, kept only if they end in the record's answer."""

import hashlib
import json
import re
from collections import Counter, deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from trainer.corpora.science.records import number
from trainer.corpora.science.rollouts.chat import ChatServer, ServerError
from trainer.corpora.science.rollouts.ledger import Entry, Ledger
from trainer.corpora.science.tasks import Task
from trainer.corpora.science.texts import Text
from trainer.data.errors import DataError

INSTRUCTIONS = (
    "Explain step by step, in a few sentences, how to arrive at the answer to the question. The answer on record is: "
    "{final}\nState only facts that you are sure of. End with one line that reads 'Final answer: ' followed by the "
    "answer on record, with its unit if it has one, and nothing else."
)
FORMS = {"qa", "choice", "ranking"}  # a completion is one continuous text, with no place for a chain
AHEAD = 4  # texts in progress per concurrent request, so that a slow one does not delay the others
GIVE_UP = 20  # failures in a row: the server is unavailable, and all remaining texts would keep their short answers
FINAL = re.compile(r"^[\W_]*final answer[\W_]*?[:=]\s*(.+?)\s*$", re.I | re.M)
WRAPPING = re.compile(r"^[\s\"'`*$]+|[\s\"'`*$]+$")
THINKING = re.compile(r"</?think>")


class Rollouts:
    """Expands the texts of tasks. `counts` has the outcomes: asked, found (in the ledger), expanded, disagreed, cut off
    (by max_tokens), failed. All but the expanded keep their short answer."""

    def __init__(self, server: ChatServer, ledger: Ledger, *, concurrency: int, max_tokens: int) -> None:
        self._server, self._ledger, self._concurrency, self._max_tokens = server, ledger, concurrency, max_tokens
        self._failures, self._why = 0, ""
        self.counts: Counter[str] = Counter()

    def expand(self, made: Iterable[Text]) -> Generator[Text, None, None]:
        """The same texts in the same order. Raises DataError if the server refuses or is unavailable; its answers so
        far are in the ledger, and the next start resumes from there."""
        waiting: deque[tuple[Text, Future[tuple[str, Entry | None]] | None]] = deque()
        pool = ThreadPoolExecutor(self._concurrency)
        try:
            for text in made:
                task = text.task if text.form in FORMS else None
                waiting.append((text, pool.submit(self._entry, text, task) if task else None))
                if len(waiting) > AHEAD * self._concurrency:
                    yield self._done(*waiting.popleft())
            while waiting:
                yield self._done(*waiting.popleft())
        finally:
            self._server.stop()
            pool.shutdown(cancel_futures=True)
            self._server.close()

    def _done(self, text: Text, future: "Future[tuple[str, Entry | None]] | None") -> Text:
        if future is None or text.task is None:
            return text
        outcome, entry = future.result()
        self.counts[outcome] += 1
        self._failures = self._failures + 1 if outcome == "failed" else 0
        if self._failures == GIVE_UP:
            raise DataError(
                f"the server at {self._server.address} failed {GIVE_UP} times in a row ({self._why}); run the command "
                f"again to resume from the {len(self._ledger):,} answers in the ledger",
                where="--rollouts",
                value=self._why,
                allowed="check the server and run the command again",
            )
        if entry is None:
            return text
        if entry["finish"] == "length":
            self.counts["cut off"] += 1
            return text
        chain = verified(text.task, entry["reply"])
        self.counts["disagreed" if chain is None else "expanded"] += 1
        return text if chain is None else replace(text, text=text.task.reasoned(chain), model=self._server.model)

    def _entry(self, text: Text, task: Task) -> tuple[str, Entry | None]:
        """(outcome, the ledger's entry) for a text."""
        messages = [
            {"role": "system", "content": INSTRUCTIONS.format(final=task.finals[0])},
            {"role": "user", "content": task.prompt},
        ]
        key = request_key(text, messages, self._server.model)
        entry = self._ledger.get(key)
        if entry is not None and (entry["finish"] != "length" or entry["max_tokens"] >= self._max_tokens):
            return "found", entry
        try:
            reply, finish = self._server.complete(messages, self._max_tokens)
        except ServerError as error:
            self._why = str(error)
            return "failed", None
        entry = {"model": self._server.model, "prompt": task.prompt, "max_tokens": self._max_tokens}
        entry |= {"reply": reply, "finish": finish}
        self._ledger.add(key, entry)
        return "asked", entry


def request_key(text: Text, messages: list[dict[str, str]], model: str) -> str:
    """The ledger's key for an answer: a hash of the record, the prompt and the model."""
    request: list[Any] = [text.table, text.key, text.name, messages, model]
    return hashlib.sha256(json.dumps(request, ensure_ascii=False).encode()).hexdigest()


def verified(task: Task, reply: str) -> str | None:
    """The chain of a reply without its last line; None if that line is not the record's answer."""
    lines = list(FINAL.finditer(reply))
    if not lines or not any(_agrees(lines[-1][1], final) for final in task.finals):
        return None
    chain = THINKING.sub("", reply[: lines[-1].start()]).strip()
    return chain or None


def _plain(text: str) -> str:
    """The answer without quotes, emphasis and period around it, and with one kind of space and minus sign."""
    text = WRAPPING.sub("", " ".join(text.replace("\u2212", "-").split()))
    return WRAPPING.sub("", text.removesuffix(".")).casefold()


def _agrees(answer: str, final: str) -> bool:
    """True if an answer is right: the same words, or the same number in the same unit, however it is written."""
    answer, final = _plain(answer), _plain(final)
    if answer == final or answer.strip("()[]. ") == final.strip("()[]. "):
        return True
    value, _, unit = final.partition(" ")
    given, _, given_unit = answer.partition(" ")
    right, found = number(value), number(given.replace(",", ""))
    return right is not None and right == found and unit.replace(" ", "") == given_unit.replace(" ", "")
