"""A canary for each private name of torch that Octavo uses: it fails where a version of torch has changed the name."""

from __future__ import annotations

import inspect
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.utils import cpp_extension

from parallel import torch_private as private
from parallel.dispatch.collectives import start_all_gather, start_all_to_all, start_reduce_scatter
from tests.distributed.pool import on_ranks


class Operators(private.TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(func)
        return func(*args, **(kwargs or {}))


def test_matrix_products_and_attention_are_the_known_operators():
    q = torch.randn(1, 2, 4, 8)
    rows, weight = torch.randn(16, 8), torch.randn(8, 8)
    for compute in (
        lambda: F.scaled_dot_product_attention(q, q, q, is_causal=True),
        lambda: rows @ weight,
        lambda: torch.addmm(rows, rows, weight),
        lambda: torch.bmm(q[0], q[0].transpose(1, 2)),
        lambda: private.flash_for_cpu(q, q, q, True),
    ):
        with Operators() as operators:
            compute()
        assert private.MATMULS & set(operators.seen), operators.seen
    assert torch.ops.aten._grouped_mm.default in private.MATMULS
    assert torch.ops.aten._flash_attention_forward.default in private.MATMULS


def scores_in_parts(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """softmax(q k^T / sqrt d) and the log-sum-exp; q [B, h, x, d], k [B, n, y, d]."""
    scores = q @ k.repeat_interleave(q.shape[1] // k.shape[1], 1).mT / q.shape[-1] ** 0.5
    return scores.softmax(-1), scores.logsumexp(-1)


def test_attention_on_a_cpu_has_a_log_sum_exp_and_a_backward_of_a_part():
    """The gradients of half of the keys, given the result and the log-sum-exp over all of them, are the whole's."""
    q, dy = torch.randn(2, 1, 4, 5, 8, dtype=torch.float64)
    k, v = torch.randn(2, 1, 2, 6, 8, dtype=torch.float64)
    whole = [x.clone().requires_grad_() for x in (q, k, v)]
    weights, sums = scores_in_parts(*whole[:2])
    y = weights @ whole[2].repeat_interleave(2, 1)
    found = private.flash_for_cpu(q, k, v, False)
    torch.testing.assert_close(found, (y.detach(), sums.detach()))
    expected = torch.autograd.grad(y, whole, dy)
    halves = [private.flash_for_cpu_backward(dy, q, k[:, :, h], v[:, :, h], *found, False)
              for h in (slice(0, 2), slice(2, 6))]  # fmt: skip
    torch.testing.assert_close(halves[0][0] + halves[1][0], expected[0])
    for number in (1, 2):
        torch.testing.assert_close(torch.cat([half[number] for half in halves], dim=2), expected[number])


def test_a_list_is_copied_in_place():
    targets = [torch.zeros(3), torch.zeros(2, 2)]
    private.foreach_copy(targets, [torch.ones(3), torch.ones(2, 2)])
    assert all(bool((target == 1).all()) for target in targets)


def test_norms_of_a_list_are_summed_in_the_dtype_asked_for():
    norms = private.foreach_norm([torch.tensor([3e30, 4e30]), torch.full((2, 2), 2.0)], torch.float64)
    assert [norm.dtype for norm in norms] == [torch.float64] * 2
    assert [norm.item() for norm in norms] == pytest.approx([5e30, 4.0], rel=1e-7)


def test_a_false_condition_fails_with_its_message():
    private.assert_async(torch.tensor(True), "fine")
    with pytest.raises(RuntimeError, match="out of order"):
        private.assert_async(torch.tensor(False), "out of order")


def test_autograd_is_seen_while_it_runs():
    seen = []
    x = torch.ones(2, requires_grad=True)
    y = x * 2
    y.register_hook(lambda grad: seen.append(private.in_backward()))
    assert not private.in_backward()
    y.sum().backward()
    assert seen == [True]
    assert not private.in_backward()


def test_hooks_of_saved_tensors_are_seen():
    def pack(tensor):
        return tensor

    def unpack(tensor):
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks
    assert private.saving_hooks() is None
    with hooks(unpack, pack), hooks(pack, unpack):
        assert private.saving_hooks() == (pack, unpack)
        torch.ones(2, requires_grad=True).exp().sum().backward()
        assert private.saving_hooks() == (pack, unpack)
    assert private.saving_hooks() is None


def test_hooks_on_gradients_are_seen():
    plain, hooked, late = (torch.ones(2, requires_grad=True) for _ in range(3))
    hooked.register_hook(lambda grad: grad)
    late.register_post_accumulate_grad_hook(lambda parameter: None)
    assert [private.has_gradient_hooks(p) for p in (plain, hooked, late)] == [False, True, True]


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_views_share_their_storage_and_their_base(device):
    whole, other = torch.zeros(4, 3, device=device), torch.zeros(4, 3, device=device)
    assert private.storage_id(whole[1]) == private.storage_id(whole)
    assert private.storage_id(other) != private.storage_id(whole)
    assert private.view_base(whole[1]) is whole
    assert private.view_base(whole) is None


def test_fake_tensors_have_no_values():
    with private.FakeTensorMode():
        x = torch.ones(3)
        with pytest.raises(private.DataDependentOutputException):
            x.sum().item()
    assert x.untyped_storage().nbytes() == 12


def test_a_wrapper_has_a_shape_and_no_storage_of_its_own():
    class Wrapper(torch.Tensor):
        @classmethod
        def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
            raise NotImplementedError

    made = private.wrapper_tensor(Wrapper, (7, 2), torch.zeros(1, dtype=torch.float64))
    assert isinstance(made, Wrapper)
    assert (tuple(made.shape), made.dtype) == ((7, 2), torch.float64)


def test_a_stored_tensor_is_at_its_offset_in_the_file(tmp_path: Path):
    stored = {"a": torch.arange(5.0), "b": torch.arange(100, 107)}
    torch.save(stored, tmp_path / "file")
    content = (tmp_path / "file").read_bytes()
    for name, tensor in torch.load(tmp_path / "file", map_location="meta").items():
        start = private.checkpoint_offset(tensor)
        assert start is not None
        assert content[start:][: tensor.nbytes] == stored[name].numpy().tobytes()
    assert private.checkpoint_offset(torch.zeros(2)) is None


def groups_on_rank() -> None:
    rank, default = dist.get_rank(), dist.group.WORLD
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("outer", "inner"))
    inner = mesh.get_group("inner")
    groups = private.process_groups()
    assert default in groups
    assert inner in groups
    assert private.group_of_name(inner.group_name) is inner

    before = private.collectives_started(inner)
    dist.all_reduce(torch.ones(1), group=inner)
    assert private.collectives_started(inner) == before + 1

    private.set_timeout(inner, timedelta(seconds=77))
    assert inner._get_backend(torch.device("cpu")).options._timeout == timedelta(seconds=77)

    flat = private.flatten_mesh(mesh["outer", "inner"], "all")
    assert flat.get_group().size() == 4

    part = DTensor.from_local(torch.zeros(3, 2), mesh["inner"], [Shard(0)], run_check=False)
    first = 3 * (rank % 2)
    assert private.dtensor_region(part) == (slice(first, first + 3), slice(0, 2))
    copies = DTensor.from_local(torch.zeros(3, 2), mesh, [Replicate(), Shard(0)], run_check=False)
    for holder, replica, region in private.dtensor_regions(copies):
        first = 3 * (holder % 2)
        assert (replica, region) == ((holder // 2,), (slice(first, first + 3), slice(0, 2)))
    assert [holder for holder, *_ in private.dtensor_regions(copies)] == [0, 1, 2, 3]
    private.clear_sharding_cache()


def test_process_groups_and_meshes():
    on_ranks(4, groups_on_rank, init=True)


def test_a_fake_group_does_nothing():
    dist.init_process_group("fake", rank=3, world_size=8, store=private.fake_store())
    try:
        x = torch.ones(2)
        dist.all_reduce(x)
        assert (x.tolist(), dist.get_world_size()) == ([1.0, 1.0], 8)
    finally:
        dist.destroy_process_group()


def test_collectives_are_the_known_operators():
    dist.init_process_group("fake", rank=0, world_size=2, store=private.fake_store())
    try:
        for kind, issue in {
            "all_reduce": lambda: dist.all_reduce(torch.ones(2)),
            "all_gather": lambda: start_all_gather(torch.ones(2), dist.group.WORLD),
            "reduce_scatter": lambda: start_reduce_scatter(torch.ones(4), dist.group.WORLD),
            "all_to_all": lambda: start_all_to_all(torch.ones(4), dist.group.WORLD),
            "send": lambda: dist.send(torch.ones(2), 1),
            "receive": lambda: dist.recv(torch.ones(2), 1),
        }.items():
            with Operators() as operators:
                issue()
            found = [func for func in operators.seen if func.namespace == "c10d"]
            assert [private.COLLECTIVES.get(func.overloadpacket.__name__) for func in found] == [kind], found
    finally:
        dist.destroy_process_group()


def test_wrappers_and_meta_tensors_hold_no_storage():
    plain = torch.zeros(3)
    wrapper = private.wrapper_tensor(DTensor, (3,), plain)
    assert [private.holds_storage(tensor) for tensor in (plain, wrapper, plain.to("meta"))] == [True, False, False]
    with private.FakeTensorMode():
        assert private.holds_storage(torch.zeros(3))


class Product(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, 2))  # uneven on two ranks

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.T


def gradients_on_rank(accumulate: torch.dtype | None) -> list[tuple[torch.dtype, torch.dtype | None, float]]:
    """(dtype of the gathered weight, dtype of its whole gradient, a number of that) after each of three micro-batches,
    whose gradients are 1, 2^-7 and 2^-9."""
    mesh = init_device_mesh("cpu", (2,))
    module = fully_shard(
        Product(), mesh=mesh, reshard_after_forward=False, mp_policy=MixedPrecisionPolicy(torch.bfloat16, torch.float32)
    )
    module.set_requires_gradient_sync(False)
    module.set_reshard_after_backward(False)
    if accumulate is not None:
        private.accumulate_in(module, accumulate)
    assert private.gathered_weights(module) == []
    found = []
    for scale in (1.0, 2.0**-7, 2.0**-9):
        module(torch.full((1, 2), scale, dtype=torch.bfloat16)).sum().backward()
        ((weight, gradient),) = private.gathered_weights(module)
        assert (weight.shape, gradient.shape) == ((3, 2), (3, 2))
        assert weight.untyped_storage().nbytes() == 4 * 2 * 2  # padded to rows that divide
        found.append((weight.dtype, gradient.dtype, gradient[0, 0].item()))
    return found


@pytest.mark.parametrize("accumulate", [None, torch.bfloat16, torch.float32], ids=["default", "bf16", "fp32"])
def test_fsdp_adds_gradients_up_in_the_dtype_asked_for(accumulate):
    """torch's own choice is the dtype of the reductions. In bf16 1 + 2^-7 is exact, and 2^-9 is lost in it."""
    dtype = accumulate or torch.float32
    last = 1 + 2.0**-7 + (0 if dtype == torch.bfloat16 else 2.0**-9)
    for found in on_ranks(2, gradients_on_rank, accumulate, init=True):
        assert [of[:2] for of in found] == [(torch.bfloat16, dtype)] * 3
        assert [of[2] for of in found] == [1.0, 1 + 2.0**-7, last]


def test_the_lock_of_an_extension_is_where_torch_waits_for_it(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    assert private.build_lock("made_up") == tmp_path / "made_up" / "lock"
    assert "FileBaton(os.path.join(build_directory, 'lock'))" in inspect.getsource(cpp_extension._jit_compile)


def test_backend_of():
    """Two ranks in one process, beside its own groups."""
    store, timeout, before = dist.HashStore(), timedelta(seconds=20), len(private.process_groups())
    options = dist.BroadcastOptions()
    options.rootRank = options.rootTensor = 0

    def rank(number: int) -> torch.Tensor:
        group = private.backend_of(store, number, 2, torch.device("cpu"), timeout)
        tensor = torch.full((3,), float(number + 1))
        group.broadcast([tensor], options).wait()
        return tensor

    with ThreadPoolExecutor(2) as threads:
        assert all(torch.equal(found, torch.ones(3)) for found in threads.map(rank, range(2)))
    assert len(private.process_groups()) == before
