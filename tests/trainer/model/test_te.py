"""The wiring of experts on Transformer Engine, over a stand-in for it: numbers, kept weights, gradients, padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard
from torch.utils.checkpoint import checkpoint

from parallel.dispatch import RowOrder
from parallel.fsdp import keep_gathered
from parallel.shards import local
from tests.distributed.pool import on_ranks
from tests.trainer.model import te_stand_in
from tests.trainer.model.tiny import assert_close
from trainer.model import te
from trainer.model.experts import BACKENDS, Experts, QuantizedBackend
from trainer.model.te import TransformerEngine
from trainer.model.te_gradient import together

pytestmark = pytest.mark.usefixtures("poisoned_memory")

E, H, I, K = 6, 64, 32, 2  # noqa: E741
PATHS = {"native": "fp8_block", "list": "fp8_current", "mxfp8": "mxfp8"}
ROUTINGS = {
    "all": [0, 1, 2, 3, 4, 5],
    "first, middle and last expert without tokens": [1, 2, 4],
    "two": [4, 5],
}


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def order_of(tokens: int, experts: Sequence[int] = range(E), seed: int = 0) -> RowOrder:
    noise = torch.rand(tokens, len(experts), generator=torch.Generator().manual_seed(seed))
    return RowOrder(torch.tensor(list(experts))[noise.argsort(dim=-1)[:, :K]], E)


def weights_of(dtype: torch.dtype) -> dict[str, Tensor]:
    made = {"w13": normal(E, 2, I, H, seed=3) / H**0.5, "w2": normal(E, H, I, seed=4) / I**0.5}
    return {name: weight.to(dtype).requires_grad_() for name, weight in made.items()}


def tokens_of(tokens: int, dtype: torch.dtype, seed: int = 1) -> dict[str, Tensor]:
    made = {"x": normal(tokens, H, seed=seed), "weights": normal(tokens, K, seed=seed + 1).exp()}
    return {name: tensor.to(dtype).requires_grad_() for name, tensor in made.items()}


def run(backend: Any, order: RowOrder, leaves: dict[str, Tensor], dy_scale: float = 1.0) -> dict[str, Tensor]:
    y = backend(*(leaves[name] for name in ("x", "weights", "w13", "w2")), order)
    grads = torch.autograd.grad(y, list(leaves.values()), (dy_scale * normal(*y.shape, seed=7)).to(y.dtype))
    return {"y": y.detach()} | dict(zip(leaves, grads, strict=True))


def calls(backend: TransformerEngine) -> list[tuple[bool | None, bool]]:
    """(is_first_microbatch, whether the GEMM adds to a gradient) of each call, which must be those of both GEMMs."""
    assert backend._gemms is not None
    into, out_of = ([(call.first, call.adds) for call in gemm.linear.calls] for gemm in backend._gemms)
    assert into == out_of
    return into


@pytest.fixture
def stand_in(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The stand-in, on the path that the test's parameter names; its recipe."""
    path = getattr(request, "param", "native")
    what: dict[str, Any] = {"list": {"cublaslt": 130000}, "mxfp8": {"capability": (10, 0)}}.get(path, {})
    te_stand_in.install(monkeypatch, **what)
    return PATHS[path]


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(te, "GEMM_DTYPE", torch.float64)


each_path = pytest.mark.parametrize("stand_in", PATHS, indirect=True)


@each_path
@pytest.mark.parametrize("routing", ROUTINGS)
@pytest.mark.usefixtures("exact")
def test_outputs_and_gradients_are_those_of_the_loop(stand_in, routing):
    leaves, order = tokens_of(37, torch.float64) | weights_of(torch.float64), order_of(37, ROUTINGS[routing])
    found = run(TransformerEngine(stand_in), order, leaves)
    assert_close(found, run(BACKENDS["loop"], order, leaves), 1e-12)


@each_path
@pytest.mark.parametrize("tokens", [0, 1])
@pytest.mark.usefixtures("exact")
def test_hardly_any_token(stand_in, tokens):
    leaves, order = tokens_of(tokens, torch.float64) | weights_of(torch.float64), order_of(tokens)
    found = run(TransformerEngine(stand_in), order, leaves)
    assert_close(found, run(BACKENDS["loop"], order, leaves), 1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16])
def test_gemms_in_bf16_results_in_the_dtypes_of_the_arguments(stand_in, dtype, weight_dtype):
    leaves, order = tokens_of(37, dtype) | weights_of(weight_dtype), order_of(37)
    found = run(TransformerEngine(stand_in), order, leaves)
    assert {name: found[name].dtype for name in leaves} == {name: leaf.dtype for name, leaf in leaves.items()}
    assert found["y"].dtype == dtype
    double = {name: leaf.detach().double().requires_grad_() for name, leaf in leaves.items()}
    assert_close({name: value.double() for name, value in found.items()}, run(BACKENDS["loop"], order, double), 2e-2)


def test_the_experts_module_shows_nothing_of_it(stand_in):
    experts = Experts(E, H, I, "loop")
    backend = TransformerEngine(stand_in)
    assert isinstance(backend, QuantizedBackend)
    experts.backend = backend
    torch.nn.init.normal_(experts.w13)
    torch.nn.init.normal_(experts.w2)
    tokens = tokens_of(9, torch.bfloat16)
    backend.hold_weights(True)
    loss = experts(tokens["x"], tokens["weights"], order_of(9)).sum()
    for gemm in backend._gemms or ():
        sizes = {matrix.untyped_storage().nbytes() for matrix in gemm.linear.calls[0].shown}
        assert sizes == {2}, "weights in bf16 that live until backward"
    loss.backward()
    assert list(experts.state_dict()) == [name for name, _ in experts.named_parameters()] == ["w13", "w2"]
    assert len(list(experts.modules())) == 1
    for gemm in backend._gemms or ():
        assert not list(gemm.linear.parameters())
        assert gemm.linear.weight0 is None, "keeps the graph of the last micro-batch"


@each_path
@pytest.mark.usefixtures("exact")
def test_weights_are_quantised_once_a_step(stand_in):
    backend, weights = TransformerEngine(stand_in), weights_of(torch.float64)
    for change in (0.0, 0.5):
        with torch.no_grad():
            weights["w13"].add_(change)
        before = sum(gemm.linear.quantised_weights for gemm in backend._gemms or ())
        backend.hold_weights(True)
        for micro_batch in range(3):
            leaves = tokens_of(20, torch.float64, seed=10 * micro_batch) | weights
            order = order_of(20, seed=micro_batch)
            assert_close(run(backend, order, leaves), run(BACKENDS["loop"], order, leaves), 1e-12)
        backend.hold_weights(False)
        assert sum(gemm.linear.quantised_weights for gemm in backend._gemms or ()) == before + 2 * E
    assert calls(backend) == [(True, False), (False, False), (False, False)] * 2
    assert all(not gemm.linear._fp8_workspaces for gemm in backend._gemms or ())


@pytest.mark.usefixtures("exact")
def test_weights_are_quantised_at_each_use_unless_held(stand_in):
    backend, leaves = TransformerEngine(stand_in), tokens_of(20, torch.float64) | weights_of(torch.float64)
    for change in (0.0, 0.5):
        with torch.no_grad():
            leaves["w2"].mul_(1 + change)
        assert_close(run(backend, order_of(20), leaves), run(BACKENDS["loop"], order_of(20), leaves), 1e-12)
    assert calls(backend) == [(None, False)] * 2
    assert all(not gemm.linear._fp8_workspaces for gemm in backend._gemms or ())


def test_what_was_quantised_without_gradients_is_not_kept(stand_in):
    """Without gradients only one of the two layouts is made."""
    backend, leaves = TransformerEngine(stand_in), tokens_of(20, torch.float32) | weights_of(torch.float32)
    backend.hold_weights(True)
    with torch.no_grad():
        backend(*leaves.values(), order_of(20))
    run(backend, order_of(20), leaves)
    run(backend, order_of(20), leaves)
    assert [first for first, _ in calls(backend)] == [True, True, False]


def steps(backend: Any, weights: dict[str, Tensor], recompute: bool = False) -> list[dict[str, Tensor]]:
    """Two steps of three micro-batches; the gradients of each."""
    found = []
    for _ in range(2):
        if isinstance(backend, QuantizedBackend):
            backend.hold_weights(True)
        for micro_batch in range(3):
            leaves, order = tokens_of(20, torch.float64, seed=10 * micro_batch), order_of(20, seed=micro_batch)
            arguments = (leaves["x"], leaves["weights"], weights["w13"], weights["w2"], order)
            y = checkpoint(backend, *arguments, use_reentrant=False) if recompute else backend(*arguments)
            y.backward(normal(*y.shape, seed=7))
        if isinstance(backend, QuantizedBackend):
            backend.hold_weights(False)
        found.append({name: weight.grad.double() for name, weight in weights.items() if weight.grad is not None})
        with torch.no_grad():
            for weight in weights.values():
                weight.mul_(1.5)
                weight.grad = None
    return found


@each_path
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.usefixtures("exact")
def test_gradients_of_micro_batches_add_up_in_place(stand_in, recompute):
    backend = TransformerEngine(stand_in)
    found = steps(backend, weights_of(torch.float32), recompute)
    expected = steps(BACKENDS["loop"], weights_of(torch.float64))
    for step in range(2):
        assert_close(found[step], expected[step], 1e-6)
    first, later = [(True, False)], [(False, True)]
    if recompute:  # runs each forward once more, of which the flags are not used
        assert calls(backend) == (first + [(False, False)] + later * 4) * 2
    else:
        assert calls(backend) == (first + later * 2) * 2


@pytest.mark.usefixtures("exact")
def test_the_gradient_is_added_in_its_own_memory(stand_in):
    backend, weights = TransformerEngine(stand_in), weights_of(torch.float32)
    backend.hold_weights(True)
    places = []
    for _ in range(3):
        leaves = tokens_of(20, torch.float64)
        backend(*leaves.values(), *weights.values(), order_of(20)).sum().backward()
        assert weights["w13"].grad is not None
        places.append(weights["w13"].grad.data_ptr())
    assert places[0] == places[1] == places[2]


def hooked(weight: Tensor) -> None:
    weight.register_post_accumulate_grad_hook(lambda _: None)


def taken_away(weight: Tensor) -> None:
    """As FSDP does when it has reduced it."""
    weight.grad = None


@pytest.mark.parametrize("meddle", [hooked, taken_away])
@pytest.mark.usefixtures("exact")
def test_autograd_adds_where_others_look_at_the_gradient(stand_in, meddle):
    backend, weights = TransformerEngine(stand_in), weights_of(torch.float32)
    backend.hold_weights(True)
    for _ in range(3):
        backend(*tokens_of(20, torch.float64).values(), *weights.values(), order_of(20)).sum().backward()
        for weight in weights.values():
            meddle(weight)
    assert calls(backend) == [(True, False), (False, False), (False, False)]


@pytest.mark.usefixtures("exact")
def test_autograd_adds_outside_of_a_step_and_in_its_first_micro_batch(stand_in):
    """Where weights are quantised the GEMM would write over a gradient that is there already."""
    backend, weights = TransformerEngine(stand_in), weights_of(torch.float32)
    for held in (False, False, True, True):
        backend.hold_weights(held)
        backend(*tokens_of(20, torch.float64).values(), *weights.values(), order_of(20)).sum().backward()
    assert calls(backend) == [(None, False), (None, False), (True, False), (False, True)]
    once = weights_of(torch.float32)
    backend = BACKENDS["loop"]
    backend(*tokens_of(20, torch.float64).values(), *once.values(), order_of(20)).sum().backward()
    assert_close(
        {name: weight.grad for name, weight in weights.items() if weight.grad is not None},
        {name: 4 * weight.grad for name, weight in once.items() if weight.grad is not None},
        1e-6,
    )


def test_autograd_adds_where_gradients_are_not_fp32(stand_in):
    backend, weights = TransformerEngine(stand_in), weights_of(torch.bfloat16)
    backend.hold_weights(True)
    for _ in range(2):
        backend(*tokens_of(20, torch.bfloat16).values(), *weights.values(), order_of(20)).sum().backward()
    assert calls(backend) == [(True, False), (False, False)]


def test_a_gradient_that_is_replaced_before_backward_is_an_error(stand_in):
    backend, weights = TransformerEngine(stand_in), weights_of(torch.float32)
    backend.hold_weights(True)
    backend(*tokens_of(20, torch.float32).values(), *weights.values(), order_of(20)).sum().backward()
    y = backend(*tokens_of(20, torch.float32).values(), *weights.values(), order_of(20))
    assert weights["w2"].grad is not None
    weights["w2"].grad = weights["w2"].grad.clone()
    with pytest.raises(RuntimeError, match="was replaced between a forward pass and its backward pass"):
        y.sum().backward()


def spread_over_ranks() -> list[tuple[bool | None, bool]]:
    """Three micro-batches on this rank's part of parameters that two ranks share; the gradient is checked here."""
    mesh, backend = init_device_mesh("cpu", (2,)), TransformerEngine("fp8_block")
    with pytest.MonkeyPatch.context() as patch:
        te_stand_in.install(patch)
        patch.setattr(te, "GEMM_DTYPE", torch.float64)
        plain = weights_of(torch.float32)
        spread = {
            name: torch.nn.Parameter(DTensor.from_local(weight.detach().clone(), mesh, [Shard(0)], run_check=False))
            for name, weight in plain.items()
        }
        backend.hold_weights(True)
        for micro_batch in range(3):
            leaves, order = tokens_of(20, torch.float64, seed=10 * micro_batch), order_of(20, seed=micro_batch)
            backend(*leaves.values(), *map(local, spread.values()), order).sum().backward()
            BACKENDS["loop"](*leaves.values(), *plain.values(), order).sum().backward()
        grads = {name: parameter.grad for name, parameter in spread.items()}
        assert all(isinstance(grad, DTensor) and grad.shape[0] == 2 * E for grad in grads.values())
        assert_close({name: local(grad) for name, grad in grads.items()}, {n: w.grad for n, w in plain.items()}, 1e-6)
        return calls(backend)


def test_gradients_of_parameters_that_ranks_share_add_up_in_place():
    for seen in on_ranks(2, spread_over_ranks, init=True):
        assert seen == [(True, False), (False, True), (False, True)]


def sharded(backend: Any, reshard: bool) -> dict[str, Tensor]:
    """The gradients of this rank's shards after a step of three micro-batches under FSDP."""
    experts = Experts(E, H, I, "loop")
    experts.backend = backend
    with torch.no_grad():
        for name, weight in weights_of(torch.float64).items():
            experts.get_parameter(name).copy_(weight)
    fully_shard(experts, reshard_after_forward=reshard, shard_placement_fn=lambda _: Shard(2))
    experts.set_gradient_divide_factor(1.0)
    experts.set_force_sum_reduction_for_comms(True)
    for micro_batch in range(3):
        leaves = tokens_of(20, torch.float64, seed=100 * dist.get_rank() + 10 * micro_batch)
        keep_gathered([experts], keep=micro_batch < 2 and not reshard)
        experts(*leaves.values(), order_of(20, seed=micro_batch)).sum().backward()
    return {name: local(weight.grad) for name, weight in experts.named_parameters() if weight.grad is not None}


def under_fsdp(reshard: bool) -> list[tuple[bool | None, bool]]:
    backend = TransformerEngine("fp8_block")
    with pytest.MonkeyPatch.context() as patch:
        te_stand_in.install(patch)
        patch.setattr(te, "GEMM_DTYPE", torch.float64)
        backend.hold_weights(True)
        assert_close(sharded(backend, reshard), sharded(BACKENDS["loop"], reshard), 1e-6)
        return calls(backend)


@pytest.mark.parametrize("reshard", [False, True])
def test_fsdp_gathers_weights_that_are_kept_quantised_and_reduces_gradients(reshard):
    for seen in on_ranks(2, under_fsdp, reshard, init=True):
        assert seen == [(True, False), (False, False), (False, False)]


def test_gradients_in_pieces_are_stacked():
    """Older versions make one tensor for each expert."""
    pieces = [torch.randn(3, 2) for _ in range(4)]
    assert torch.equal(together(pieces), torch.stack(pieces))
    whole = torch.randn(4, 3, 2)
    assert together(whole.unbind(0)) is whole
    assert torch.equal(together(whole.flip(0).unbind(0)), whole.flip(0))
    shuffled = [whole[e] for e in (1, 0, 2, 3)]
    assert torch.equal(together(shuffled), torch.stack(shuffled))


class TestDelayedScaling:
    @pytest.fixture(autouse=True)
    def _stand_in(self, monkeypatch: pytest.MonkeyPatch) -> None:
        te_stand_in.install(monkeypatch)

    def scales(self, backend: TransformerEngine) -> list[Tensor]:
        return [state.scale.clone() for gemm in backend._gemms or () for state in gemm.linear.fp8_meta.values()]

    def test_the_first_numbers_set_the_first_scales(self):
        """With scale 1 gradients of 1e-9 are all zero in e5m2, and inputs of 1e4 all 448 in e4m3."""
        leaves = tokens_of(37, torch.float32) | weights_of(torch.float32)
        with torch.no_grad():
            leaves["x"].mul_(1e4)
        found = run(TransformerEngine("fp8_delayed"), order_of(37), leaves, dy_scale=1e-9)
        expected = run(BACKENDS["loop"], order_of(37), leaves, dy_scale=1e-9)
        assert_close(found, expected, 0.25)

    def test_scales_move_once_a_step(self):
        backend, weights = TransformerEngine("fp8_delayed"), weights_of(torch.float32)
        seen = []
        for step in range(2):
            backend.hold_weights(True)
            for micro_batch in range(2):
                leaves = tokens_of(20, torch.float32, seed=20 * step + 10 * micro_batch)
                y = backend(*leaves.values(), *weights.values(), order_of(20))
                y.backward(normal(*y.shape, seed=micro_batch + 1).to(y.dtype))
                seen.append(self.scales(backend))
            backend.hold_weights(False)
        for step in range(2):
            assert all(torch.equal(*pair) for pair in zip(seen[2 * step], seen[2 * step + 1], strict=True))
        assert not any(torch.equal(*pair) for pair in zip(seen[1], seen[2], strict=True))

    def test_scales_follow_the_largest_numbers_of_the_last_steps(self):
        backend, weights = TransformerEngine("fp8_delayed"), weights_of(torch.float32)
        order = order_of(20, [0, 1, 2, 3, 4])
        largest = []
        for size in (3.0, 1.0, *[0.5] * te.AMAX_HISTORY):
            backend.hold_weights(True)
            for part in (1.0, 0.5):
                leaves = tokens_of(20, torch.float32)
                x = (leaves["x"].detach() * size * part).requires_grad_()
                backend(x, leaves["weights"], *weights.values(), order).sum().backward()
            backend.hold_weights(False)
            rows = leaves["x"][order.token_of_row[: int(order.offsets[0])]]
            largest.append(size * rows.bfloat16().abs().max().item())
            scale = (backend._gemms or ())[0].linear.fp8_meta["scaling_fwd"].scale
            expected = 448.0 / max(largest[-te.AMAX_HISTORY :])
            assert scale[0].item() == pytest.approx(expected, rel=1e-2)
        assert scale.isfinite().all(), "the expert without rows"

    def test_recomputing_changes_nothing(self):
        plain, again = (
            steps(TransformerEngine("fp8_delayed"), weights_of(torch.float32), recompute) for recompute in (False, True)
        )
        for step in range(2):
            assert all(torch.equal(plain[step][name], again[step][name]) for name in plain[step])

    def test_a_number_that_is_not_finite_is_forgotten(self):
        backend, weights = TransformerEngine("fp8_delayed"), weights_of(torch.float32)
        for factor in (1.0, torch.inf, 2.0):
            backend.hold_weights(True)
            leaves = tokens_of(20, torch.float32)
            x = leaves["x"].detach().mul(factor).requires_grad_()
            backend(x, leaves["weights"], *weights.values(), order_of(20)).sum().backward()
            backend.hold_weights(False)
        assert all(scale.isfinite().all() for scale in self.scales(backend))
        into = (backend._gemms or ())[0].linear.fp8_meta["scaling_fwd"]
        assert into.amax_history[:, ::3].max() == 2 * tokens_of(20, torch.float32)["x"].bfloat16().abs().max()

    def test_a_layer_moves_no_scale_of_another(self):
        backends = [TransformerEngine("fp8_delayed") for _ in range(2)]
        for backend in backends:
            run(backend, order_of(20), tokens_of(20, torch.float32) | weights_of(torch.float32))
        before = self.scales(backends[0])
        run(backends[1], order_of(20), tokens_of(20, torch.float32) | weights_of(torch.float32))
        assert all(torch.equal(*pair) for pair in zip(before, self.scales(backends[0]), strict=True))


def test_what_the_log_says(monkeypatch):
    te_stand_in.install(monkeypatch)
    assert TransformerEngine("fp8_block").describe(8) == (
        "Transformer Engine 2.20.2, Float8BlockScaling, native grouped GEMM: no host sync"
    )
    te_stand_in.install(monkeypatch, cublaslt=130000)
    assert TransformerEngine("fp8_block").describe(8) == (
        "Transformer Engine 2.20.2, Float8BlockScaling, list path: one host sync a layer, as cuBLASLt 13.0 < 13.6"
    )
    te_stand_in.install(monkeypatch, native=False)
    assert "list path: one host sync a layer, as Transformer Engine 2.20.2 refuses" in (
        TransformerEngine("fp8_block").describe(8)
    )


def test_scales_are_powers_of_two_under_block_scaling_alone(stand_in):
    for recipe, power_of_two in {"fp8_block": True, "fp8_current": False}.items():
        made = te._te_recipe(recipe)
        tensors = (made.fp8_quant_fwd_inp, made.fp8_quant_fwd_weight, made.fp8_quant_bwd_grad)
        assert [tensor.power_2_scale for tensor in tensors] == [power_of_two] * 3


def test_more_experts_than_the_native_path_takes(stand_in, monkeypatch):
    assert "native" in TransformerEngine(stand_in).describe(64)
    assert "as 65 experts a rank > 64" in TransformerEngine(stand_in).describe(65)
    ids = torch.randint(65, (40, 1), generator=torch.Generator().manual_seed(0))
    w13, w2 = torch.randn(65, 2, 16, 16), torch.randn(65, 16, 16)
    backend = TransformerEngine(stand_in)
    backend(torch.randn(40, 16), torch.rand(40, 1), w13, w2, RowOrder(ids, 65))  # the stand-in minds the kind of splits
    assert isinstance((backend._gemms or ())[0].linear.calls[0].splits, list)


def test_an_unknown_recipe():
    with pytest.raises(ValueError, match="fp8_row is no recipe of Transformer Engine: fp8_block, fp8_current"):
        TransformerEngine("fp8_row")
