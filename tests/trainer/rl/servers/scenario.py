"""Questions to LMDeploy's servers, asked when exchanges are recorded, and again when they are repeated.

python -m tests.trainer.rl.servers.scenario   records lmdeploy_exchanges.json anew; needs the environment of
                                              `make test-peers`
"""

from __future__ import annotations

import json
import re
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import torch
from torch import Tensor

from tests.trainer.rl.servers.http_server import Exchange, as_json, recording
from trainer.engine.request import Request, Sampling
from trainer.rl.rollout.protocol import Rollout, RolloutError
from trainer.rl.servers.lmdeploy import LMDeployEngine
from trainer.rl.servers.lmdeploy_api import PATHS, VERSIONS, body_of

FILE = Path(__file__).with_name("lmdeploy_exchanges.json")
GREEDY = Sampling(temperature=0.0)
QUESTIONS = [Request([5, 6, 7], 8, GREEDY), Request([9, 10, 11, 12], 6, GREEDY, frozenset({0}))]
LONG = Request([30, 31], 500, GREEDY)


def recorded() -> list[Exchange]:
    return [Exchange(**one) for one in json.loads(FILE.read_text())]


def keep(target: str, reply: Any) -> Any:
    """The part of a reply that a client reads, and that is the same in every run."""
    if target == "/openapi.json":
        schemas = reply["components"]["schemas"]
        names = next(iter(VERSIONS.values()))
        return {
            "paths": {path: {} for path in sorted(PATHS & reply["paths"].keys())},
            "components": {
                "schemas": {
                    name: {"properties": {field: {} for field in schemas[name]["properties"]}} for name in names
                }
            },
        }
    if target == "/v1/models":
        return {"data": [{"id": one["id"]} for one in reply["data"]]}
    if target == "/metrics" and isinstance(reply, str):
        return "\n".join(re.findall(r"^(?:process_start_time_seconds|lmdeploy:prefix_cache_hit_rate).*", reply, re.M))
    return reply


def changed() -> Iterator[tuple[str, Tensor]]:
    """Two tensors of the model, one a bucket of their own when buckets are of 1 KiB or less."""
    yield "model.norm.weight", torch.linspace(0.5, 2, 32).to(torch.bfloat16)
    yield "model.layers.0.input_layernorm.weight", torch.linspace(2, 0.5, 32).to(torch.bfloat16)


def unknown() -> Iterator[tuple[str, Tensor]]:
    yield "model.norm.wait", torch.ones(32, dtype=torch.bfloat16)


def ask(urls: dict[str, str]) -> dict[str, Any]:
    """All questions. urls: of the servers "full", "bare" and "logits"."""
    found: dict[str, Any] = {}
    engine = LMDeployEngine(urls["full"], version=3, bucket_mb=0)
    found["connected"] = (engine.server_version, engine.model)
    found["answers"] = plain(engine.generate(QUESTIONS, deadline_s=60))
    stop = found["answers"][0][0][4]
    found["stopped"] = plain(engine.generate([Request([5, 6, 7], 8, GREEDY, frozenset({stop}))], deadline_s=60))

    aborted: list[Rollout] = []
    thread = threading.Thread(target=lambda: aborted.extend(engine.generate([LONG], deadline_s=60)))
    thread.start()
    time.sleep(0.3)
    engine.pause()
    thread.join()
    found["aborted"] = aborted[0]

    found["unknown"] = error_of(lambda: engine.load(unknown(), 4))
    found["without weights"] = error_of(engine.resume)
    engine.load(changed(), 5)
    found["asleep"] = httpx.post(
        f"{urls['full']}/generate", json=body_of(QUESTIONS[0], routes=True), trust_env=False
    ).status_code
    engine.resume()
    found["loaded"] = plain(engine.generate(QUESTIONS, deadline_s=60))
    found["sync"] = engine.last_sync
    engine.close()
    for name in ("bare", "logits"):
        found[name] = error_of(lambda name=name: LMDeployEngine(urls[name]))
    found["no abort"] = raw(urls["bare"], "/abort_request", {"abort_all": True})
    body = body_of(QUESTIONS[0], routes=True)
    traps = {
        "empty": {**body, "input_ids": []},
        "too long": {**body, "input_ids": [5] * 600},
        "no tokens": {**body, "max_tokens": 0},
        "hot": {**body, "temperature": 3.0},
        "both": {**body, "prompt": "a"},
        "not ids": {**body, "input_ids": ["a"]},
        "another server's fields": {**body, "sampling_params": {"temperature": 3.0}, "max_new_tokens": 1},
    }
    found |= {name: raw(urls["full"], "/generate", body) for name, body in traps.items()}
    found["no routes"] = raw(urls["bare"], "/generate", {**body, "return_logprob": False})
    found["wrong tag"] = raw(urls["full"], "/wakeup?tags=weights,kv_cache", {})
    found["level 3"] = raw(urls["full"], "/sleep?level=3", {})
    return found


def raw(url: str, target: str, body: Any) -> int:
    return httpx.post(url + target, json=body, timeout=60, trust_env=False).status_code


def plain(rollouts: list[Rollout]) -> list[Any]:
    return [
        (list(one.ids), one.log_probs.tolist(), None if one.routes is None else one.routes.tolist(), one.finish,
         one.versions.tolist())
        for one in rollouts
    ]  # fmt: skip


def error_of(work: Any) -> RolloutError | None:
    try:
        work()
    except RolloutError as error:
        return error
    return None


def ask_live(servers: dict[str, str], exchanges: list[Exchange]) -> dict[str, Any]:
    """Ask running servers, and write down what they answer."""
    with ExitStack() as stack:
        made = {name: stack.enter_context(recording(name, url, exchanges, keep)) for name, url in servers.items()}
        return ask(made)


def write_file() -> None:
    from tests.trainer.rl.servers.lmdeploy_process import lmdeploy_servers, make_export

    exchanges: list[Exchange] = []
    with tempfile.TemporaryDirectory() as place:
        directory = make_export(Path(place))
        with lmdeploy_servers(directory, Path(place) / "log") as servers:
            ask_live(servers.urls, exchanges)
    FILE.write_text(as_json(exchanges))
    print(f"{len(exchanges)} exchanges in {FILE}, {FILE.stat().st_size} bytes")


if __name__ == "__main__":
    write_file()
