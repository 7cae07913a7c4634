"""LMDeploy's replies with the answers of Octavo's engine, in this process or in one of its own."""

from __future__ import annotations

import base64
import itertools
import multiprocessing as mp
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any, Literal

import torch

from tests.distributed.pool import PRELOAD
from tests.trainer.rl.servers import scenario
from tests.trainer.rl.servers.http_server import Cut, serving
from tests.trainer.weights.directories import checkpoint
from trainer.config.model import ModelConfig
from trainer.engine.request import Request, Sampling
from trainer.model.decoder import Decoder
from trainer.rl.servers.buckets import Bucket
from trainer.rl.servers.own_engine import OwnEngine

FAULT = "fault"  # a file in the model's directory, touched at the first request of a fault
Kind = Literal["dead", "hung", "500", "garbage", "truncated", "restarted"]


@dataclass(frozen=True)
class Fault:
    """A failure at requests first .. last to `path`; dead: the process ends; hung: it never answers; restarted: it
    has its first weights again."""

    kind: Kind
    path: str
    first: int
    last: int


def write_model(folder: Path, cfg: ModelConfig, seed: int) -> Path:
    """A directory of random weights."""
    model = Decoder(cfg, torch.float32)
    model.init_weights(seed)
    checkpoint(folder, model).write()
    return folder


class Server:
    """The replies of LMDeploy 0.18 with the answers of `OwnEngine`, for `serving`. nbytes: of each load.
    Draws have the seeds 0, 1, ... after each load, probes none. fault: what goes wrong, and when."""

    def __init__(self, folder: Path, fault: Fault | None = None) -> None:
        self.folder, self.fault = folder, fault
        self.counts: Counter[str] = Counter()
        self.nbytes: list[int] = []
        self.restart()
        (self.openapi,) = {
            str(one.reply): one.reply for one in scenario.recorded() if one.target == "/openapi.json"
        }.values()

    def restart(self) -> None:
        self.engine = OwnEngine(self.folder)
        self.tags: set[str] = set()
        self.seeds = itertools.count()
        self.started = time.time()

    def __call__(self, method: str, target: str, body: Any) -> tuple[int, Any] | None:
        path, _, query = target.partition("?")
        self.counts[path] += 1
        fault = self.fault
        if fault is not None and fault.path == path and fault.first <= self.counts[path] <= fault.last:
            if self.counts[path] == fault.first:
                (self.folder / FAULT).touch()
            if fault.kind == "dead":
                os.kill(os.getpid(), signal.SIGKILL)
            if fault.kind == "hung":
                threading.Event().wait()
            if fault.kind == "500":
                return 500, "Internal Server Error"
            if fault.kind == "garbage":
                return 200, "<html>Bad gateway</html>"
            if fault.kind == "restarted":
                self.restart()
        replies = {
            "/openapi.json": lambda: self.openapi,
            "/v1/models": lambda: {"data": [{"id": "toy"}]},
            "/metrics": lambda: f"process_start_time_seconds {self.started}\n",
            "/is_sleeping": lambda: {"is_sleeping": bool(self.tags)},
            "/update_weights_from_ipc": lambda: {"sleeping_tags": sorted(self.tags)},
            "/generate": lambda: self.generate(body),
            "/sleep": self.sleep,
            "/wakeup": lambda: self.wake(query.removeprefix("tags=")),
            "/update_weights": lambda: self.update(body),
            "/abort_request": lambda: self.abort(body),
        }
        reply = replies[path]()
        if fault is not None and fault.kind == "truncated" and fault.first <= self.counts[fault.path] <= fault.last:
            return (200, Cut(reply)) if fault.path == path else (200, reply)
        return 200, reply

    def generate(self, body: Any) -> Any:
        assert not self.tags
        seed = next(self.seeds) if body["temperature"] else 0
        sampling = Sampling(body["temperature"], body["top_k"], body["top_p"], body["min_p"], seed=seed)
        request = Request(body["input_ids"], body["max_tokens"], sampling, frozenset(body["stop_token_ids"]))
        (found,) = self.engine.generate([request], deadline_s=60)
        routes = None if found.routes is None else found.routes.tolist()
        pairs = [[float(value), token] for value, token in zip(found.log_probs, found.ids, strict=True)]
        meta = {
            "prompt_tokens": len(found.prompt), "completion_tokens": len(found.ids),
            "finish_reason": {"type": found.finish}, "output_token_logprobs": pairs,
            "output_top_logprobs": [[pair] for pair in pairs], "routed_experts": routes,
        }  # fmt: skip
        return {"text": "", "output_ids": [*found.ids], "meta_info": meta}

    def abort(self, body: Any) -> None:
        if body.get("abort_all") and not self.tags:
            self.engine.pause()
            self.engine.resume()

    def sleep(self) -> None:
        self.tags = {"weights", "kv_cache"}
        self.engine.pause()
        self.engine.start_load()
        self.nbytes.append(0)

    def wake(self, tag: str) -> None:
        self.tags -= {tag}
        if not self.tags:
            self.engine.resume()

    def update(self, body: Any) -> None:
        message = ForkingPickler.loads(base64.b64decode(body["serialized_named_tensors"]))
        if message["metadata"]:
            function, arguments = message["flattened_tensor"]
            flat = function(*arguments)
            names = tuple(one.name for one in message["metadata"])
            self.engine.take(Bucket(names, tuple(tuple(one.shape) for one in message["metadata"]), flat))
            self.nbytes[-1] += flat.nbytes
        if body["finished"]:
            self.engine.finish_load(len(self.nbytes))
            self.seeds = itertools.count()


def _serve(folder: Path, fault: Fault | None, port: int, pipe: Connection) -> None:
    torch.set_num_threads(1)
    with serving(Server(folder, fault), port) as url:
        pipe.send(url)
        threading.Event().wait()


@contextmanager
def own_server(folder: Path, fault: Fault | None = None, port: int = 0) -> Iterator[str]:
    """A server in a process of its own; its address."""
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    mine, its = context.Pipe()
    process = context.Process(target=_serve, args=(folder, fault, port, its), daemon=True)
    process.start()
    its.close()
    try:
        yield mine.recv()
    finally:
        process.kill()
        process.join()
