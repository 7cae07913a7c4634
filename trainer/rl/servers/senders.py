"""Two ways of weights to a server of LMDeploy: as handles of memory on one machine, or through a process group."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from datetime import timedelta
from functools import partial
from typing import Any, Protocol
from urllib.parse import urlsplit

import torch
import torch.distributed as dist

from parallel.torch_private import backend_of
from trainer.rl.servers.buckets import Bucket, serialized
from trainer.rl.servers.errors import fault
from trainer.rl.servers.http import Reply
from trainer.rl.servers.lmdeploy_api import workers_of

POLL_S = 0.002
_numbers = itertools.count()


Ask = Callable[[str, str, Any], Reply]  # method, path and body; raises RolloutError where the server does not confirm


class Sender(Protocol):
    """Gives a server that waits for weights one bucket after the other. Each raises RolloutError."""

    def send(self, bucket: Bucket) -> None: ...
    def finish(self) -> None:
        """The weights are whole."""
        ...

    def forget(self) -> None:
        """The server was restarted."""
        ...

    def close(self) -> None: ...


class Handles:
    """Implements `Sender` by `/update_weights`."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask

    def send(self, bucket: Bucket) -> None:
        self._post(serialized(bucket), finished=False)

    def finish(self) -> None:
        self._post(serialized(None), finished=True)

    def forget(self) -> None:
        """A server keeps nothing of buckets."""

    def close(self) -> None:
        """Nothing is held."""

    def _post(self, tensors: str, *, finished: bool) -> None:
        body = {"serialized_named_tensors": tensors, "load_format": "flattened_bucket", "finished": finished}
        self._ask("POST", "/update_weights", body)


class WeightGroup:
    """Implements `Sender` by a process group with the server's workers, which may be on other machines.

    Rank 0 is this process; the workers make their ends themselves when the server is asked to. Groups of torch have a
    store in which their ranks meet; its keys have prefixes that both ends have to choose alike. LMDeploy 0.18 makes its
    end in `init_custom_process_group` (lmdeploy/utils.py): the name, then those of torch, which are the name and the
    device. The group is none of this process's own groups of torch: those would divide a communicator that spans all
    ranks. It is made at the first bucket, whose device chooses NCCL or gloo.

    ask: must not repeat requests. engine: its name in errors. url: of the server, by which this machine's own address
    towards it is found. timeout_s: for making the group, and for each bucket.
    """

    def __init__(self, ask: Ask, engine: str, url: str, timeout_s: float) -> None:
        self._ask, self._engine, self._url, self._timeout_s = ask, engine, url, timeout_s
        self.name = ""  # of the group; empty where there is none
        self._store: dist.TCPStore | None = None
        self._group: Any = None
        self._work: Any = None  # the exchange under way

    def send(self, bucket: Bucket) -> None:
        """Give the group up if the server refuses, fails or is late: its ranks may be at different places."""
        if not self.name:
            self._start(bucket.flat)
        body = {
            "names": [*bucket.names],
            "dtypes": [str(bucket.flat.dtype).removeprefix("torch.")] * len(bucket.names),
            "shapes": [[*shape] for shape in bucket.shapes],
            "group_name": self.name,
            "load_format": "flattened_bucket",
            "finished": False,
        }
        with self._or_give_up():
            asked = _beside(partial(self._ask, "POST", "/update_weights_from_distributed", body))
            options = dist.BroadcastOptions()
            options.rootRank, options.rootTensor = 0, 0
            self._work = self._group.broadcast([bucket.flat], options)
            self._wait(asked, self._work.is_completed, "a bucket")
            self._work.wait()

    def finish(self) -> None:
        body = {
            "names": [], "dtypes": [], "shapes": [], "group_name": self.name, "load_format": "flattened_bucket",
            "finished": True,
        }  # fmt: skip
        self._ask("POST", "/update_weights_from_distributed", body)

    def forget(self) -> None:
        self._give_up()

    def close(self) -> None:
        """Leave the group, here and at the server if it answers."""
        if self.name:
            with contextlib.suppress(Exception):
                self._ask("POST", "/destroy_weights_update_group", {"group_name": self.name})
        self._give_up()

    def _start(self, like: torch.Tensor) -> None:
        workers = workers_of(self._ask("GET", "/distserve/engine_info", None).value)
        if workers is None:
            text = "it runs several copies of the model (--dp), which one group of workers does not reach"
            raise fault(self._engine, text, "rl.sync", "start it with --dp 1, or use rl.sync=buckets")
        host, timeout = _address_towards(self._url), timedelta(seconds=self._timeout_s)
        size, name = workers + 1, f"octavo-{socket.gethostname()}-{os.getpid()}-{next(_numbers)}"
        store = dist.TCPStore(host, 0, size, is_master=True, wait_for_workers=False, timeout=timeout)
        body = {
            "master_address": host, "master_port": store.port, "rank_offset": 1, "world_size": size,
            "group_name": name, "backend": "nccl" if like.is_cuda else "gloo",
        }  # fmt: skip
        self.name, self._store = name, store
        with self._or_give_up():
            asked = _beside(partial(self._ask, "POST", "/init_weights_update_group", body))
            found = _beside(partial(_rank_zero, store, name, size, like.device, timeout))
            self._wait(asked, found.done, "the group of its workers")
            try:
                self._group = found.result()
            except RuntimeError as error:
                self._fail(f"the group of its workers was not made: {error}")

    def _wait(self, asked: Future[Any], done: Callable[[], bool], what: str) -> None:
        """Until both sides are ready. A server that refuses never comes to the exchange, so its answer counts first."""
        end = time.monotonic() + self._timeout_s
        while not (asked.done() and done()):
            if asked.done() and (error := asked.exception()) is not None:
                raise error
            if time.monotonic() > end:
                self._fail(f"{what} took longer than {self._timeout_s:.0f} s")
            time.sleep(POLL_S)
        asked.result()

    def _fail(self, text: str) -> None:
        text = " ".join(text.split())[:300]
        raise fault(self._engine, text, "rl.sync", "check that its workers reach this machine, or use rl.sync=buckets")

    @contextlib.contextmanager
    def _or_give_up(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self._give_up()
            raise

    def _give_up(self) -> None:
        # What ends a group waits for what is under way in it, which ranks that went elsewhere never finish.
        left = [self._work, self._group, self._store]
        self._work, self._group, self._store, self.name = None, None, None, ""
        threading.Thread(target=left.clear, name="end of a weight group").start()


def _beside(work: Callable[[], Any]) -> Future[Any]:
    """Do `work` in a thread. The process ends after it: torch does not survive an end in the middle of a group."""
    found: Future[Any] = Future()

    def run() -> None:
        try:
            found.set_result(work())
        except BaseException as error:
            found.set_exception(error)

    threading.Thread(target=run, name="weights").start()
    return found


def _rank_zero(store: dist.TCPStore, name: str, size: int, device: torch.device, timeout: timedelta) -> Any:
    """This end of the group; waits for the others, with gloo at once and with NCCL at the first bucket."""
    prefixed = dist.PrefixStore(f"{device.type}/", dist.PrefixStore(f"{name}/", dist.PrefixStore(name, store)))
    return backend_of(prefixed, 0, size, device, timeout)


def _address_towards(url: str) -> str:
    """This machine's address by which a server sees it. Nothing is sent."""
    parts = urlsplit(url)
    host, port = parts.hostname or "localhost", parts.port or 80
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect(address)
        found: str = probe.getsockname()[0]
    return found
