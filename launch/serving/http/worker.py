"""The one thread that steps the engine, and the answers that arrive from it in the event loop.

The engine belongs to its thread. The event loop sends it requests and cancellations through a queue, and gets tokens
and finished answers back, those of a step together. All other state belongs to the event loop.
"""

from __future__ import annotations

import asyncio
import math
import threading
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from queue import Empty, SimpleQueue
from typing import NamedTuple

import numpy as np

from launch.serving.http.errors import AbortedError, ApiError, refused
from launch.serving.http.kept import KeptAnswers, tokens_of
from parallel.errors import UserError
from trainer.config.errors import print_warning
from trainer.engine.engine import Engine
from trainer.engine.request import Completion, Request, Token

BROKEN = (
    "the model computed log-probabilities that are not numbers, and its answer means nothing; check its weights, or "
    "serve another checkpoint"
)


class Event(NamedTuple):
    """place: of the request among those asked together. token: None for one that only scores its prompt. done: the
    whole answer, with its last token."""

    place: int
    token: Token | None
    done: Completion | None


def _is_broken(event: Event) -> bool:
    """Return True for log-probabilities that are not finite, which JSON cannot write."""
    token, done = event.token, event.done
    found = [] if token is None else [token.log_prob, *(log_prob for _, log_prob in token.alternatives)]
    scored = None if done is None else done.prompt_scores
    return not (
        all(map(math.isfinite, found))
        and (scored is None or (np.isfinite(scored.log_probs).all() and np.isfinite(scored.of_ids).all()))
    )


class Answers:
    """The answers to requests that were asked together, as they arrive. tokens: of each request, as far as they were
    read."""

    def __init__(
        self, requests: Sequence[Request], worker: Worker, session: int | None = None, *, keep: bool = False
    ) -> None:
        self.requests, self.session, self.keep = requests, session, keep
        self.wanted = [*range(len(requests))]  # places of those that the engine answers; others are known
        self.tokens: list[list[Token]] = [[] for _ in requests]
        self.running = len(requests)  # not finished
        self._worker = worker
        self._events: asyncio.Queue[list[Event] | ApiError] = asyncio.Queue()

    async def __aiter__(self) -> AsyncIterator[Event]:
        """Each token and each finished answer. Raises ApiError where the server cannot finish them."""
        unread = len(self.requests)
        while unread:
            events = await self._events.get()
            if isinstance(events, ApiError):
                raise events
            for event in events:
                if event.token is not None:
                    self.tokens[event.place].append(event.token)
                unread -= event.done is not None
                yield event

    async def finished(self) -> list[Completion]:
        """All answers, in the order of the requests."""
        done = {event.place: event.done async for event in self if event.done is not None}
        return [done[place] for place in range(len(self.requests))]

    def cancel(self, reason: ApiError | None = None) -> None:
        """Forget what is not finished; its pages of the cache are free for others. reason: what the reader gets."""
        self._worker.cancel(self, reason)

    def arrive(self, events: list[Event] | ApiError) -> None:
        self._events.put_nowait(events)


class Worker:
    """Steps `engine` in a thread of its own.

    most: requests that may wait or run. kept: answers on disk. on_failure: called in the event loop after what ended
    the thread.
    """

    def __init__(self, engine: Engine, *, most: int, kept: KeptAnswers | None = None) -> None:
        self.engine, self.most, self._kept = engine, most, kept
        self.on_failure: Callable[[], None] | None = None
        self.failure: BaseException | None = None
        self.closing = False
        self._open: set[Answers] = set()
        self._commands: SimpleQueue[tuple[str, Answers | None]] = SimpleQueue()
        self._places: dict[int, tuple[Answers, int]] = {}  # by the engine's numbers; the thread's own
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    @property
    def pending(self) -> int:
        """Requests that wait or run."""
        return sum(answers.running for answers in self._open)

    def start(self) -> None:
        """Call it in the event loop that will ask."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def ask(self, requests: Sequence[Request], session: int | None = None, *, keep: bool = False) -> Answers:
        """Submit requests that the engine's `check` finds no fault with. session: a name by which they can be aborted.
        keep: their answers follow from them, so that those on disk will do.
        Raises ApiError where there is no room for them, or the server is about to end."""
        if self.failure is not None:
            raise ApiError(500, f"the engine failed: {self.failure}")
        if self.closing:
            raise ApiError(503, "the server is shutting down", headers={"Retry-After": "10"})
        if len(requests) > self.most:
            raise ApiError(400, f"{len(requests)} answers in one request; ask for at most {self.most}", param="n")
        if (pending := self.pending) + len(requests) > self.most:
            text = f"{pending} requests wait or run, and at most {self.most} may; try again later"
            raise ApiError(429, text, code="too_many_requests", headers={"Retry-After": "1"})
        if session is not None and any(answers.session == session for answers in self._open):
            raise ApiError(400, f"session_id={session} is in use; use another, or -1", param="session_id")
        answers = Answers(requests, self, session, keep=keep and self._kept is not None)
        known = self._find_known(answers) if answers.keep else {}
        answers.wanted = [place for place in answers.wanted if place not in known]
        self._open.add(answers)
        for events in known.values():
            self._arrive(answers, events)
        if answers.wanted:
            self._commands.put(("submit", answers))
        return answers

    def _find_known(self, answers: Answers) -> dict[int, list[Event]]:
        """The whole answers on disk, by place. Those that cannot be read are computed again."""
        assert self._kept is not None
        known: dict[int, list[Event]] = {}
        for place, request in enumerate(answers.requests):
            try:
                done = self._kept.find(request)
            except (OSError, ValueError, LookupError, TypeError) as error:
                print_warning(f"a kept answer cannot be read: {type(error).__name__}: {error}")
                continue
            if done is not None:
                tokens = tokens_of(done, request, self.engine.decode)
                events = [Event(place, token, done if token is tokens[-1] else None) for token in tokens]
                known[place] = events or [Event(place, None, done)]
        return known

    def cancel(self, answers: Answers, reason: ApiError | None = None) -> None:
        """Nothing happens to answers that are finished."""
        if answers in self._open:
            self._open.discard(answers)
            self._commands.put(("cancel", answers))
            if reason is not None:
                answers.arrive(reason)

    def abort(self, session: int | None) -> None:
        """End the answers of a session, or all for None; their readers get what there is."""
        for answers in [*self._open]:
            if session is None or answers.session == session:
                self.cancel(answers, AbortedError())

    def close(self, reason: ApiError) -> None:
        """Take no more requests, and end those that run with a reason."""
        self.closing = True
        for answers in [*self._open]:
            self.cancel(answers, reason)

    async def stop(self) -> None:
        """End the thread."""
        self.close(ApiError(503, "the server was shut down before the answer was finished"))
        self._commands.put(("stop", None))
        await asyncio.to_thread(self._thread.join)
        if self._kept is not None:
            self._kept.close()

    def _arrive(self, answers: Answers, events: list[Event]) -> None:
        if answers in self._open:
            answers.running -= sum(event.done is not None for event in events)
            if not answers.running:
                self._open.discard(answers)
            answers.arrive(events)

    def _refuse(self, answers: Answers, error: UserError) -> None:
        self.cancel(answers, refused(error))

    def _fail(self, error: BaseException) -> None:
        self.failure = error
        self.close(ApiError(500, f"the engine failed: {error}"))
        if self.on_failure is not None:
            self.on_failure()

    # ---- in the thread ----

    def _run(self) -> None:
        try:
            while self._obey():
                self._send(self.engine.step())
        except BaseException as error:  # whatever it is, every client has to hear of it
            self._loop.call_soon_threadsafe(self._fail, error)

    def _obey(self) -> bool:
        """Carry out what is in the queue; wait where there is nothing else to do. Returns False at the end."""
        while True:
            try:
                command, answers = self._commands.get(block=not self.engine.unfinished)
            except Empty:
                return True
            if answers is None:
                return False
            if command == "submit":
                self._submit(answers)
            else:
                self._forget(answers)

    def _submit(self, answers: Answers) -> None:
        try:
            for place in answers.wanted:
                self._places[self.engine.submit(answers.requests[place])] = answers, place
        except UserError as error:
            self._forget(answers)
            self._loop.call_soon_threadsafe(self._refuse, answers, error)

    def _forget(self, answers: Answers) -> None:
        for number in [number for number, (whose, _) in self._places.items() if whose is answers]:
            del self._places[number]
            self.engine.cancel(number)

    def _send(self, tokens: Sequence[Token]) -> None:
        events: dict[Answers, list[Event]] = defaultdict(list)
        finished = {number: self.engine.result(number) for number in [*self.engine.done]}
        for token in tokens:
            done = finished.pop(token.number, None)
            answers, place = self._places[token.number] if done is None else self._places.pop(token.number)
            events[answers].append(Event(place, token, done))
        for number, completion in finished.items():
            answers, place = self._places.pop(number)
            events[answers].append(Event(place, None, completion))
        for answers, of_answers in events.items():
            if any(_is_broken(event) for event in of_answers):
                self._loop.call_soon_threadsafe(self.cancel, answers, ApiError(500, BROKEN, code="not_finite"))
                continue
            if answers.keep:
                self._keep(answers, of_answers)
            self._loop.call_soon_threadsafe(self._arrive, answers, of_answers)

    def _keep(self, answers: Answers, events: Sequence[Event]) -> None:
        """Put finished answers on disk before they are sent. Without room there the server goes without it."""
        assert self._kept is not None
        for event in events:
            if event.done is not None:
                try:
                    self._kept.add(answers.requests[event.place], event.done)
                except OSError as error:
                    print_warning(f"an answer is not kept: {error}")
