"""A captioner on HTTP that answers by the crop in the image: well, badly, late or not at all."""

from __future__ import annotations

import base64
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from zlib import crc32

from tests.servers import Handler, QuietServer, serving
from tests.trainer.corpora.captions.made_crops import good_answer

Behaviour = Callable[[int, int], str]  # (number of the crop, how often it was asked before) -> how to answer
ANSWERS = {
    "refuse": ("I'm sorry, but I can't assist with this image.", "stop"),
    "filter": ("", "content_filter"),
    "cut": ("The figure shows a line plot whose", "length"),
    "empty": ("  \n", "stop"),
    "think": ("<think>Is it a plot?</think>\nA plot of one curve.", "stop"),
    "aborted": ("The figure shows", "abort"),
}


class Server(QuietServer):
    """asked: how often each crop was. bodies, keys: of the requests. most: requests at one time."""

    def __init__(self, behaviour: Behaviour) -> None:
        super().__init__(_Handler)
        self.behaviour = behaviour
        self.asked = Counter[int]()
        self.bodies: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()
        self.times: dict[int, list[float]] = {}
        self.most = self._now = 0

    @contextmanager
    def busy(self) -> Iterator[None]:
        with self.lock:
            self._now += 1
            self.most = max(self.most, self._now)
        try:
            yield
        finally:
            with self.lock:
                self._now -= 1


class _Handler(Handler):
    server: Server

    def do_POST(self) -> None:
        with self.server.busy():
            self._answer()

    def _answer(self) -> None:
        body = self.body()
        image = body["messages"][0]["content"][0]["image_url"]["url"]
        content = base64.b64decode(image.partition(";base64,")[2])
        number = int(content.removeprefix(b"crop ")) if content.startswith(b"crop ") else crc32(content) % 49
        with self.server.lock:
            before = self.server.asked[number]
            self.server.asked[number] += 1
            self.server.bodies.append(body)
            self.server.keys.add(self.headers["Authorization"])
            self.server.times.setdefault(number, []).append(time.monotonic())
        how, _, more = self.server.behaviour(number, before).partition(" ")
        if how == "slow":
            time.sleep(float(more or 30))
        if how == "drop":
            self.connection.close()
            return
        if how.isdecimal():  # a status, with Retry-After
            self.send({"error": how}, int(how), **({"Retry-After": more} if more else {}))
            return
        text, finish = ANSWERS.get(how, (good_answer(number), "stop"))
        reply: dict[str, Any] = {"choices": [{"message": {"content": text}, "finish_reason": finish}]}
        if how != "uncounted":
            reply["usage"] = {"prompt_tokens": 300, "completion_tokens": len(text) // 4}
        self.send(reply)


def caption_server(behaviour: Behaviour = lambda number, before: "well") -> AbstractContextManager[Server]:
    return serving(Server(behaviour))
