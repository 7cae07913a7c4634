"""A client of an OpenAI-compatible server, over httpx.

Requests run on one event loop in a thread of its own: only there can a time limit span a whole request, from the
connection to the last byte, and `stop` end requests in any state.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import CancelledError
from functools import partial
from typing import Any, ClassVar, TypeVar

import httpx

from parallel.errors import UserError
from trainer.storage.json_text import read_json

T = TypeVar("T")
MAX_REPLY = 8 << 20  # bytes
SAID = 400  # bytes of a reply in an error
CONNECT = 10.0  # seconds at most to get a connection
LONGEST_WAIT = 60.0  # seconds between two tries, even if the server asks for more
REFUSED = {401, 403, 404, 405}  # another request would not change these
RETRIED = {408, 409, 425, 429}  # and all from 500
ADDRESS = "an address such as http://localhost:8000/v1"


class ServerError(Exception):
    """A request that failed. again: the same request may succeed later, after `wait` seconds if the server says so.
    status: of HTTP, of a reply that is an error, whose body is `reply`."""

    def __init__(
        self, message: str, *, again: bool, wait: float | None = None, status: int | None = None, reply: bytes = b""
    ) -> None:
        super().__init__(message)
        self.again, self.wait, self.status, self.reply = again, wait, status, reply


class Stopped(Exception):
    """`Server.stop` was called."""


class Server:
    """Asks a server; safe to use from several threads.

    url: the API, such as http://host:8000/v1. timeout: seconds for one try as a whole. A try that may succeed later is
    repeated up to `retries` times, after `backoff` seconds, doubled each time. Proxies and keys in the environment are
    ignored. Raises `error` for an address or a key that cannot be used.
    """

    error: ClassVar[type[UserError]] = UserError
    option: str = "URL"  # that gives the address
    key_option: ClassVar[str] = "--api-key-env"

    def __init__(
        self, url: str, *, api_key: str = "", timeout: float = 120, retries: int = 5, backoff: float = 1.0
    ) -> None:
        try:
            parsed = httpx.URL(url)
        except httpx.InvalidURL:
            parsed = httpx.URL("")
        if parsed.scheme not in ("http", "https") or not parsed.host or parsed.query:
            text = f"{self.option} {url} is not the address of a server; use {ADDRESS}"
            raise self.error(text, where=self.option, value=url, allowed=ADDRESS)
        if not api_key.isprintable() or not api_key.isascii():
            allowed = "a key of printable ASCII characters"
            text = "the API key has characters that an HTTP header cannot carry"
            raise self.error(text, where=self.key_option, allowed=allowed)
        self.address = str(parsed.copy_with(userinfo=b""))  # without a password
        self._timeout, self._retries, self._backoff = timeout, retries, backoff
        self._client = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
            timeout=httpx.Timeout(None, connect=min(timeout, CONNECT)),
            limits=httpx.Limits(max_connections=None),
            trust_env=False,
        )
        self._base = str(parsed).rstrip("/")
        self._stopped = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="chat", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End all requests and all waits for the next try, in whatever thread they are; later ones raise Stopped."""
        self._stopped = True
        self._loop.call_soon_threadsafe(self._cancel_all)

    def close(self) -> None:
        """Close the connections, after `stop` and when no thread asks any more."""
        asyncio.run_coroutine_threadsafe(self._client.aclose(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def post(self, path: str, body: Mapping[str, Any], read: Callable[[Any], T]) -> T:
        """Return what `read` makes of the JSON of the server's reply to a body sent to `path` under the address.

        read: raises ServerError, LookupError, TypeError, AttributeError or ValueError for another kind of reply.
        Raises ServerError after the last try, Stopped, and `error` if the server refuses all requests."""
        return self._repeat("POST", path, body, read)

    def get(self, path: str, read: Callable[[Any], T]) -> T:
        """As `post`, without a body."""
        return self._repeat("GET", path, None, read)

    def _repeat(self, method: str, path: str, body: Mapping[str, Any] | None, read: Callable[[Any], T]) -> T:
        for tried in range(self._retries + 1):
            try:
                return read_reply(self._run(lambda: self._try(method, path, body)), read)
            except ServerError as error:
                if not error.again or tried == self._retries:
                    raise
                wait = error.wait if error.wait is not None else self._backoff * 2**tried
            self._run(partial(asyncio.sleep, min(wait, LONGEST_WAIT)))
        raise AssertionError("unreachable")

    def _run(self, work: Callable[[], Awaitable[T]]) -> T:
        if self._stopped:
            raise Stopped
        try:
            return asyncio.run_coroutine_threadsafe(self._unless_stopped(work), self._loop).result()
        except CancelledError:
            raise Stopped from None

    async def _unless_stopped(self, work: Callable[[], Awaitable[T]]) -> T:
        if self._stopped:  # since the caller looked
            raise asyncio.CancelledError
        return await work()

    def _cancel_all(self) -> None:
        for task in asyncio.all_tasks(self._loop):
            task.cancel()

    async def _try(self, method: str, path: str, body: Mapping[str, Any] | None) -> bytes:
        started = time.monotonic()
        try:
            async with (
                asyncio.timeout(self._timeout),
                self._client.stream(method, f"{self._base}/{path}", json=body) as response,
            ):
                content = bytearray()
                async for part in response.aiter_bytes():
                    content += part
                    if len(content) > MAX_REPLY:
                        raise ServerError(f"a reply of more than {MAX_REPLY} bytes", again=False)
        except TimeoutError as error:
            raise ServerError(f"no answer in {time.monotonic() - started:.1f} s", again=True) from error
        except httpx.HTTPError as error:
            cause = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            raise ServerError(cause, again=True) from error
        if response.status_code != 200:
            self._raise_for(response, bytes(content))
        return bytes(content)

    def _raise_for(self, response: httpx.Response, reply: bytes) -> None:
        said = reply[:SAID].decode("utf-8", "replace").strip()
        status = f"{response.status_code} {response.reason_phrase}: {said}"
        if response.status_code in REFUSED:
            allowed = f"check the address, --model and {self.key_option}"
            text = f"the server at {self.address} rejects requests: {status}"
            raise self.error(text, where=self.option, value=status, allowed=allowed)
        again = response.status_code >= 500 or response.status_code in RETRIED
        after = response.headers.get("Retry-After", "")
        wait = float(after) if after.isdecimal() else None
        raise ServerError(status, again=again, wait=wait, status=response.status_code, reply=reply)


def read_reply(body: bytes, read: Callable[[Any], T]) -> T:
    try:
        # an answer that was cut inside a character is an answer: the next try would be cut there too
        return read(read_json(body, halves="replace"))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ServerError(f"not the reply of such a server: {body[:100]!r}", again=True) from error
