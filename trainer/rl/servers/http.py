"""One server of a rollout engine over HTTP: JSON requests with a deadline each, and failures that name the server.

Requests run on one event loop in a thread of its own, so that any thread can ask, and one can pause what another waits
for.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Coroutine, Mapping
from concurrent.futures import CancelledError
from typing import Any, NamedTuple, TypeVar

import httpx

from parallel.errors import UserError
from trainer.rl.rollout.protocol import Rollout, RolloutError
from trainer.rl.servers.errors import IncompleteError, RestartedError

T = TypeVar("T")
CONNECT_S = 10.0  # at most, for a connection
SAID = 300  # characters of a reply in an error
ADDRESS = "an address such as http://localhost:23333"


class Failed(Exception):
    """A request that failed. status: of HTTP, None where there was no reply. lost: the connection broke or was refused:
    the process behind it may have ended. late: its deadline passed."""

    def __init__(self, text: str, *, status: int | None = None, lost: bool = False, late: bool = False) -> None:
        super().__init__(text)
        self.status, self.lost, self.late = status, lost, late


class Restarted(Failed):
    """The process that answers is not the one that the weights were sent to, or need not be."""


def no_answer(engine: str, failed: Mapping[int, Failed], finished: Mapping[int, Rollout]) -> RolloutError:
    """The error of requests that failed, by their places, beside those that did not."""
    number = min(failed)
    error, count = failed[number], len(failed) + len(finished)
    others = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
    text = f"{engine}: request {number}{others} of {count} has no answer: {error}"
    if any(isinstance(one, Restarted) for one in failed.values()):
        remedy = "load whole weights again"
        return RestartedError(f"{text}; {remedy}", where=engine, value=number, allowed=remedy)
    remedy = "ask again for these" if error.late else "check the server's log"
    return IncompleteError(f"{text}; {remedy}", where=engine, value=number, allowed=remedy, finished=finished)


class Reply(NamedTuple):
    """value: of the JSON; the text where the server says that it is something else."""

    status: int
    value: Any

    def said(self) -> str:
        """The message of an error reply, on one line."""
        value = self.value
        if isinstance(value, Mapping):  # {"message": ...}, {"error": {"message": ...}}, {"detail": ...}
            value = value.get("message") or value.get("error") or value.get("detail") or value
            value = value.get("message", value) if isinstance(value, Mapping) else value
        return " ".join(str(value).split())[:SAID]


def address_of(url: str) -> str:
    """An address without the password in it, for errors. Raises httpx.InvalidURL."""
    return str(httpx.URL(url).copy_with(userinfo=b"")).rstrip("/")


class Connection:
    """A server's address. option: names it in errors. headers: of every request. Proxies and keys in the environment
    are ignored. Raises UserError for an address that cannot be used."""

    def __init__(self, url: str, *, option: str, api_key: str = "") -> None:
        try:
            parsed = httpx.URL(url)
        except httpx.InvalidURL:
            parsed = httpx.URL("")
        if parsed.scheme not in ("http", "https") or not parsed.host or parsed.query or parsed.fragment:
            text = f"{option}={url} is not the address of a server; use {ADDRESS}"
            raise UserError(text, where=option, value=url, allowed=ADDRESS)
        self.address = address_of(url)
        self._base = str(parsed).rstrip("/")
        self._client = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
            timeout=httpx.Timeout(None, connect=CONNECT_S),
            limits=httpx.Limits(max_connections=None),
            trust_env=False,
        )
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="rollout", daemon=True)
        self._thread.start()

    def close(self) -> None:
        if self._loop.is_closed():
            return
        self._loop.call_soon_threadsafe(self._cancel_all)
        asyncio.run_coroutine_threadsafe(self._client.aclose(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _cancel_all(self) -> None:
        for task in asyncio.all_tasks(self._loop):
            task.cancel()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work` in the loop and return its result. Raises Failed where `close` ends it."""
        try:
            return asyncio.run_coroutine_threadsafe(work, self._loop).result()
        except CancelledError:
            raise Failed("the connection was closed") from None

    async def ask(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None,
        *,
        timeout_s: float,
        query: Mapping[str, Any] | None = None,
    ) -> Reply:
        """One try. query: parameters of the address; a list repeats its parameter. timeout_s: from the connection to
        the last byte. Raises Failed without a reply."""
        started = time.monotonic()
        try:
            async with asyncio.timeout(max(0.0, timeout_s)):
                reply = await self._client.request(method, f"{self._base}{path}", json=body, params=query or None)
        except TimeoutError:
            raise Failed(f"no reply in {time.monotonic() - started:.1f} s", late=True) from None
        except httpx.HTTPError as error:
            cause = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            raise Failed(cause, lost=True) from None
        try:
            value = json.loads(reply.content)
        except ValueError:
            value = reply.content.decode("utf-8", "replace")
        return Reply(reply.status_code, value)
