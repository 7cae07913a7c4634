"""The server as a process: its socket, signals, and the end.

SIGTERM and Ctrl-C: no request is taken any more; those that run have `grace` seconds to finish, and are then ended with
an error that says so. A second Ctrl-C ends them at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Callable, Iterator
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from launch.serving.http.errors import ApiError
from launch.serving.http.worker import Worker
from trainer.config.errors import CommandError

AFTER = 5.0  # seconds after the grace period for connections whose clients do not read


def listen(host: str, port: int) -> socket.socket:
    """A bound socket. Raises CommandError for an address that cannot be used."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        found = socket.socket(family, kind, protocol)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            found.bind(address)
        except OSError:
            found.close()
            raise
    except socket.gaierror as error:
        remedy = "a name or an address of this machine"
        raise CommandError(
            f"--host={host}: {error.strerror}; use {remedy}", where="--host", value=host, allowed=remedy
        ) from None
    except OSError as error:
        remedy = "another --port, or --port 0 for a free one"
        text = f"--port={port}: {error.strerror} on {host}; use {remedy}"
        raise CommandError(text, where="--port", value=port, allowed=remedy) from None
    return found


class Server(uvicorn.Server):
    """uvicorn's, with our end. `signal`: that ended it."""

    def __init__(self, config: uvicorn.Config, worker: Worker, grace: float, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._worker, self._grace, self._ready = worker, grace, ready
        self.signal: int | None = None
        worker.on_failure = self._stop

    def _stop(self) -> None:
        self.should_exit = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.signal is not None and sig == signal.SIGINT:
            self._grace = 0
        self.signal = self.signal or sig
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._worker.closing = True
        ending = asyncio.ensure_future(self._end_running())
        await super().shutdown(sockets)
        ending.cancel()

    async def _end_running(self) -> None:
        waited = 0.0
        while waited < self._grace:
            await asyncio.sleep(0.1)
            waited += 0.1
        self._worker.close(ApiError(503, "the server was shut down before the answer was finished"))


def serve(app: ASGIApp, worker: Worker, listening: socket.socket, *, grace: float, ready: Callable[[], None]) -> int:
    """Serve until a signal or a failure of the engine. ready: called once requests are answered. Returns the exit code:
    0 after SIGTERM, 130 after Ctrl-C, 1 after a failure."""
    config = uvicorn.Config(
        app,
        http="h11",
        ws="none",
        loop="asyncio",
        lifespan="on",
        access_log=False,
        log_level="warning",
        server_header=False,
        timeout_graceful_shutdown=int(grace + AFTER) + 1,
    )
    server = Server(config, worker, grace, ready)
    asyncio.run(server.serve([listening]))
    if worker.failure is not None:
        raise worker.failure
    return 130 if server.signal == signal.SIGINT else 0
