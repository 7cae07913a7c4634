"""A server that judges by a function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.servers import Handler, QuietServer


class Judged(Handler):
    server: JudgeServer

    def do_GET(self) -> None:
        self.send({"data": [{"id": "judge-1"}]})

    def do_POST(self) -> None:
        body = self.body()
        with self.server.lock:
            self.server.bodies.append(body)
            number = len(self.server.bodies)
        reply = self.server.reply(body["messages"][-1]["content"], number)
        if isinstance(reply, int):
            self.send({"error": "busy"}, reply)
            return
        usage = {"prompt_tokens": 100, "completion_tokens": 10}
        self.send({"choices": [{"message": {"content": reply}, "finish_reason": "stop"}], "usage": usage})


class JudgeServer(QuietServer):
    def __init__(self, reply: Callable[[str, int], Any], port: int = 0) -> None:
        super().__init__(Judged, port)
        self.reply, self.bodies = reply, list[Any]()
