"""A stand-in for LMDeploy whose weights come through a process group with its workers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tests.trainer.rl.servers.stand_in import Server
from trainer.rl.servers.buckets import Bucket


class Workers:
    """The ends that LMDeploy's workers make of a group for weights, each in a thread; gloo, with torch's prefixes."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.groups: dict[str, list[dist.ProcessGroupGloo]] = {}
        self.buckets: list[list[Bucket]] = [[] for _ in range(count)]

    def each(self, work: Callable[[int], Any]) -> list[Any]:
        with ThreadPoolExecutor(self.count) as threads:
            return [*threads.map(work, range(self.count))]

    def init(self, body: Any) -> tuple[int, Any]:
        name, timeout = body["group_name"], timedelta(seconds=20)
        if name in self.groups:
            return 400, {"success": False, "message": f"group {name!r} already initialized"}

        def join(worker: int) -> dist.ProcessGroupGloo:
            store = dist.TCPStore(
                body["master_address"], body["master_port"], body["world_size"], timeout=timeout, wait_for_workers=False
            )
            prefixed = dist.PrefixStore("cpu/", dist.PrefixStore(f"{name}/", dist.PrefixStore(name, store)))
            return dist.ProcessGroupGloo(prefixed, body["rank_offset"] + worker, body["world_size"], timeout)

        assert body["backend"] == "gloo"
        self.groups[name] = self.each(join)
        return 200, {"success": True, "message": ""}

    def update(self, body: Any) -> tuple[int, Any]:
        if (groups := self.groups.get(body["group_name"])) is None:
            return 400, {"success": False, "message": "the group is not initialized"}
        assert body["load_format"] == "flattened_bucket"
        if not body["names"]:
            return 200, {"success": True, "message": ""}
        (dtype,) = {*body["dtypes"]}
        options = dist.BroadcastOptions()
        options.rootRank = options.rootTensor = 0

        def take(worker: int) -> None:
            flat = torch.empty(sum(math.prod(shape) for shape in body["shapes"]), dtype=getattr(torch, dtype))
            groups[worker].broadcast([flat], options).wait()
            shapes = tuple(tuple(shape) for shape in body["shapes"])
            self.buckets[worker].append(Bucket(tuple(body["names"]), shapes, flat))

        self.each(take)
        return 200, {"success": True, "message": ""}

    def destroy(self, body: Any) -> tuple[int, Any]:
        found = self.groups.pop(body["group_name"], None) is not None
        return (200 if found else 400), {"success": found, "message": ""}


class GroupServer(Server):
    """`Server` with two workers, which hold the same weights."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.workers = Workers(2)

    def __call__(self, method: str, target: str, body: Any) -> tuple[int, Any] | None:
        of_group = {
            "/distserve/engine_info": lambda _: (200, json.dumps({"tp_size": self.workers.count, "dp_size": 1})),
            "/init_weights_update_group": self.workers.init,
            "/update_weights_from_distributed": self.take,
            "/destroy_weights_update_group": self.workers.destroy,
        }
        return of_group[target](body) if target in of_group else super().__call__(method, target, body)

    def take(self, body: Any) -> tuple[int, Any]:
        status, reply = self.workers.update(body)
        if status == 200 and body["names"]:
            first, *others = [of_worker[-1] for of_worker in self.workers.buckets]
            assert all(torch.equal(first.flat, other.flat) for other in others)
            self.engine.take(first)
            self.nbytes[-1] += first.nbytes
        elif status == 200:
            self.engine.finish_load(len(self.nbytes))
        return status, reply
