"""LMDeploy's own api_server, with its AsyncEngine, over Octavo's engine on a CPU: LMDeploy's engine needs a GPU.

python lmdeploy_server.py DIR     prints the ports of three servers as JSON, then serves until its input ends

DIR is a Hugging Face directory. "full" has the flags that rollouts need, "bare" has none of them, and "logits" returns
raw logits. LMDeploy's folder and this checkout are on PYTHONPATH.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import sys
import tempfile
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import uvicorn
from lmdeploy.messages import EngineOutput, PytorchEngineConfig, ResponseType, ScheduleMetrics
from lmdeploy.serve.core import async_engine
from lmdeploy.serve.openai import api_server
from lmdeploy.utils import FlattenedTensorBucket, init_custom_process_group
from safetensors.torch import load_file, save_file

from launch.serving.http.errors import AbortedError
from launch.serving.http.worker import Worker
from trainer.engine.engine import Engine
from trainer.engine.load import open_source
from trainer.engine.request import Request, Sampling


class Behind:
    """Octavo's engine with the methods that LMDeploy's AsyncEngine calls."""

    def __init__(self, directory: Path, engine_config: PytorchEngineConfig) -> None:
        self.engine_config, self.directory = engine_config, directory
        self.received: dict[str, torch.Tensor] = {}
        self.aborted: set[int] = set()
        self.groups: dict[str, dist.ProcessGroup] = {}
        self.source = open_source(directory)
        self.worker: Worker | None = None
        self.engine = self._engine(directory)

    def _engine(self, directory: Path) -> Engine:
        return Engine(open_source(directory).load(torch.device("cpu")), cache_tokens=4096, batch=8, chunk=64)

    def running(self) -> Worker:
        if self.worker is None:
            self.worker = Worker(self.engine, most=64)
            self.worker.start()
        return self.worker

    # names and arguments as AsyncEngine has them

    def create_instance(self) -> Handle:
        return Handle(self)

    def start_loop(self) -> bool:
        return True

    def close(self) -> None: ...

    def complete_weights_update(self) -> None: ...

    async def get_health_status(self) -> dict[str, Any]:
        return {"alive": True, "message": "", "schedule_metrics": self.get_schedule_metrics()}

    async def get_checkpoint_engine_status(self) -> list[dict[str, Any]]:
        absent = {"ready": False, "message": "no checkpoint-engine here", "checkpoint_engine_version": None}
        return [{**absent, "device_uuid": "cpu", "rank": 0}]

    def get_schedule_metrics(self) -> ScheduleMetrics:
        return ScheduleMetrics()

    async def sleep(self, level: int) -> None:
        if self.worker is not None:
            await self.worker.stop()
        self.worker = None
        self.received = {}

    def wakeup(self, tags: list[str]) -> None: ...

    # As LMDeploy's one worker makes its end of a group, by its own function, and receives a bucket, but on a CPU.

    async def init_weights_update_group(self, request: Any) -> tuple[bool, str]:
        def join() -> dist.ProcessGroup:
            return init_custom_process_group(
                backend=request.backend,
                init_method=f"tcp://{request.master_address}:{request.master_port}",
                world_size=request.world_size,
                rank=request.rank_offset,
                group_name=request.group_name,
            )

        if request.group_name in self.groups:
            return False, f"group {request.group_name!r} already initialized"
        self.groups[request.group_name] = await asyncio.to_thread(join)
        return True, "Succeeded to initialize weights update group."

    async def update_weights_from_distributed(self, request: Any) -> tuple[bool, str]:
        group = self.groups.get(request.group_name)
        if group is None:
            return False, f"group {request.group_name!r} not initialized"
        if request.names:
            sizes = zip(request.names, request.dtypes, request.shapes, strict=True)
            named = [(name, torch.empty(shape, dtype=getattr(torch, dtype))) for name, dtype, shape in sizes]
            bucket = FlattenedTensorBucket(named_tensors=named)
            await asyncio.to_thread(dist.broadcast, bucket.get_flattened_tensor(), src=0, group=group)
            self.keep(dict(bucket.reconstruct_tensors()))
        if request.finished:
            self.take_received()
        return True, "Succeeded to update parameter online."

    async def destroy_weights_update_group(self, request: Any) -> tuple[bool, str]:
        dist.destroy_process_group(self.groups.pop(request.group_name))
        return True, f"Succeeded to destroy group {request.group_name!r}."

    def update_params(self, request: Any) -> None:
        """As LMDeploy's workers read a bucket, but that a tensor may be on a CPU."""
        from multiprocessing.reduction import ForkingPickler

        message = ForkingPickler.loads(base64.b64decode(request.serialized_named_tensors))
        assert request.load_format == "flattened_bucket"
        if message["metadata"]:
            function, arguments = message["flattened_tensor"]
            bucket = FlattenedTensorBucket(flattened_tensor=function(*arguments), metadata=message["metadata"])
            self.keep(dict(bucket.reconstruct_tensors()))
        if request.finished:
            self.take_received()

    def keep(self, named: dict[str, torch.Tensor]) -> None:
        unknown = named.keys() - {self.source.opened.stored_name(piece) for piece in self.source.opened.pieces}
        if unknown:
            raise KeyError(f"{min(unknown)} is not a parameter")
        self.received |= {name: tensor.clone() for name, tensor in named.items()}

    def take_received(self) -> None:
        with tempfile.TemporaryDirectory() as place:
            config = (self.directory / "config.json").read_text()
            (Path(place) / "config.json").write_text(config)
            (file,) = self.directory.glob("*.safetensors")
            save_file(load_file(file) | self.received, Path(place) / "model.safetensors", {"format": "pt"})
            self.engine = self._engine(Path(place))


class Handle:
    """One running request."""

    def __init__(self, behind: Behind) -> None:
        self.behind = behind

    async def async_cancel(self, session_id: int) -> None:
        self.behind.running().abort(session_id)

    async def async_stream_infer(
        self, session_id: int, *, input_ids: list[int], gen_config: Any, **_: Any
    ) -> AsyncIterator[EngineOutput]:
        assert not gen_config.ignore_eos
        worker, ends = self.behind.running(), frozenset(gen_config.stop_token_ids or ())
        sampling = Sampling(gen_config.temperature, gen_config.top_k, gen_config.top_p, gen_config.min_p,
                            gen_config.random_seed % 2**63)  # fmt: skip
        top = max(0, (gen_config.logprobs or 0))
        request = Request(input_ids, gen_config.max_new_tokens, sampling, ends, alternatives=top)
        shift = 9.0 if self.behind.engine_config.logprobs_mode == "raw_logits" else 0.0
        answers = worker.ask([request], session_id)
        try:
            async for _, token, done in answers:
                values = {token.id: token.log_prob + shift}
                values |= {other: value + shift for other, value in token.alternatives}
                yield EngineOutput(
                    ResponseType.SUCCESS if done is None else ResponseType.FINISH,
                    [token.id],
                    logprobs=[values] if gen_config.logprobs is not None else None,
                    routed_experts=done.routes if done is not None and gen_config.return_routed_experts else None,
                )
        except AbortedError:
            ids = [*input_ids, *(token.id for token in answers.tokens[0])]
            (scored,) = await worker.ask([Request(ids, 0, score_prompt=True)]).finished()
            yield EngineOutput(ResponseType.CANCEL, [], routed_experts=scored.routes[: len(ids) - 1])


FLAGS = {
    "full": {"logprobs_mode": "raw_logprobs", "enable_return_routed_experts": True, "enable_metrics": True},
    "bare": {"enable_metrics": False},
    "logits": {"logprobs_mode": "raw_logits", "enable_return_routed_experts": True, "enable_metrics": False},
}


def build(directory: Path, name: str) -> Any:
    """LMDeploy's application, made by its own `serve`."""
    made = []
    config = PytorchEngineConfig(session_len=600, max_batch_size=8, language_model_only=True, **FLAGS[name])
    async_engine.AsyncEngine._build_pytorch = lambda self, model_path, backend_config, **_: Behind(
        Path(model_path), backend_config
    )
    api_server.uvicorn.run = lambda app, **_: made.append(app)
    api_server.serve(
        str(directory),
        model_name="tiny",
        backend="pytorch",
        backend_config=config,
        enable_abort_handling=name != "bare",
    )
    return made[0]


async def serve(directory: Path) -> None:
    run = uvicorn.run
    servers = {}
    for name in FLAGS:
        config = uvicorn.Config(build(directory, name), host="127.0.0.1", port=0, log_level="warning")
        servers[name] = uvicorn.Server(config)
    uvicorn.run = run
    tasks = [asyncio.create_task(server.serve()) for server in servers.values()]
    while not all(server.started for server in servers.values()):
        await asyncio.sleep(0.05)
    ports = {name: server.servers[0].sockets[0].getsockname()[1] for name, server in servers.items()}
    print(json.dumps(ports), file=OUT, flush=True)
    await asyncio.gather(*tasks)


def end_with_input() -> None:
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    OUT = sys.stdout
    sys.stdout = sys.stderr  # LMDeploy prints hints
    threading.Thread(target=end_with_input, daemon=True).start()
    asyncio.run(serve(Path(sys.argv[1])))
