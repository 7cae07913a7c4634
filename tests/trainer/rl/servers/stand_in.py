"""LMDeploy's replies with the answers of Octavo's engine."""

from __future__ import annotations

import base64
import itertools
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import torch

from tests.trainer.rl.servers import scenario
from tests.trainer.weights.directories import checkpoint
from trainer.config.model import ModelConfig
from trainer.engine.request import Request, Sampling
from trainer.model.decoder import Decoder
from trainer.rl.servers.buckets import Bucket
from trainer.rl.servers.own_engine import OwnEngine


class Server:
    """The replies of LMDeploy 0.18 with the answers of `OwnEngine`, for `serving`. nbytes: of each load."""

    def __init__(self, folder: Path, cfg: ModelConfig, seed: int) -> None:
        model = Decoder(cfg, torch.float32)
        model.init_weights(seed)
        checkpoint(folder, model).write()
        self.engine = OwnEngine(folder)
        self.tags: set[str] = set()
        self.nbytes: list[int] = []
        self.seeds = itertools.count()
        (self.openapi,) = {
            str(one.reply): one.reply for one in scenario.recorded() if one.target == "/openapi.json"
        }.values()

    def __call__(self, method: str, target: str, body: Any) -> tuple[int, Any]:
        path, _, query = target.partition("?")
        replies = {
            "/openapi.json": lambda: self.openapi,
            "/v1/models": lambda: {"data": [{"id": "toy"}]},
            "/metrics": lambda: "process_start_time_seconds 1.5e+09\n",
            "/is_sleeping": lambda: {"is_sleeping": bool(self.tags)},
            "/update_weights_from_ipc": lambda: {"sleeping_tags": sorted(self.tags)},
            "/generate": lambda: self.generate(body),
            "/sleep": self.sleep,
            "/wakeup": lambda: self.wake(query.removeprefix("tags=")),
            "/update_weights": lambda: self.update(body),
            "/abort_request": lambda: None,
        }
        return 200, replies[path]()

    def generate(self, body: Any) -> Any:
        assert not self.tags
        sampling = Sampling(body["temperature"], body["top_k"], body["top_p"], body["min_p"], seed=next(self.seeds))
        request = Request(body["input_ids"], body["max_tokens"], sampling, frozenset(body["stop_token_ids"]))
        (found,) = self.engine.generate([request], deadline_s=60)
        assert found.routes is not None
        pairs = [[float(value), token] for value, token in zip(found.log_probs, found.ids, strict=True)]
        meta = {
            "prompt_tokens": len(found.prompt), "completion_tokens": len(found.ids),
            "finish_reason": {"type": found.finish}, "output_token_logprobs": pairs,
            "output_top_logprobs": [[pair] for pair in pairs], "routed_experts": found.routes.tolist(),
        }  # fmt: skip
        return {"text": "", "output_ids": [*found.ids], "meta_info": meta}

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
