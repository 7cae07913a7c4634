"""A chat server in a thread that misbehaves on request."""

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Behaviour = Callable[[str, int], str]  # (prompt, how often it was asked before) -> how to answer


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, behaviour: Behaviour) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.behaviour = behaviour
        self.asked: list[str] = []
        self.requests: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()
        self.most = self._now = 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    @contextmanager
    def busy(self) -> Iterator[None]:
        with self.lock:
            self._now += 1
            self.most = max(self.most, self._now)
        yield
        with self.lock:
            self._now -= 1


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *words: object) -> None:
        pass

    def do_POST(self) -> None:
        with self.server.busy():
            self._answer()

    def _answer(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = body["messages"][-1]["content"]
        final = re.search(r"on record is: (.*)\nState", body["messages"][0]["content"], re.S)
        assert final is not None
        with self.server.lock:
            before = self.server.asked.count(prompt)
            self.server.asked.append(prompt)
            self.server.requests.append({"path": self.path, **body})
            self.server.keys.add(self.headers["Authorization"])
        how = self.server.behaviour(prompt, before)
        reply, finish = f"It is known.\nFinal answer: {final[1]}", "stop"
        if how == "drop":
            self.connection.close()
            return
        if how == "hang":
            time.sleep(30)
        if how == "wrong":
            reply = "It is known.\nFinal answer: 17 furlongs"
        if how == "cut":
            reply, finish = "It is kno", "length"
        if how == "silent":
            reply = "I do not know."
        content = json.dumps({"choices": [{"message": {"content": reply}, "finish_reason": finish}]}).encode()
        status = int(how) if how.isdigit() else 200
        if how == "garbage":
            content = b"<html>" + content
        self.send_response(status)
        if status == 429:
            self.send_header("Retry-After", "0")
        self.send_header("Content-Length", str(len(content) + (50 if how == "short" else 0)))
        self.end_headers()
        if how == "dribble":
            for place in range(len(content)):
                self.wfile.write(content[place : place + 1])
                time.sleep(0.1)
        self.wfile.write(content)


@contextmanager
def chat_server(behaviour: Behaviour = lambda prompt, before: "right") -> Iterator[Server]:
    server = Server(behaviour)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
