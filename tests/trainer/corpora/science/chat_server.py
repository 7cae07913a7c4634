"""A chat server in a thread that misbehaves on request."""

import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from tests.servers import Handler, QuietServer, serving

Behaviour = Callable[[str, int], str]  # (prompt, how often it was asked before) -> how to answer


class Server(QuietServer):
    def __init__(self, behaviour: Behaviour) -> None:
        super().__init__(_Handler)
        self.behaviour = behaviour
        self.asked: list[str] = []
        self.requests: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()
        self.most = self._now = 0

    @contextmanager
    def busy(self) -> Iterator[None]:
        with self.lock:
            self._now += 1
            self.most = max(self.most, self._now)
        yield
        with self.lock:
            self._now -= 1


class _Handler(Handler):
    server: Server

    def do_POST(self) -> None:
        with self.server.busy():
            self._answer()

    def _answer(self) -> None:
        body = self.body()
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
        if how == "dribble":
            self.send(b"", status, missing=len(content))
            for place in range(len(content)):
                self.wfile.write(content[place : place + 1])
                time.sleep(0.1)
            return
        self.send(content, status, missing=50 if how == "short" else 0)


def chat_server(behaviour: Behaviour = lambda prompt, before: "right") -> AbstractContextManager[Server]:
    return serving(Server(behaviour))
