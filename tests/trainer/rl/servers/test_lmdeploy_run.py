"""A run whose rollouts come over HTTP: the LMDeploy client, and our engine with weights of its own behind a server."""

from __future__ import annotations

import base64
import itertools
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainer.rl.servers import scenario
from tests.trainer.rl.servers.http_server import serving
from tests.trainer.rl.toy import run_toy, toy_config
from tests.trainer.weights.directories import checkpoint
from trainer.config.compose import compose
from trainer.config.errors import ConfigError
from trainer.config.model import ModelConfig
from trainer.engine.request import Request, Sampling
from trainer.model.decoder import Decoder
from trainer.rl.servers.buckets import Bucket
from trainer.rl.servers.own_engine import OwnEngine
from trainer.run.process import train

WORDS = ("rl.engine=lmdeploy", "rl.exact=false", "rl.url=http://localhost:9")
FOPE = "model.positions=fope"  # a model of router groups is published with it


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


@pytest.mark.slow
def test_a_run_trains_on_rollouts_of_a_server_that_gets_its_weights(tmp_path):
    """The server starts with other weights; with the run's, in bf16, log-probabilities agree to their rounding."""
    cfg = toy_config(tmp_path / "run", FOPE).model
    server = Server(tmp_path / "server", cfg, seed=99)
    with serving(server) as url:
        steps = run_toy(tmp_path / "run", FOPE, *WORDS[:2], f"rl.url={url}", "rl.bucket_mb=1", "rl.concurrent=1")
    assert [step["step"] for step in steps] == [1, 2, 3]
    assert sum(step["tokens"] for step in steps) > 0
    model = Decoder(cfg, torch.float32)
    tables = sum(one.numel() for one in model.rotary.buffers())
    whole = 2 * sum(one.numel() for one in model.parameters()) + 4 * tables  # bf16, fp32
    assert server.nbytes == [whole] * 4  # before each step, and before the last evaluation
    for step in steps:
        assert step["sync/bytes"] == whole
        assert step["sync/seconds"] > 0
        assert step["staleness/max"] == 0
        if step["tokens"]:
            assert 0 < step["mismatch/max"] < 0.05


def test_a_server_that_does_not_answer_is_named(tmp_path, capsys):
    with serving(lambda *_: None) as url:
        assert train(toy_config(tmp_path / "run", *WORDS[:2], f"rl.url={url}")) == 2
    assert url in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("words", "where"),
    [
        (("rl.engine=lmdeploy", "rl.exact=false"), "rl.url"),
        ((*WORDS[:2], "rl.url=localhost"), "rl.url"),
        ((*WORDS[:2], "rl.url=http://localhost:port"), "rl.url"),
        ((WORDS[0], "rl.exact=true", WORDS[2]), "rl.exact"),
        ((WORDS[2],), "rl.url"),
        (("rl.bucket_mb=64",), "rl.bucket_mb"),
        ((*WORDS, "rl.bucket_mb=0"), "rl.bucket_mb"),
    ],
)
def test_keys_of_a_server_are_checked_before_the_run(words, where):
    with pytest.raises(ConfigError) as caught:
        compose(["recipe=rl_toy", *words], world_size=1)
    (fault,) = caught.value.faults
    assert fault.where == where
    assert fault.allowed
