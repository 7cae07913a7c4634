"""The time-series tower beside the published serving file: stored results of it here, the file itself where it is."""

from __future__ import annotations

import json

import pytest
import torch

from tests.trainer.model.tiny import assert_close, relative
from tests.trainer.model.towers import serving
from tests.trainer.model.towers.published import published_gradients
from tests.trainer.model.towers.signal_formula import signal_formula
from trainer.model.towers.time_series import TimeSeriesTower, prepare_signal

BOUND = 1e-5
QUICK = ["1000 steps", "147 steps", "10 steps", "16 kHz"]
SLOW = [
    pytest.param(name, marks=[pytest.mark.slow, pytest.mark.timeout(900)])
    for name in serving.CASES
    if name not in QUICK
]


def prepared(name: str):
    steps, channels, rate = serving.CASES[name]
    return prepare_signal(serving.recording(steps, channels), rate)


@torch.no_grad()
@pytest.mark.parametrize("name", [*QUICK, *SLOW])
def test_outputs_are_the_stored_ones(name):
    stored = json.loads(serving.STORED.read_text())["cases"][name]
    found = serving.tower()([prepared(name)])
    assert list(found.shape) == stored["shape"]
    assert relative(torch.tensor(serving.spread(found)), torch.tensor(stored["values"])) <= BOUND
    assert stored["error"] <= BOUND


@torch.no_grad()
@pytest.mark.parametrize("name", [*QUICK, *SLOW])
def test_the_formula_gives_the_stored_outputs(name):
    weights = {
        key.removeprefix("model.time_series."): tensor.double()
        for key, tensor in serving.published_tensors(serving.tower(), "signals").items()
        if not key.endswith("pos_encoder.pe")
    }
    steps, channels, rate = serving.CASES[name]
    found = signal_formula(weights, serving.recording(steps, channels), rate, serving.SIZES["num_heads"], 8)
    stored = json.loads(serving.STORED.read_text())["cases"][name]
    assert relative(torch.tensor(serving.spread(found)), torch.tensor(stored["values"])) <= BOUND


def both():
    """Our tower and the published one, with the same weights."""
    if serving.wheel() is None:
        pytest.skip("no wheel of lmdeploy in .cache: python -m tests.trainer.model.towers.serving fetch")
    ours = serving.tower()
    return ours, serving.published_model(ours)


@torch.no_grad()
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", serving.CASES)
def test_outputs_are_the_serving_files(name):
    ours, theirs = both()
    signal = prepared(name)
    assert relative(ours([signal]), serving.published_result(theirs, signal)) <= BOUND


@pytest.mark.slow
@pytest.mark.parametrize("name", ["1000 steps", serving.GRADIENTS])
def test_gradients_are_the_serving_files(name):
    ours, theirs = both()
    assert_close(our_gradients(ours, name), serving.published_gradients(theirs, prepared(name)), 1e-11)


def test_gradients_are_the_stored_ones():
    """Compares for every parameter the norm, a sum that depends on the order, and values."""
    stored = json.loads(serving.STORED.read_text())["gradients"]
    gradients = our_gradients(serving.tower(), serving.GRADIENTS)
    found = {name: torch.tensor(serving.summary(gradient)) for name, gradient in gradients.items()}
    assert_close(found, {name: torch.tensor(values) for name, values in stored.items()}, BOUND)


def our_gradients(model: TimeSeriesTower, name: str) -> dict[str, torch.Tensor]:
    signal = prepared(name)
    result = model.double()([signal._replace(values=signal.values.double())])
    result.backward(serving.upstream(result))
    return published_gradients(model, "signals")
