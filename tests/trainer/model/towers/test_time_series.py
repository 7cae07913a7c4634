"""The time-series tower against formulas in fp64, and against torch's own encoder layer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.trainer.model.tiny import assert_close, relative
from tests.trainer.model.towers.published import published_gradients, published_tensors, randomise
from tests.trainer.model.towers.signal_formula import signal_formula, sines
from trainer.config.model import TimeSeriesConfig
from trainer.model.towers.signal_patches import (
    LONGEST,
    adapted_stride,
    normalised,
    patch_count,
    patch_stride,
    token_count,
)  # fmt: skip
from trainer.model.towers.time_series import Signal, TimeSeriesTower, prepare_signal

BOUND = 1e-5
# Every size differs from every other where it can, so that a swapped dimension cannot go unseen.
SIZES: dict[str, Any] = {
    "bins": 10, "width": 18, "num_layers": 2, "num_heads": 3, "mlp_width": 20, "positions": 64, "adapt_width": 22,
    "out_width": 26, "patch_width": 8, "patch_heads": 2, "patch_mlp_width": 12, "patch_positions": 320,
}  # fmt: skip


def tower(dtype: torch.dtype = torch.float32, **changed: Any) -> TimeSeriesTower:
    cfg = TimeSeriesConfig(**SIZES | changed)
    built = TimeSeriesTower(cfg)
    randomise(built)
    built.to(dtype)
    built.patches.positions.copy_(sines(cfg.patch_positions, cfg.patch_width)[:, None])
    return built


def recording(steps: int, channels: int) -> Tensor:
    """Neither centred nor scaled."""
    drawn = torch.randn(steps, channels, generator=torch.Generator().manual_seed(steps))
    return drawn * torch.arange(1, channels + 1) + 3


def formula(model: TimeSeriesTower, signal: Tensor, rate: float) -> tuple[Tensor, dict[str, Tensor]]:
    """The output in fp64, and the weights as leaves of its graph, under published names."""
    weights = {
        name.removeprefix("model.time_series."): tensor.detach().double().requires_grad_()
        for name, tensor in published_tensors(model, "signals").items()
        if not name.endswith("pos_encoder.pe")
    }
    out = signal_formula(weights, signal.double(), rate, SIZES["num_heads"], SIZES["patch_heads"])
    return out, weights


# the formula loops over 1567 patches
LONG = pytest.param(240001, 2, 500, marks=[pytest.mark.slow, pytest.mark.timeout(600)])
CASES = [(1000, 3, 100), (147, 3, 36), (10, 1, 1), (16000, 1, 16000)]


@pytest.mark.parametrize(("steps", "channels", "rate"), [*CASES, LONG])
def test_outputs_are_the_formulas(steps, channels, rate):
    check_formula(tower(), recording(steps, channels), rate)


@pytest.mark.gpu
@pytest.mark.parametrize(("steps", "channels", "rate"), CASES)
def test_outputs_on_a_gpu_are_the_formulas(steps, channels, rate):
    check_formula(tower(), recording(steps, channels), rate, "cuda")


@torch.no_grad()
def check_formula(model: TimeSeriesTower, signal: Tensor, rate: float, device: str = "cpu") -> None:
    expected, _ = formula(model, signal, rate)
    prepared = prepare_signal(signal, rate)
    assert expected.shape == (token_count(len(prepared.values), rate), SIZES["out_width"])
    found = model.to(device)([prepared._replace(values=prepared.values.to(device))])
    assert relative(found.cpu(), expected) <= BOUND


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, BOUND), (torch.float64, 1e-12)])
def test_gradients_are_the_formulas(dtype, bound):
    """More tokens than rows of the position table too."""
    model, signal = tower(dtype, positions=4), recording(147, 3)
    expected, weights = formula(model, signal, 36)
    upstream = torch.randn(expected.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    expected.backward(upstream)
    scaled = (signal.double() - signal.double().mean(0)) / (signal.double().std(0, correction=0) + 1e-8)
    found = model([Signal(scaled.to(dtype), 36)])
    found.backward(upstream.to(dtype))
    reference = {f"model.time_series.{name}": weight.grad for name, weight in weights.items()}
    assert_close(published_gradients(model, "signals"), reference, bound)


@torch.no_grad()
def test_the_patch_encoder_is_torchs_layer():
    """At the published sizes; the serving engine builds it from torch.nn.TransformerEncoderLayer."""
    model = tower(patch_width=128, patch_heads=8, patch_mlp_width=2048).patches
    theirs = torch.nn.TransformerEncoderLayer(d_model=128, nhead=8).eval()
    stored = published_tensors(model, "signals.patches").items()
    theirs.load_state_dict({name.partition("layers.0.")[2]: tensor for name, tensor in stored if "layers.0." in name})
    patches = torch.randn(5, 1, 12, generator=torch.Generator().manual_seed(6))
    x = torch.relu(model.conv(patches)).permute(2, 0, 1) + model.positions[:12]
    assert relative(model([patches]), theirs(x).mean(0)) <= BOUND


@torch.no_grad()
def test_signals_together_are_signals_alone():
    model = tower(torch.float64)
    signals = [prepare_signal(recording(steps, 2), 36) for steps in (147, 30, 147)]
    together = model(signals)
    assert relative(together, torch.cat([model([signal]) for signal in signals])) <= 1e-14
    assert not torch.equal(*together[[0, -1]])


@torch.no_grad()
def test_patches_encoded_in_parts_are_patches_encoded_at_once(monkeypatch):
    model, signal = tower(torch.float64), prepare_signal(recording(1000, 3), 100)
    expected = model([signal])
    monkeypatch.setattr("trainer.model.towers.time_series.STEPS_AT_A_TIME", 1)
    assert relative(model([signal]), expected) <= 1e-14


@torch.no_grad()
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5])
def test_signals_shorter_than_two_patches_have_one_token(steps):
    """Published code stops on them; here they are filled with zeros."""
    model = tower()
    signal = Signal(recording(steps, 2), 1.0)
    filled = Signal(torch.cat([signal.values, torch.zeros(6 - steps, 2)]), 1.0)
    assert model([signal]).shape == (token_count(steps, 1.0), SIZES["out_width"]) == (1, SIZES["out_width"])
    assert torch.equal(model([signal]), model([filled]))


def test_strides_of_sampling_rates():
    """In fp32, as the published tower has it: at 2 kHz fp64 would give 159."""
    rates = [1e-3, 1, 36, 100, 500, 2000, 16000, 1e6]
    assert [patch_stride(rate) for rate in rates] == [2, 2, 6, 24, 153, 160, 160, 160]
    for rate in (0, -5, float("nan")):
        with pytest.raises(ValueError, match="use one above 0, in Hz"):
            patch_stride(rate)


def test_preparing_a_signal():
    ramp = torch.arange(LONGEST + 7)
    signal = prepare_signal(torch.stack([ramp, torch.full_like(ramp, 5)], dim=1), 250)
    assert (signal.values.shape, signal.values.dtype, signal.rate) == ((LONGEST, 2), torch.float32, 250)
    mean, std = (len(ramp) - 1) / 2, ((len(ramp) ** 2 - 1) / 12) ** 0.5
    assert relative(signal.values[:, 0], (ramp[:LONGEST] - mean) / std) <= 1e-7
    assert not signal.values[:, 1].any()
    assert prepare_signal(torch.ones(1), None) == (torch.zeros(1, 1), 1.0, None)
    assert prepare_signal(ramp, 0).rate == LONGEST / 4
    for shape in ((0, 2), (3, 0), (2, 2, 2)):
        with pytest.raises(ValueError, match=r"a signal of shape .*; use \[steps, channels\] or \[steps\]"):
            prepare_signal(torch.zeros(shape))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1j])
def test_a_signal_or_a_rate_without_a_finite_value_is_refused(value):
    with pytest.raises(ValueError, match="complex numbers, NaN or infinity"):
        prepare_signal(torch.tensor([0.5] * 9 + [value]), 10)
    if isinstance(value, float):
        with pytest.raises(ValueError, match="or None where it is unknown"):
            prepare_signal(torch.ones(10), value)


def test_strides_are_those_of_torch_in_fp32():
    """NumPy's exponential may round otherwise."""
    rates = [*range(1, 5000), *(0.01 * k for k in range(1, 60_000, 7)), 44_100, 96_000, 1e6]
    given = torch.tensor(rates, dtype=torch.float32)
    expected = torch.floor(160 / (1 + torch.exp(-given / 100)) ** 6).int().tolist()
    assert [patch_stride(rate) for rate in rates] == expected


LENGTHS = [1, 2, 3, 5, 7, 100, 1535, 1536, 1537, 1538, 61_479, 61_480, 240_000, 240_001, 999_999, 1_000_000]


@pytest.mark.parametrize("max_tokens", [25, 384])
@pytest.mark.parametrize("rate", [0.1, 36, 500, 44_100])
def test_adapted_strides_leave_no_step_out_and_keep_the_most_tokens(rate, max_tokens):
    for steps in LENGTHS:
        stride = adapted_stride(steps, rate, max_tokens)
        assert token_count(steps, rate, stride) <= max_tokens
        assert (patch_count(steps, rate, stride) + 1) * stride >= steps
        if stride > patch_stride(rate):
            assert token_count(steps, rate, stride - 1) > max_tokens
        else:
            assert stride == patch_stride(rate)


@torch.no_grad()
@pytest.mark.parametrize(("steps", "max_tokens"), [(1, 4), (9, 4), (64, 4), (73, 1), (150, 3)])
def test_every_step_moves_the_output_under_adapted_strides(steps, max_tokens):
    model, values = tower(torch.float64), recording(steps, 2).double()
    stride = adapted_stride(steps, 1, max_tokens)
    signal = Signal(values, 1, stride)
    expected = model([signal])
    assert len(expected) == token_count(steps, 1, stride) <= max_tokens
    for step in range(steps):
        changed = values.clone()
        changed[step, step % 2] += 1
        assert relative(model([signal._replace(values=changed)]), expected) > 1e-9


@torch.no_grad()
def test_published_patches_leave_out_the_last_steps_where_one_has_no_partner():
    model, values = tower(torch.float64), recording(15, 2).double()
    changed = values.clone()
    changed[-1] += 1
    for stride, same in [(None, True), (2, False)]:
        found = [model([Signal(given, 1, stride)]) for given in (values, changed)]
        assert torch.equal(*found) == same


@torch.no_grad()
def test_an_adapted_signal_that_fits_is_the_published_one():
    model, signal = tower(), prepare_signal(recording(984, 3), 100)
    assert patch_count(984, 100, 24) == patch_count(984, 100) == 40
    assert torch.equal(model([signal._replace(stride=24)]), model([signal]))


def test_parts_are_computed_again_for_the_same_gradients(monkeypatch):
    model, signal = tower(torch.float64), prepare_signal(recording(200, 2), 36)
    grads = []
    for steps in (1 << 20, 50):
        monkeypatch.setattr("trainer.model.towers.time_series.STEPS_AT_A_TIME", steps)
        model.zero_grad()
        model([signal]).square().sum().backward()
        grads.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
    assert_close(grads[1], grads[0], 1e-13)


def test_a_stride_beyond_the_positions_of_a_patch_is_refused():
    for stride in (0, 161):
        with pytest.raises(ValueError, match="this tower has them from 1 to 160"):
            tower()([Signal(torch.zeros(700, 1), 1.0, stride)])


@pytest.mark.parametrize("offset", [0.0, 1e4, -1e9])
def test_scores_are_right_far_from_zero_in_fp32_too(offset):
    """Sums of fp32 along the steps of [T, C] would be off by a hundred deviations."""
    drawn = torch.randn(100_000, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).numpy() + offset
    values = drawn.astype("float32") if abs(offset) < 1e6 else drawn
    wide = values.astype("longdouble")
    expected = (wide - wide.mean(0)) / wide.std(0)
    assert abs(normalised(values) - expected).max() <= 1e-6


@pytest.mark.parametrize("value", [0.1, 1_000_000.1, -3e12])
@pytest.mark.parametrize("steps", [1, 7, 1000])
def test_a_constant_channel_is_zero_whatever_its_computed_deviation(value, steps):
    assert not prepare_signal(torch.full((steps, 1), value, dtype=torch.float64)).values.any()


def test_a_signal_of_another_shape():
    with pytest.raises(ValueError) as refused:
        tower()([Signal(torch.zeros(0, 2), 1.0)])
    assert str(refused.value) == "a signal of shape [0, 2]; use [steps, channels], none of them 0"
