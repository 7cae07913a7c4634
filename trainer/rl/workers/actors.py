"""Workers as actors of a Ray cluster: `pip install -e '.[ray]'`."""

from __future__ import annotations

import logging
import signal
import threading
from concurrent.futures import Future
from importlib.util import find_spec
from typing import Any

from parallel.errors import UserError
from trainer.rl.workers.body import AT_ONCE, Body, Given, Reply
from trainer.rl.workers.pool import Lost

OWN = "local"  # the address of a new cluster on this machine


def connect(key: str, value: object, address: str | None) -> Any:
    """Ray, connected to a cluster, which stays as it is if there is a connection.

    key, value: what asks for Ray, for errors. address: "auto": a cluster that runs, of RAY_ADDRESS or on this machine;
    "local": a new one of this machine, which ends with this process; None: either.
    Raises UserError without Ray, or without such a cluster."""
    if find_spec("ray") is None:
        remedy = "pip install -e '.[ray]'"
        text = f"{key}={value} needs Ray, which is not installed; {remedy}"
        raise UserError(text, where=key, value=value, allowed=remedy)
    import ray

    if ray.is_initialized():
        return ray
    handler = signal.getsignal(signal.SIGTERM)
    dashboard = {} if address not in (OWN, None) else {"include_dashboard": False}
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING, **dashboard)
    except (ConnectionError, RuntimeError, ValueError) as error:
        remedy = "`ray start --head` on one machine, or rl.ray_address=local"
        text = f"rl.ray_address={address}: there is no Ray cluster to use: {' '.join(str(error).split())[:200]}"
        raise UserError(f"{text}; use {remedy}", where="rl.ray_address", value=address, allowed=remedy) from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # Ray puts its own in the place of the run's, which saves
    return ray


class RayWorker:
    """Implements `Worker`. cpus: that Ray reserves for it. Ray chooses the machine, of all in turn."""

    def __init__(self, name: str, given: Given, ray: Any, cpus: float) -> None:
        self.name, self._ray = name, ray
        options = {"num_cpus": cpus, "max_concurrency": AT_ONCE, "scheduling_strategy": "SPREAD"}
        self._actor = ray.remote(Body).options(**options).remote(given)

    def send(self, what: str, arguments: tuple[Any, ...]) -> Future[Reply]:
        future = Future[Reply]()
        try:
            reference = self._actor.answer.remote(what, arguments)
        except self._ray.exceptions.RayError as error:  # of an actor that is known to be dead
            future.set_exception(Lost(lost_text(error)))
            return future
        reference.future().add_done_callback(lambda done: self._settle(future, done))
        return future

    def kill(self) -> None:
        self._ray.kill(self._actor)

    def _settle(self, future: Future[Reply], done: Future[Reply]) -> None:
        error = done.exception()
        if error is None:
            future.set_result(done.result())
        elif isinstance(error, self._ray.exceptions.RayError):
            future.set_exception(Lost(lost_text(error)))
        else:
            future.set_exception(error)


def lost_text(error: BaseException) -> str:
    """An error of Ray in one line: its reports of dead actors have many."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
