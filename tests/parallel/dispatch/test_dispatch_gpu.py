"""Properties that only a GPU can show: no host sync, a CUDA graph, determinism; and NCCL over several GPUs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from parallel.dispatch.all_gather import AllGatherDispatch
from parallel.dispatch.local import LocalDispatch
from parallel.dispatch.payload import Fp8
from parallel.groups import Placement, map_groups
from tests.distributed.pool import on_ranks
from tests.parallel.dispatch.moe_layer import Case, Tensors, build_layer, dense_reference, joined, tokens_of
from tests.parallel.dispatch.rounded import RoundedDispatch
from tests.trainer.model.tiny import assert_close, relative
from trainer.model.moe import MoE

GPUS = torch.cuda.device_count()
CASE = Case(8, 8, tokens=64, hidden=64, width=32)
OPTIONS: list[dict[str, Any]] = [
    {"combine": "fixed_order"},
    {"combine": "reduce_scatter"},
    {"combine": "fixed_order", "regather": True},
    {"combine": "fixed_order", "overlap": 2},
]

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(GPUS == 0, reason="needs a CUDA device")]


@pytest.fixture
def one_rank() -> Iterator[dist.ProcessGroup]:
    dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=1, device_id=torch.device("cuda", 0))
    assert dist.group.WORLD is not None
    yield dist.group.WORLD
    dist.destroy_process_group()


def on_gpu(dispatcher: Any) -> tuple[MoE, Tensor, Tensor]:
    moe = build_layer(CASE, Placement(), 0, dispatcher, torch.float32).cuda()
    x, dy = (t.cuda().bfloat16() for t in tokens_of(CASE, 1))
    return moe, x.requires_grad_(), dy


def forward_backward(moe: MoE, x: Tensor, dy: Tensor) -> dict[str, Tensor]:
    leaves = {"x": x, "router": moe.router.weight, "w13": moe.experts.w13, "w2": moe.experts.w2}
    y, _ = moe(x)
    grads = torch.autograd.grad(y, list(leaves.values()), dy)
    return {"y": y.detach()} | dict(zip(leaves, grads, strict=True))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_no_host_sync_and_the_numbers_of_the_local_dispatcher(one_rank, options):
    moe, x, dy = on_gpu(AllGatherDispatch(one_rank, Placement(), **options))
    forward_backward(moe, x, dy)  # compares the number of tokens once
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = forward_backward(moe, x, dy)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    expected = forward_backward(*on_gpu(LocalDispatch()))
    assert_close(found, expected, 1e-2)
    exact = dense_reference(CASE, 1)
    assert relative(found["y"].cpu(), exact.y) < 2e-2


def test_an_fp8_payload_waits_for_nothing_either_and_loses_its_rounding(one_rank):
    moe, x, dy = on_gpu(AllGatherDispatch(one_rank, Placement(), payload=Fp8()))
    forward_backward(moe, x, dy)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = forward_backward(moe, x, dy)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert_close(found, forward_backward(*on_gpu(RoundedDispatch())), 1e-2)


@pytest.mark.parametrize("options", [*OPTIONS, {"payload": Fp8()}], ids=[*map(str, OPTIONS), "fp8 payload"])
def test_the_layer_is_captured_in_a_cuda_graph(one_rank, options):
    moe, x, dy = on_gpu(AllGatherDispatch(one_rank, Placement(), **options))
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            forward_backward(moe, x, dy)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = forward_backward(moe, x, dy)
    with torch.no_grad():
        x.copy_(torch.randn_like(x))
        dy.copy_(torch.randn_like(dy))
    graph.replay()
    torch.cuda.synchronize()
    assert_close(captured, forward_backward(moe, x, dy), 1e-3)


def test_fixed_order_is_deterministic(one_rank):
    torch.use_deterministic_algorithms(True)
    try:
        moe, x, dy = on_gpu(AllGatherDispatch(one_rank, Placement(), combine="fixed_order"))
        first, second = forward_backward(moe, x, dy), forward_backward(moe, x, dy)
    finally:
        torch.use_deterministic_algorithms(False)
    for name in first:
        assert torch.equal(first[name], second[name]), name


def nccl_layer(options: dict[str, Any]) -> Tensors:
    rank, ranks = dist.get_rank(), dist.get_world_size()
    placement = map_groups(CASE.groups, ranks)
    dispatcher = AllGatherDispatch(dist.group.WORLD, placement, **options)
    moe = build_layer(CASE, placement, rank, dispatcher, torch.float32).cuda()
    x, dy = (t.chunk(ranks)[rank].cuda().bfloat16() for t in tokens_of(CASE, ranks))
    found = forward_backward(moe, x.requires_grad_(), dy)
    return Tensors(*(found[name].cpu() for name in ("y", "x", "router", "w13", "w2")))


def nccl_layers() -> list[Tensors]:
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(device)
    dist.init_process_group("nccl", device_id=device)
    return [nccl_layer(options) for options in OPTIONS]


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_nccl_ranks_equal_the_dense_loop(ranks):
    if ranks > GPUS:
        pytest.skip(f"needs {ranks} GPUs, found {GPUS}")
    by_rank = on_ranks(ranks, nccl_layers)
    exact = dense_reference(CASE, ranks)
    for number in range(len(OPTIONS)):
        found = joined([results[number] for results in by_rank], map_groups(CASE.groups, ranks))
        assert_close(found._asdict(), exact._asdict(), 3e-2)
