"""LMDeploy's api_server as a rollout engine."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from parallel.errors import one_of
from trainer.engine.request import Request, RequestError, Sampling
from trainer.rl.rollout.protocol import Rollout, RolloutError
from trainer.rl.servers.errors import fault
from trainer.rl.servers.http import Connection, Failed, Reply, Restarted, no_answer
from trainer.rl.servers.lmdeploy_api import (
    PROBED,
    VERSIONS,
    are_log_probs,
    are_rounded,
    body_of,
    faults_of,
    finds_prefixes,
    other_model,
    probed,
    process_of,
    read_rollout,
    version_of,
)
from trainer.rl.servers.routes import RayStore, Store

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.config.model import ModelConfig
    from trainer.rl.servers.buckets import Bucket, Sync
    from trainer.rl.servers.senders import Sender

T = TypeVar("T")
CONTROL_S = 60.0  # for requests that generate nothing
AGAIN = {409, 429, 500, 502, 503, 504}  # the same request may succeed later
UNAVAILABLE = {429, 502, 503, 504}  # the same, where a 500 is the server's answer to what was asked
BACKOFF_S = 0.5
POLL_S = 0.1
CHECK_S = 1.0  # at least, for the look at the process behind the answers


class LMDeployEngine:
    """Implements `RolloutEngine` and `Receiver` for a server of LMDeploy 0.18, PyTorch back end.

    A change of weights is: abort, sleep at level 2 (which drops weights and KV cache), wake the weights, buckets, the
    empty last bucket, wake the cache. A load that fails leaves the server asleep, where it answers nothing, until a
    whole load has succeeded. Requests that generate nothing are idempotent and repeated, but those of `WeightGroup`.

    url: of the server. model: that the server has to serve, as far as answers show it; None: any. version: of its
    weights at its start. routes: ask for experts. concurrency: requests side by side. retries: of one request, in its
    deadline. bucket_mb: of weights in one message, MiB. distributed: weights go through a process group with the
    server's workers, which may be on other machines. store: finds routes by their key, where the workers are Ray's.
    control_s: seconds for each request that generates nothing, repetitions included; a sync has one for each bucket.
    Raises RolloutError for a server that does not answer, of a version that is not known, or without a flag that
    rollouts need.
    """

    def __init__(
        self,
        url: str,
        *,
        model: ModelConfig | None = None,
        version: int = 0,
        routes: bool = True,
        api_key: str = "",
        concurrency: int = 256,
        retries: int = 3,
        bucket_mb: int = 512,
        distributed: bool = False,
        control_s: float = CONTROL_S,
        store: Store | None = None,
        option: str = "rl.url",
    ) -> None:
        self.version = version
        self.last_sync: Sync | None = None
        self._expected = model
        self._routes, self._retries, self._control_s = routes, retries, control_s
        self._concurrency, self._bucket_bytes = concurrency, bucket_mb << 20
        self._store: Store = store if store is not None else RayStore()
        self._paused, self._running, self._lock = False, 0, threading.Lock()
        self._checked, self._loading = False, False
        self._incomplete = ""  # why the server has no whole weights
        self._distributed = distributed
        self._sender: Sender | None = None  # once weights are sent
        self._server = Connection(url, option=option, api_key=api_key)
        self.name = f"LMDeploy at {self._server.address}"
        try:
            self._connect()
        except BaseException:
            self._server.close()
            raise

    # ---- connecting ----

    def _connect(self) -> None:
        self._check_version()
        self.model = self._read("/v1/models", lambda value: str(value["data"][0]["id"]))
        self._process = self._started()
        if not self._asleep():  # a server that was started empty has nothing to probe before its first weights
            self._check_flags()

    def _check_version(self) -> None:
        reply = self._control("GET", "/openapi.json", allowed="start it without --disable-fastapi-docs")
        self.server_version = version_of(reply.value)
        if self.server_version is None:
            known = tuple(VERSIONS)
            raise fault(self.name, "a server of an unknown version", None, f"use {one_of(known)}")

    def _check_flags(self) -> None:
        """Find out what the server was started with, from how it answers one token."""
        probe = Request([1, 1], 1, Sampling(temperature=0.0))
        reply = self._control(
            "POST",
            "/generate",
            body_of(probe, routes=self._routes, top_logprobs=PROBED),
            allowed="start it with --logprobs-mode raw_logprobs --enable-return-routed-experts",
        )
        try:
            values = probed(reply.value)
            if not are_log_probs(values):
                allowed = "start it with --logprobs-mode raw_logprobs"
                raise fault(self.name, "log-probabilities that do not sum to at most 1", "--logprobs-mode", allowed)
            if are_rounded(values):
                allowed = """start it with --hf-overrides '{"fp32_lm_head": true}'"""
                raise fault(self.name, "log-probabilities in 16 bits", "--hf-overrides", allowed)
            found = read_rollout(reply.value, probe, self.version, routes=self._routes, store=self._store)
            other = None if self._expected is None else other_model(reply.value, found.routes, self._expected)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise fault(self.name, f"its answer to a probe cannot be used: {error}", "probe") from None
        if other is not None:
            raise fault(self.name, f"it serves another model: {other}", "model", "start it with the run's model")
        reply = self._reply("POST", "/abort_request", {"abort_all": False, "session_id": -2})
        if reply.status == 501:
            allowed = "start it with --enable-abort-handling"
            raise fault(self.name, "requests cannot be aborted", "--enable-abort-handling", allowed)
        self._checked = True

    def _started(self) -> str | None:
        """The time at which the server's process started; None for one without metrics."""
        return process_of(self._reply("GET", "/metrics").value)

    # ---- requests that generate nothing ----

    def _reply(self, method: str, path: str, body: Any = None, *, repeat: bool = True, **query: Any) -> Reply:
        """Raises RolloutError without a reply."""
        sent = None if method == "GET" else body or {}
        end = time.monotonic() + self._control_s
        for tried in range(self._retries + 1):
            wait = BACKOFF_S * 2**tried
            last = not repeat or tried == self._retries or time.monotonic() + wait >= end
            try:
                asked = self._server.ask(method, path, sent, timeout_s=end - time.monotonic(), query=query)
                reply = self._server.run(asked)
                if last or reply.status not in UNAVAILABLE:
                    return reply
            except Failed as error:
                if last or not error.lost:
                    text = f"{method} {path} failed: {error}"
                    raise fault(self.name, text, path, "check that the server runs") from None
            time.sleep(wait)
        raise AssertionError("unreachable")

    def _control(self, method: str, path: str, body: Any = None, *, allowed: str | None = None, **query: Any) -> Reply:
        """As `_reply`, and raises RolloutError for a status other than 200."""
        reply = self._reply(method, path, body, **query)
        if reply.status != 200:
            raise fault(self.name, f"{method} {path} was refused: {reply.status} {reply.said()}", path, allowed)
        return reply

    def _read(self, path: str, read: Callable[[Any], T]) -> T:
        """The value that `read` finds in a reply. Raises RolloutError for one of another kind, as a proxy may send."""
        reply = self._control("GET", path)
        try:
            return read(reply.value)
        except (ValueError, LookupError, TypeError, AttributeError):
            text = f"GET {path} was answered by something else: {reply.said()}"
            raise fault(self.name, text, path, "check the address, and proxies before the server") from None

    def _asleep(self) -> bool:
        return self._read("/is_sleeping", lambda value: bool(value["is_sleeping"]))

    def _tags(self) -> set[str]:
        """The parts that sleep: weights, kv_cache. Asked after /wakeup, which answers 200 whatever it does."""
        return self._read("/update_weights_from_ipc", lambda value: {*value["sleeping_tags"]})

    def _expect_tags(self, wanted: set[str], after: str) -> None:
        if (found := self._tags()) != wanted:
            text = (
                f"{one_of(sorted(found)) or 'nothing'} sleeps after {after}, not {one_of(sorted(wanted)) or 'nothing'}"
            )
            raise fault(self.name, text, after, "check the server's log")

    # ---- RolloutEngine ----

    def generate(self, requests: Sequence[Request], *, deadline_s: float) -> list[Rollout]:
        """Raises RequestError before anything is sent for what LMDeploy cannot serve as asked: texts as stops, media,
        scores of prompts. The sampling's seed is not used: there is no field for it. An answer may also end at the
        end tokens of the served model. Raises IncompleteError, with the answers that are there, where others are
        not, and RestartedError where the server's process is not, or no longer, the one that has the weights."""
        if faults := [one for number, request in enumerate(requests) for one in faults_of(request, number)]:
            raise RequestError(faults)
        if self._incomplete:
            raise fault(self.name, self._incomplete, "generate", "load whole weights, then resume")
        found = self._server.run(self._all(requests, time.monotonic() + deadline_s))
        failed = {number: error for number, error in enumerate(found) if isinstance(error, Failed)}
        if failed:
            finished = {place: one for place, one in enumerate(found) if isinstance(one, Rollout)}
            raise no_answer(self.name, failed, finished)
        return [one for one in found if isinstance(one, Rollout)]

    async def _all(self, requests: Sequence[Request], deadline: float) -> list[Rollout | Failed]:
        """An answer or a failure for each. All are of one process, or there is a `Restarted` among them: connections
        that break show only those restarts at which one was in use."""
        gate = asyncio.Semaphore(self._concurrency)

        async def one(request: Request) -> Rollout | Failed:
            try:
                async with gate:
                    return await self._one(request, deadline)
            except Failed as error:
                return error

        if self._paused:
            return [_nothing(request) for request in requests]
        failure = await self._other_process(deadline)
        if failure is None or failure.lost:  # requests are repeated where it is lost
            found = await asyncio.gather(*(one(request) for request in requests))
            failure = await self._other_process(max(deadline, time.monotonic() + CHECK_S))
            if not isinstance(failure, Restarted):
                return found
        return [failure for _ in requests]

    async def _one(self, request: Request, deadline: float) -> Rollout:
        body = body_of(request, routes=self._routes)
        for tried in range(self._retries + 1):
            with self._lock:
                if self._paused:  # what has not started ends without tokens
                    return _nothing(request)
                self._running += 1
            try:
                return await self._try(request, body, deadline)
            except Failed as error:
                wait = BACKOFF_S * 2**tried
                again = error.lost or (error.status in AGAIN)
                if not again or tried == self._retries or time.monotonic() + wait >= deadline:
                    raise
                lost = error.lost
            finally:
                with self._lock:
                    self._running -= 1
            await asyncio.sleep(wait)
            if lost:
                await self._require_same_process(deadline)
        raise AssertionError("unreachable")

    async def _try(self, request: Request, body: dict[str, Any], deadline: float) -> Rollout:
        version = self.version
        reply = await self._server.ask("POST", "/generate", body, timeout_s=deadline - time.monotonic())
        if reply.status != 200:
            raise Failed(f"{reply.status} {reply.said()}", status=reply.status)
        try:  # routes under a key come from a store, which may hang
            async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                return await asyncio.to_thread(
                    read_rollout, reply.value, request, version, routes=self._routes, store=self._store
                )
        except TimeoutError:
            raise Failed("its routes were not read by the deadline", late=True) from None
        except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
            raise Failed(f"a reply that cannot be used: {type(error).__name__}: {error}") from None

    async def _require_same_process(self, deadline: float) -> None:
        """Raises Failed if the server that answers now need not be the process that the weights were sent to."""
        if isinstance(failure := await self._other_process(deadline), Restarted):
            raise failure
        if self._process is None:  # a server without metrics
            raise Restarted(
                "the connection broke, and a server without metrics may have been restarted with other weights"
            )

    async def _other_process(self, deadline: float) -> Failed | None:
        """None where the process that answers is the one that the weights were sent to."""
        try:
            reply = await self._server.ask("GET", "/metrics", None, timeout_s=deadline - time.monotonic())
        except Failed as error:
            return error
        if process_of(reply.value) == self._process:
            return None
        if reply.status in AGAIN:
            return Failed(f"{reply.status} {reply.said()}", status=reply.status, lost=True)
        return Restarted("the server was restarted and has other weights")

    def pause(self) -> None:
        with self._lock:
            self._paused = True
        deadline = time.monotonic() + self._control_s
        # A client that was killed may have left requests behind, which the server still works on.
        self._control("POST", "/abort_request", {"abort_all": True})
        # A request that reaches the server after an abort is not among those it ends: repeat until none runs.
        while self._running:
            self._control("POST", "/abort_request", {"abort_all": True})
            until = min(deadline, time.monotonic() + 10 * POLL_S)
            while self._running and time.monotonic() < until:
                time.sleep(POLL_S / 10)
            if self._running and time.monotonic() >= deadline:
                text = f"{self._running} requests still run {self._control_s:.0f} s after they were aborted"
                raise fault(self.name, text, "pause", "check the server's log")

    def load(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """LMDeploy drops the old weights before it takes new ones: after a failure it has none, answers nothing, and
        the next whole `load` makes it whole again."""
        from trainer.rl.servers.buckets import load_into

        self.last_sync = load_into([self], weights, version, self._bucket_bytes)

    def resume(self) -> None:
        if self._incomplete:
            raise fault(self.name, self._incomplete, "resume", "load whole weights first")
        if self._asleep():
            self._control("POST", "/wakeup", tags=["kv_cache"])
            self._expect_tags(set(), "/wakeup?tags=kv_cache")
        if not self._checked:
            self._check_version()
            self._check_flags()
        with self._lock:
            self._paused = False

    def close(self) -> None:
        if self._sender is not None:
            self._sender.close()
        self._server.close()

    # ---- Receiver ----

    def start_load(self) -> None:
        if not self._paused:
            raise fault(self.name, "weights change only while the engine is paused", "load", "call pause first")
        self._refuse_prefix_cache()
        self._incomplete = f"it has no whole weights since the load after version {self.version} started"
        self._during("start of a load", self._sleep)

    def _sleep(self) -> None:
        self._control("POST", "/sleep", level=2)
        self._control("POST", "/wakeup", tags=["weights"])
        self._expect_tags({"kv_cache"}, "/wakeup?tags=weights")
        if (process := self._started()) != self._process:  # it may have been started with other flags
            self._process, self._checked = process, False
            self._sending().forget()

    def take(self, bucket: Bucket) -> None:
        names = f"the bucket from {bucket.names[0]} to {bucket.names[-1]}"
        self._during(names, lambda: self._sending().send(bucket))

    def _sending(self) -> Sender:
        if self._sender is None:
            from trainer.rl.servers.senders import Handles, WeightGroup

            once = partial(self._control, repeat=False)  # what is repeated would be received twice
            group = partial(WeightGroup, once, self.name, self._server.address, self._control_s)
            self._sender = group() if self._distributed else Handles(self._control)
        return self._sender

    def finish_load(self, version: int) -> None:
        def end() -> None:
            self._sending().finish()
            self._expect_tags({"kv_cache"}, "the last bucket")
            if self._started() != self._process:
                text = "the server was restarted in the middle of it"
                raise fault(self.name, text, "load", "load whole weights again")

        self._during("the empty last bucket", end)
        self.version, self._incomplete = version, ""

    def _during(self, what: str, work: Callable[[], None]) -> None:
        try:
            work()
        except RolloutError as error:
            text = f"{what} failed, and the server sleeps without whole weights: {error}"
            self._incomplete = text
            raise RolloutError(text, where=self.name, value=error.value, allowed="load whole weights again") from None

    def _refuse_prefix_cache(self) -> None:
        """Its table of prefixes outlives a sleep, although the keys and values that it points to do not."""
        if finds_prefixes(self._reply("GET", "/metrics").value):
            allowed = "start it without --enable-prefix-caching"
            raise fault(self.name, "prefixes of old weights would be found again", "--enable-prefix-caching", allowed)


def _nothing(request: Request) -> Rollout:
    """A rollout that was aborted before its first token."""
    return Rollout(tuple(request.prompt), (), np.zeros(0, np.float32), None, np.zeros(0, np.int64), "abort")
