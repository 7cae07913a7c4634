"""A server of chat completions in a thread, which notes what it is asked and misbehaves on request."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Behaviour = Callable[[str, int], Any]
"""(text of the last message, how often it was asked before) -> what to answer: a text, a status, (status, message),
seconds to wait before an answer, or None to close the connection."""


class ChatServer(ThreadingHTTPServer):
    daemon_threads = True

    version: str | None = None  # of all models

    def __init__(self, behaviour: Behaviour, models: dict[str, int | None]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.behaviour, self.models = behaviour, models
        self.asked: Counter[str] = Counter()
        self.bodies: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a client that was killed


class Handler(BaseHTTPRequestHandler):
    server: ChatServer

    def log_message(self, *words: object) -> None:
        pass

    def do_GET(self) -> None:
        listed = [
            {"id": name, **({} if context is None else {"max_model_len": context})}
            for name, context in self.server.models.items()
        ]
        if self.server.version is not None:
            listed = [{**card, "version": self.server.version} for card in listed]
        self._send(200, {"data": listed})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        content = body["messages"][-1]["content"]
        text = content if isinstance(content, str) else content[-1]["text"]
        with self.server.lock:
            before = self.server.asked[text]
            self.server.asked[text] += 1
            self.server.bodies.append(body)
            self.server.keys.add(self.headers["Authorization"])
        how = self.server.behaviour(text, before)
        if how is None:
            self.connection.close()
        elif isinstance(how, int):
            self._send(how, {"error": {"message": "as asked"}})
        elif isinstance(how, tuple):
            self._send(how[0], {"error": {"message": how[1]}})
        else:
            if isinstance(how, float):
                time.sleep(how)
                how = "late e"
            message = {"role": "assistant", "content": how, "reasoning_content": "thought"}
            finish = "length" if "cut" in how else "stop"
            usage = {"prompt_tokens": 3, "completion_tokens": len(how.split())}
            self._send(200, {"choices": [{"message": message, "finish_reason": finish}], "usage": usage})

    def _send(self, status: int, reply: Any) -> None:
        content = json.dumps(reply).encode()
        self.send_response(status)
        if status == 429:
            self.send_header("Retry-After", "0")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@contextmanager
def chat_server(behaviour: Behaviour, models: dict[str, int | None] | None = None) -> Iterator[ChatServer]:
    server = ChatServer(behaviour, {"m": None} if models is None else models)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
