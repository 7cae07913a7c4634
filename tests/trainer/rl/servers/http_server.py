"""Small HTTP servers for tests of clients: one that answers by a function, one that records what another answers, and
one that repeats what was recorded."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.reduction import ForkingPickler
from typing import Any

import httpx


@dataclass
class Exchange:
    """server: the name of the one that answered. target: path and query. reply: JSON, or text."""

    server: str
    method: str
    target: str
    body: Any
    status: int
    reply: Any

    @property
    def key(self) -> str:
        return key_of(self.server, self.method, self.target, self.body)


def key_of(server: str, method: str, target: str, body: Any) -> str:
    """The same for requests that mean the same: a bucket's pickle is compared by what it holds."""
    if isinstance(body, dict) and "serialized_named_tensors" in body:
        message = ForkingPickler.loads(base64.b64decode(body["serialized_named_tensors"]))
        held = [(m.name, [*m.shape], str(m.dtype), m.start_idx, m.end_idx, m.numel) for m in message["metadata"]]
        data = message["flattened_tensor"][1][0] if held else b""
        body = {**body, "serialized_named_tensors": [held, hashlib.sha256(data).hexdigest()]}
    return json.dumps([server, method, target, body], sort_keys=True)


Answer = Callable[[str, str, Any], "tuple[int, Any] | None"]  # method, target, body; None: close the connection


@dataclass
class Cut:
    """A reply whose second half never comes."""

    reply: Any


@contextmanager
def serving(answer: Answer, port: int = 0) -> Iterator[str]:
    """A server that answers what the function returns; its address. port: 0 for any."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_one(self) -> None:
            sent = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            found = answer(self.command, self.path, json.loads(sent) if sent else None)
            if found is None:
                self.close_connection = True
                return
            status, reply = found
            cut = isinstance(reply, Cut)
            reply = reply.reply if isinstance(reply, Cut) else reply
            text = reply if isinstance(reply, str) else json.dumps(reply)
            self.send_response(status)
            self.send_header("Content-Type", "text/plain" if isinstance(reply, str) else "application/json")
            self.send_header("Content-Length", str(len(text.encode())))
            self.end_headers()
            self.wfile.write(text.encode()[: len(text) // 2 if cut else None])
            self.close_connection = self.close_connection or cut

        do_GET = do_POST = handle_one

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def recording(name: str, url: str, exchanges: list[Exchange], keep: Callable[[str, Any], Any]) -> Iterator[str]:
    """A server that forwards to another and writes down what it answers. keep: of a reply to a path."""

    def answer(method: str, target: str, body: Any) -> tuple[int, Any]:
        found = httpx.request(method, url + target, json=body, timeout=60, trust_env=False)
        try:
            reply = found.json()
        except ValueError:
            reply = found.text
        exchanges.append(Exchange(name, method, target, body, found.status_code, keep(target, reply)))
        return found.status_code, reply

    with serving(answer) as made:
        yield made


@contextmanager
def repeating(name: str, exchanges: list[Exchange], unknown: list[str]) -> Iterator[str]:
    """A server that answers as was recorded, in the order of equal requests; others are added to `unknown`."""
    waiting: dict[str, list[Exchange]] = {}
    for exchange in exchanges:
        waiting.setdefault(exchange.key, []).append(exchange)

    def answer(method: str, target: str, body: Any) -> tuple[int, Any]:
        key = key_of(name, method, target, body)
        if key not in waiting:
            unknown.append(key)
            return 404, "not recorded"
        left = waiting[key]
        one = left.pop(0) if len(left) > 1 else left[0]
        return one.status, one.reply

    with serving(answer) as made:
        yield made


def as_json(exchanges: list[Exchange]) -> str:
    """One exchange a line."""
    return "[\n" + ",\n".join(json.dumps(asdict(one)) for one in exchanges) + "\n]\n"
