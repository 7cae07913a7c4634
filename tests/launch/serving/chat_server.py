"""A server of chat completions in a thread, which notes what it is asked and misbehaves on request."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from tests.servers import Handler, QuietServer, serving

Behaviour = Callable[[str, int], Any]
"""(text of the last message, how often it was asked before) -> what to answer: a text, a status, (status, message),
seconds to wait before an answer, or None to close the connection."""


class ChatServer(QuietServer):
    version: str | None = None  # of all models

    def __init__(self, behaviour: Behaviour, models: dict[str, int | None]) -> None:
        super().__init__(_Handler)
        self.behaviour, self.models = behaviour, models
        self.asked: Counter[str] = Counter()
        self.bodies: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()


class _Handler(Handler):
    server: ChatServer

    def do_GET(self) -> None:
        listed = [
            {"id": name, **({} if context is None else {"max_model_len": context})}
            for name, context in self.server.models.items()
        ]
        if self.server.version is not None:
            listed = [{**card, "version": self.server.version} for card in listed]
        self.send({"data": listed})

    def do_POST(self) -> None:
        body = self.body()
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
            self.send({"error": {"message": "as asked"}}, how)
        elif isinstance(how, tuple):
            self.send({"error": {"message": how[1]}}, how[0])
        else:
            if isinstance(how, float):
                time.sleep(how)
                how = "late e"
            message = {"role": "assistant", "content": how, "reasoning_content": "thought"}
            finish = "length" if "cut" in how else "stop"
            usage = {"prompt_tokens": 3, "completion_tokens": len(how.split())}
            self.send({"choices": [{"message": message, "finish_reason": finish}], "usage": usage})


def chat_server(
    behaviour: Behaviour, models: dict[str, int | None] | None = None
) -> AbstractContextManager[ChatServer]:
    return serving(ChatServer(behaviour, {"m": None} if models is None else models))
