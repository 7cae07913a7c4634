"""Weights through a process group with the server's workers: what arrives, and servers that refuse or never come."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
import torch

from tests.printed import error_line
from tests.trainer.rl.servers.group_server import Workers
from trainer.rl.rollout.protocol import RolloutError
from trainer.rl.servers.buckets import buckets_of
from trainer.rl.servers.http import Reply
from trainer.rl.servers.senders import WeightGroup

WEIGHTS = {
    "a": torch.arange(12, dtype=torch.bfloat16).view(3, 4),
    "b": torch.linspace(-1, 1, 5, dtype=torch.bfloat16),
    "tables": torch.randn(7, generator=torch.Generator().manual_seed(0)),
}


class Client:
    """The requests of a group, straight to workers."""

    def __init__(self, workers: Workers) -> None:
        self.workers, self.asked, self.refuse = workers, [], ""
        self.hang, self.copies = "", 1

    def __call__(self, method: str, path: str, body: Any) -> Reply:
        if path == "/distserve/engine_info":
            return Reply(200, json.dumps({"tp_size": self.workers.count, "dp_size": self.copies}))
        self.asked.append((path, body))
        if path == self.hang:
            time.sleep(1.0)
            return Reply(200, None)
        if path == self.refuse:
            raise RolloutError("no", where="x")
        answer = {
            "/init_weights_update_group": self.workers.init,
            "/update_weights_from_distributed": self.workers.update,
            "/destroy_weights_update_group": self.workers.destroy,
        }[path]
        status, reply = answer(body)
        assert status == 200
        return Reply(status, reply)


@pytest.fixture
def client():
    return Client(Workers(2))


def make(client: Client, timeout_s: float = 20.0) -> WeightGroup:
    return WeightGroup(client, "engine", "http://127.0.0.1:1", timeout_s)


def test_every_worker_has_every_bit(client):
    group = make(client)
    for bucket in buckets_of(WEIGHTS.items(), 30):
        group.send(bucket)
    group.finish()
    for of_worker in client.workers.buckets:
        found = {}
        for bucket in of_worker:
            start = 0
            for name, shape in zip(bucket.names, bucket.shapes, strict=True):
                numel = torch.Size(shape).numel()
                found[name] = bucket.flat[start : start + numel].view(shape)
                start += numel
        assert found.keys() == WEIGHTS.keys()
        for name, weight in WEIGHTS.items():
            assert torch.equal(found[name], weight)
    paths = [path for path, _ in client.asked]
    assert paths == ["/init_weights_update_group", *["/update_weights_from_distributed"] * 4]
    assert [body["finished"] for _, body in client.asked[1:]] == [False] * 3 + [True]
    group.close()
    assert not client.workers.groups


def test_one_group_serves_all_loads(client):
    group = make(client)
    for _ in range(2):
        for bucket in buckets_of(WEIGHTS.items(), 1 << 20):
            group.send(bucket)
        group.finish()
    assert len(client.workers.groups) == 1
    group.close()


@pytest.mark.parametrize("path", ["/init_weights_update_group", "/update_weights_from_distributed"])
def test_a_server_that_refuses_ends_the_load_and_the_next_one_has_a_new_group(client, path):
    group, bucket = make(client, timeout_s=4.0), next(buckets_of(WEIGHTS.items(), 30))
    client.refuse = path
    started = time.monotonic()
    with pytest.raises(RolloutError):
        group.send(bucket)
    assert time.monotonic() - started < 3
    client.refuse = ""
    group.send(bucket)
    assert len({body["group_name"] for path, body in client.asked if path == "/init_weights_update_group"}) == 2
    assert torch.equal(client.workers.buckets[1][0].flat, bucket.flat)
    group.close()


def test_workers_that_never_come_end_the_load_in_time(client):
    group = make(client, timeout_s=0.5)
    client.hang = "/init_weights_update_group"
    started = time.monotonic()
    with pytest.raises(RolloutError) as raised:
        group.send(next(buckets_of(WEIGHTS.items(), 30)))
    assert time.monotonic() - started < 3
    assert (raised.value.where, raised.value.value) == ("engine", "rl.sync")
    assert error_line("\n".join(raised.value.lines))


def test_copies_of_a_model_have_no_single_group(client):
    client.copies = 2
    with pytest.raises(RolloutError) as raised:
        make(client).send(next(buckets_of(WEIGHTS.items(), 30)))
    assert raised.value.value == "rl.sync"
    assert not client.asked


def test_a_server_that_was_restarted_gets_a_new_group(client):
    group, bucket = make(client), next(buckets_of(WEIGHTS.items(), 30))
    group.send(bucket)
    client.workers = Workers(2)
    group.forget()
    group.send(bucket)
    assert torch.equal(client.workers.buckets[0][0].flat, bucket.flat)
    group.close()
