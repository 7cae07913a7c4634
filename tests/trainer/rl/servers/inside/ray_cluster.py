"""Engines as actors of a local Ray cluster of two CPUs, and the store that LMDeploy's workers leave routes in. Prints
JSON.

python ray_cluster.py FIRST SECOND    Hugging Face directories; Ray's folder and this checkout are on PYTHONPATH
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from safetensors.torch import load_file

from trainer.engine.engine import Engine
from trainer.engine.load import open_source
from trainer.engine.request import Request, Sampling
from trainer.rl.rollout.protocol import Rollout, RolloutError
from trainer.rl.servers.errors import IncompleteError
from trainer.rl.servers.own_engine import OwnEngine
from trainer.rl.servers.ray_workers import RayWorkers
from trainer.rl.servers.routes import RayStore

QUESTIONS = [Request([3, 5, 7 + n], 6, Sampling(0.0)) for n in range(5)]
SHORT = Request([3, 5, 7], 1, Sampling(0.0))
LONG = [Request([1 + n, 2], 800, Sampling(1.0, seed=n)) for n in range(2)]


def alone(directory: Path) -> list[Any]:
    engine = Engine(open_source(directory).load(torch.device("cpu")), cache_tokens=4096)
    return [[list(one.ids), one.log_probs.tolist(), one.routes.tolist()] for one in engine.generate(QUESTIONS)]


def plain(found: list[Rollout]) -> list[Any]:
    return [[list(one.ids), one.log_probs.tolist(), one.routes.tolist()] for one in found if one.routes is not None]


def failure(work: Any) -> list[Any] | None:
    try:
        work()
    except RolloutError as error:
        finished = sorted(error.finished) if isinstance(error, IncompleteError) else None
        return [str(error), error.where, error.value, finished]
    return None


@ray.remote(num_cpus=0)
class SharedStore:
    """As LMDeploy 0.18 has it in pytorch/engine/engine_instance.py: a key is good for one reading."""

    def __init__(self) -> None:
        self.held: dict[str, Any] = {}

    def put(self, data: Any) -> str:
        reference = ray.put(data)
        self.held[reference.hex()] = reference
        return reference.hex()

    def get(self, key: str) -> Any:
        return ray.get(self.held.pop(key))


def main(first: Path, second: Path) -> None:
    # another cluster of this machine may be running
    ray.init(address="local", num_cpus=2, log_to_driver=False, include_dashboard=False)
    found: dict[str, Any] = {}
    workers = RayWorkers(partial(OwnEngine, str(first), cache_tokens=4096, batch=4, chunk=64), 2, bucket_mb=0)
    found["before"] = plain(workers.generate(QUESTIONS, deadline_s=120)) == alone(first)

    aborted: list[Rollout] = []
    thread = threading.Thread(target=lambda: aborted.extend(workers.generate(LONG, deadline_s=120)))
    thread.start()
    time.sleep(0.5)
    workers.pause()
    thread.join()
    found["aborted"] = [[one.finish, len(one.ids), len(one.routes) if one.routes is not None else 0] for one in aborted]

    (file,) = second.glob("*.safetensors")
    weights = load_file(file)
    found["refused"] = failure(lambda: workers.load([*weights.items()][:-1], 1))
    found["not whole"] = failure(workers.resume)
    workers.load(weights.items(), 2)
    workers.resume()
    after = workers.generate(QUESTIONS, deadline_s=120)
    found["after"] = plain(after) == alone(second)
    found["versions"] = sorted({int(one.versions[0]) for one in after})
    assert workers.last_sync is not None
    found["bytes"] = workers.last_sync.nbytes == sum(tensor.nbytes for tensor in weights.values())

    found["late"] = failure(lambda: workers.generate([LONG[0], SHORT], deadline_s=0.5))
    ray.kill(workers._workers[1].actor)
    found["again"] = plain(workers.generate(QUESTIONS, deadline_s=120)) == alone(second)
    found["counts"] = dict(workers.counts)
    for worker in workers._workers:
        ray.kill(worker.actor)
    found["dead"] = failure(lambda: workers.generate(QUESTIONS, deadline_s=120))
    workers.pause()
    workers.load(weights.items(), 3)
    workers.resume()
    found["replaced"] = plain(workers.generate(QUESTIONS, deadline_s=120)) == alone(second)
    workers.close()

    rows = np.arange(24, dtype=np.uint16).reshape(3, 4, 2)
    store = SharedStore.options(name="shared_store", namespace="lmdeploy", lifetime="detached").remote()
    key = ray.get(store.put.remote(rows))
    read = RayStore()
    found["routes"] = bool((np.asarray(read(key)) == rows).all())
    try:
        read(key)
    except ValueError:
        found["once"] = True
    print(json.dumps(found), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
