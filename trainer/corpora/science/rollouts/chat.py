"""A client of an OpenAI-compatible server's chat completions, over the standard library alone.

http.client and not urllib, which would take a proxy from the environment.
"""

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

from trainer.data.errors import DataError

MAX_REPLY = 8 << 20  # bytes
CONNECT = 10.0  # seconds at most to get a connection
LONGEST_WAIT = 60.0  # seconds between two tries, whatever the server asks for
REFUSED = {401, 403, 404, 405}  # what no other prompt would change


class ServerError(Exception):
    """A request that failed; `again` says whether the same one may succeed later, `wait` when the server says so."""

    def __init__(self, message: str, *, again: bool, wait: float | None = None) -> None:
        super().__init__(message)
        self.again, self.wait = again, wait


class Stopped(Exception):
    """`ChatServer.stop` was called."""


class ChatServer:
    """Asks for completions; safe from several threads.

    url: of the API, such as http://host:8000/v1. timeout: seconds for one try as a whole. A try that may succeed later
    is repeated up to `retries` times, after `backoff` seconds, twice as many each time.
    """

    def __init__(
        self, url: str, model: str, *, api_key: str = "", timeout: float = 120, retries: int = 5, backoff: float = 1.0
    ) -> None:
        parts = urlsplit(url)
        try:
            port = parts.port
        except ValueError:
            port = -1
        if parts.scheme not in ("http", "https") or not parts.hostname or port == -1 or parts.query:
            raise DataError(f"--rollouts {url} is no address of a server; use one such as http://localhost:8000/v1")
        if not api_key.isprintable() or not api_key.isascii():
            raise DataError("the API key holds signs that no header can carry")
        self._secure, self._host, self._port = parts.scheme == "https", parts.hostname, port
        self.address = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"  # without a password
        self._path = parts.path.rstrip("/") + "/chat/completions"
        self.model, self._timeout, self._retries, self._backoff = model, timeout, retries, backoff
        self._headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._stopped = threading.Event()
        self._sockets: set[socket.socket] = set()
        self._lock = threading.Lock()

    def stop(self) -> None:
        """End all requests, and all waiting for the next try."""
        self._stopped.set()
        with self._lock:
            for connected in self._sockets:
                _shut(connected)

    def complete(self, messages: Sequence[Mapping[str, str]], max_tokens: int) -> tuple[str, str]:
        """(content, finish_reason) of the server's reply. Raises ServerError after the last try, Stopped."""
        body = json.dumps({"model": self.model, "messages": list(messages), "max_tokens": max_tokens}).encode()
        for tried in range(self._retries + 1):
            try:
                return self._try(body)
            except ServerError as error:
                if not error.again or tried == self._retries:
                    raise
                wait = error.wait if error.wait is not None else self._backoff * 2**tried
            if self._stopped.wait(min(wait, LONGEST_WAIT)):
                raise Stopped
        raise AssertionError("unreachable")

    def _try(self, body: bytes) -> tuple[str, str]:
        kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
        connection = kind(self._host, self._port, timeout=min(self._timeout, CONNECT))
        ends = time.monotonic() + self._timeout
        try:
            connection.connect()
            # A timeout of the socket alone would wait for ever for a server that sends a byte a minute.
            with self._limited(connection.sock):
                connection.request("POST", self._path, body, self._headers)
                response = connection.getresponse()
                content = response.read(MAX_REPLY + 1)
            if response.length and len(content) <= MAX_REPLY:
                raise http.client.IncompleteRead(content, response.length)
        except (OSError, http.client.HTTPException) as error:
            if self._stopped.is_set():
                raise Stopped from None
            said = (
                f"no answer in {self._timeout:g} s" if time.monotonic() > ends else f"{type(error).__name__}: {error}"
            )
            raise ServerError(said, again=True) from error
        finally:
            connection.close()
        if len(content) > MAX_REPLY:
            raise ServerError(f"a reply of more than {MAX_REPLY} bytes", again=False)
        if response.status != 200:
            said = content[:200].decode("utf-8", "replace").strip()
            if response.status in REFUSED:
                raise DataError(f"the server at {self.address} refuses: {response.status} {response.reason}: {said}")
            again = response.status >= 500 or response.status in (408, 409, 425, 429)
            raise ServerError(f"{response.status} {response.reason}: {said}", again=again, wait=_seconds(response))
        return _content(bytes(content))

    @contextmanager
    def _limited(self, connected: socket.socket) -> Iterator[None]:
        """Shuts a socket when the time for one try is over, or with `stop`."""
        connected.settimeout(self._timeout)
        timer = threading.Timer(self._timeout, _shut, [connected])
        timer.daemon = True
        with self._lock:
            self._sockets.add(connected)
        timer.start()
        try:
            if self._stopped.is_set():
                raise Stopped
            yield
        finally:
            timer.cancel()
            with self._lock:
                self._sockets.discard(connected)


def _shut(connected: socket.socket) -> None:
    with suppress(OSError):  # closed meanwhile
        connected.shutdown(socket.SHUT_RDWR)


def _seconds(response: http.client.HTTPResponse) -> float | None:
    """What the server says in Retry-After, where that is a number."""
    said = response.getheader("Retry-After", "")
    return float(said) if said.isdecimal() else None


def _content(body: bytes) -> tuple[str, str]:
    try:
        choice: Any = json.loads(body)["choices"][0]
        content, finish = choice["message"]["content"], choice.get("finish_reason")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise ServerError(f"no chat completion: {body[:100]!r}", again=True) from error
    if not isinstance(content, str):
        raise ServerError(f"a reply without text: {body[:100]!r}", again=True)
    return content, str(finish)
