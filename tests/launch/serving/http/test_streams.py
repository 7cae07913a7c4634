"""Streams whose clients leave or read slowly, one request at a time as uvicorn passes it on."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

from launch.serving.http.app import build
from launch.serving.http.model import Served
from tests.launch.serving import tiny_server

Message = dict[str, Any]


def stream(server: Served, after: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]) -> None:
    """A request for a long answer. after: what arrives from the client behind the request."""
    body = json.dumps({"prompt": "kalo", "max_tokens": 900, "ignore_eos": True, "stream": True}).encode()
    arriving = [{"type": "http.request", "body": body, "more_body": False}]
    scope = {
        "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1", "method": "POST",
        "path": "/v1/completions", "query_string": b"", "headers": [(b"content-type", b"application/json")],
    }  # fmt: skip

    async def receive() -> Message:
        return arriving.pop() if arriving else await after()

    async def scenario() -> None:
        server.worker.start()
        try:
            await asyncio.wait_for(build(server)(scope, receive, send), 30)
            assert server.worker.pending == 0
        finally:
            await server.worker.stop()
        assert server.worker.engine.pages.available == server.worker.engine.pages.count

    asyncio.run(scenario())


def test_a_client_that_leaves_before_the_first_event_ends_its_answer():
    async def gone() -> Message:
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        await asyncio.sleep(1)  # the socket takes no more

    stream(tiny_server.served(), gone, send)


def test_a_slow_reader_is_sent_that_the_time_is_over():
    server, sent = tiny_server.served(limits=tiny_server.Limits(seconds=0.2)), []

    async def stays() -> Message:
        await asyncio.sleep(60)
        raise AssertionError

    async def send(message: Message) -> None:
        sent.append(message)
        while message.get("body") and server.worker.pending:  # reads the first event after the end
            await asyncio.sleep(0.01)

    stream(server, stays, send)
    *events, last = [message["body"].decode() for message in sent if message.get("body")]
    assert events
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "timeout"
    assert sent[-1] == {"type": "http.response.body", "body": b"", "more_body": False}
