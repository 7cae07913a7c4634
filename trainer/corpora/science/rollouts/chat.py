"""A client for the chat completions of an OpenAI-compatible server, over httpx.

Requests run on one event loop in a thread of its own: only there can a time limit span a whole request, from the
connection to the last byte, and `stop` end requests in any state.
"""

import asyncio
import json
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import CancelledError
from functools import partial
from typing import Any, TypeVar

from trainer.data.errors import DataError

try:
    import httpx
except ImportError as error:
    raise DataError(
        "--rollouts needs the package 'httpx', which is not installed: pip install -e '.[science]'",
        where="--rollouts",
        allowed="pip install -e '.[science]'",
    ) from error

T = TypeVar("T")
MAX_REPLY = 8 << 20  # bytes
CONNECT = 10.0  # seconds at most to get a connection
LONGEST_WAIT = 60.0  # seconds between two tries, even if the server asks for more
REFUSED = {401, 403, 404, 405}  # another prompt would not change these
RETRIED = {408, 409, 425, 429}  # and all from 500
ADDRESS = "an address such as http://localhost:8000/v1"


class ServerError(Exception):
    """A request that failed. again: the same request may succeed later, after `wait` seconds if the server says so."""

    def __init__(self, message: str, *, again: bool, wait: float | None = None) -> None:
        super().__init__(message)
        self.again, self.wait = again, wait


class Stopped(Exception):
    """`ChatServer.stop` was called."""


class ChatServer:
    """Asks for completions; safe to use from several threads.

    url: the API, such as http://host:8000/v1. timeout: seconds for one try as a whole. A try that may succeed later is
    repeated up to `retries` times, after `backoff` seconds, doubled each time. Proxies and keys in the environment are
    ignored. Raises DataError for an address or a key that cannot be used.
    """

    def __init__(
        self, url: str, model: str, *, api_key: str = "", timeout: float = 120, retries: int = 5, backoff: float = 1.0
    ) -> None:
        try:
            parsed = httpx.URL(url)
        except httpx.InvalidURL:
            parsed = httpx.URL("")
        if parsed.scheme not in ("http", "https") or not parsed.host or parsed.query:
            raise DataError(
                f"--rollouts {url} is not the address of a server; use {ADDRESS}",
                where="--rollouts",
                value=url,
                allowed=ADDRESS,
            )
        if not api_key.isprintable() or not api_key.isascii():
            raise DataError(
                "the API key has characters that an HTTP header cannot carry",
                where="--api-key-env",
                allowed="a key of printable ASCII characters",
            )
        self.address = str(parsed.copy_with(userinfo=b""))  # without a password
        self.model, self._timeout, self._retries, self._backoff = model, timeout, retries, backoff
        self._client = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
            timeout=httpx.Timeout(None, connect=min(timeout, CONNECT)),
            limits=httpx.Limits(max_connections=None),
            trust_env=False,
        )
        self._endpoint = str(parsed).rstrip("/") + "/chat/completions"
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

    def complete(self, messages: Sequence[Mapping[str, str]], max_tokens: int) -> tuple[str, str]:
        """(content, finish_reason) of the server's reply. Raises ServerError after the last try, Stopped, and DataError
        if the server refuses."""
        body = {"model": self.model, "messages": list(messages), "max_tokens": max_tokens}
        for tried in range(self._retries + 1):
            try:
                return self._run(lambda: self._try(body))
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

    async def _try(self, body: Mapping[str, Any]) -> tuple[str, str]:
        started = time.monotonic()
        try:
            async with (
                asyncio.timeout(self._timeout),
                self._client.stream("POST", self._endpoint, json=body) as response,
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
            self._raise_for(response, content[:200].decode("utf-8", "replace").strip())
        return _content(bytes(content))

    def _raise_for(self, response: httpx.Response, said: str) -> None:
        status = f"{response.status_code} {response.reason_phrase}: {said}"
        if response.status_code in REFUSED:
            raise DataError(
                f"the server at {self.address} rejects requests: {status}",
                where="--rollouts",
                value=status,
                allowed="check the address, --model and --api-key-env",
            )
        again = response.status_code >= 500 or response.status_code in RETRIED
        after = response.headers.get("Retry-After", "")
        raise ServerError(status, again=again, wait=float(after) if after.isdecimal() else None)


def _content(body: bytes) -> tuple[str, str]:
    try:
        choice: Any = json.loads(body)["choices"][0]
        content, finish = choice["message"]["content"], choice.get("finish_reason")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise ServerError(f"not a chat completion: {body[:100]!r}", again=True) from error
    if not isinstance(content, str):
        raise ServerError(f"a reply without text: {body[:100]!r}", again=True)
    return content, str(finish)
