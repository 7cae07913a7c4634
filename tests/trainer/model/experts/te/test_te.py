"""Experts on Transformer Engine, over a stand-in for it: numbers, kept weights, padding, delayed scaling."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from parallel.dispatch.base import RowOrder
from tests.trainer.model.experts.te import te_stand_in
from tests.trainer.model.experts.te.te_wiring import (
    ROUTINGS,
    E,
    H,
    I,
    calls,
    each_path,
    normal,
    order_of,
    run,
    steps,
    tokens_of,
    weights_of,
)  # fmt: skip
from tests.trainer.model.tiny import assert_close
from trainer.model.experts.base import QuantizedBackend
from trainer.model.experts.loop import loop
from trainer.model.experts.module import Experts
from trainer.model.experts.te import linear as te
from trainer.model.experts.te.linear import TransformerEngine

pytestmark = pytest.mark.usefixtures("poisoned_memory")


@each_path
@pytest.mark.parametrize("routing", ROUTINGS)
@pytest.mark.usefixtures("exact")
def test_outputs_and_gradients_are_those_of_the_loop(stand_in, routing):
    leaves, order = tokens_of(37, torch.float64) | weights_of(torch.float64), order_of(37, ROUTINGS[routing])
    found = run(TransformerEngine(stand_in), order, leaves)
    assert_close(found, run(loop, order, leaves), 1e-12)


@each_path
@pytest.mark.parametrize("tokens", [0, 1])
@pytest.mark.usefixtures("exact")
def test_no_token_or_one(stand_in, tokens):
    leaves, order = tokens_of(tokens, torch.float64) | weights_of(torch.float64), order_of(tokens)
    found = run(TransformerEngine(stand_in), order, leaves)
    assert_close(found, run(loop, order, leaves), 1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16])
def test_gemms_in_bf16_results_in_the_dtypes_of_the_arguments(stand_in, dtype, weight_dtype):
    leaves, order = tokens_of(37, dtype) | weights_of(weight_dtype), order_of(37)
    found = run(TransformerEngine(stand_in), order, leaves)
    assert {name: found[name].dtype for name in leaves} == {name: leaf.dtype for name, leaf in leaves.items()}
    assert found["y"].dtype == dtype
    double = {name: leaf.detach().double().requires_grad_() for name, leaf in leaves.items()}
    assert_close({name: value.double() for name, value in found.items()}, run(loop, order, double), 2e-2)


def test_the_experts_module_shows_nothing_of_it(stand_in):
    backend = TransformerEngine(stand_in)
    assert isinstance(backend, QuantizedBackend)
    experts = Experts(E, H, I, backend)
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
            assert_close(run(backend, order, leaves), run(loop, order, leaves), 1e-12)
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
        assert_close(run(backend, order_of(20), leaves), run(loop, order_of(20), leaves), 1e-12)
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
        expected = run(loop, order_of(37), leaves, dy_scale=1e-9)
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

    def test_an_evaluation_before_and_between_steps_changes_nothing(self):
        """It has larger numbers than training, and others for its experts."""

        def train(evaluated: bool) -> list[Tensor]:
            backend, weights, seen = TransformerEngine("fp8_delayed"), weights_of(torch.float32), []
            for step in range(3):
                if evaluated:
                    with torch.no_grad():
                        held_out = tokens_of(30, torch.float32, seed=5)
                        backend(50 * held_out["x"], held_out["weights"], *weights.values(), order_of(30, [1, 2, 4]))
                backend.hold_weights(True)
                leaves = tokens_of(20, torch.float32, seed=10 * step)
                y = backend(*leaves.values(), *weights.values(), order_of(20))
                y.backward(normal(*y.shape, seed=step).to(y.dtype))
                seen += [y.detach(), *self.scales(backend)]
                backend.hold_weights(False)
            return seen + self.scales(backend)

        assert all(torch.equal(*pair) for pair in zip(train(True), train(False), strict=True))

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
    backend(torch.randn(40, 16), torch.rand(40, 1), w13, w2, RowOrder(ids, 65))
    assert isinstance((backend._gemms or ())[0].linear.calls[0].splits, list)


def test_an_unknown_recipe():
    with pytest.raises(ValueError, match="fp8_row is not a recipe of Transformer Engine: fp8_block, fp8_current"):
        TransformerEngine("fp8_row")
