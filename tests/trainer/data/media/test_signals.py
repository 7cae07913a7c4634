"""The rule from a recording to the tower's input."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from trainer.data.errors import DataError
from trainer.data.media.readers.recording import MOST_CHANNELS, Recording, chosen, on_grid, one_rate
from trainer.data.media.signals import SignalRule
from trainer.model.towers.time_series import prepare_signal

RANDOM = np.random.default_rng(0)


def recorded(values: np.ndarray, rate: float | None = 100.0) -> Recording:
    values = np.atleast_2d(values.T).T
    names = tuple(f"channel {number}" for number in range(values.shape[1]))
    return Recording(values, rate, names, ("mV",) * len(names))


@pytest.mark.parametrize("rate", [None, 0.0, 100.0, 2000.0])
@pytest.mark.parametrize("dtype", ["float32", "float64", "int16", "uint8", "int64"])
def test_cut_is_prepare_signal_bit_for_bit(rate, dtype):
    for steps, channels in [(1, 1), (2, 3), (1000, 2), (240_007, 1)]:
        values = (RANDOM.normal(0, 20, (steps, channels)) + 100).astype(dtype)
        expected = prepare_signal(torch.from_numpy(values), rate)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = SignalRule("cut").prepare(recorded(values, rate))
        assert (found.values.dtype, found.rate, found.stride) == (np.float32, expected.rate, None)
        assert np.array_equal(found.values, expected.values.numpy())


def test_adapt_loses_nothing_and_has_at_most_its_tokens():
    rule = SignalRule()
    for steps in (1, 500, 240_000, 240_001, 1_000_000):
        found = rule.prepare(recorded(RANDOM.normal(size=steps), 250.0))
        assert len(found.values) == steps
        assert 1 <= rule.tokens(steps, 250.0) <= rule.max_tokens == 384
        assert rule.left_out(steps) == 0
    assert SignalRule().stride(240_000, 16_000) == SignalRule().stride(1, 16_000) == 160


def test_cut_counts_what_it_leaves_out():
    rule = SignalRule("cut")
    with pytest.warns(UserWarning, match=r"doc 3.*760,000 of 1,000,000"):
        found = rule.prepare(recorded(np.arange(1_000_000), 1.0), where="doc 3")
    assert len(found.values) == 240_000
    assert rule.left_out(1_000_000) == 760_000
    assert rule.tokens(1_000_000, 1.0) == rule.tokens(240_000, 1.0) == 30_000


@pytest.mark.parametrize("long", ["cut", "adapt"])
def test_what_is_missing_is_zero_and_does_not_count(long):
    values = RANDOM.normal(5, 3, (200, 2))
    gapped = np.insert(values, 50, np.full((30, 2), np.nan), axis=0)
    gapped[60, 0], gapped[61, 0] = np.inf, -np.inf
    found = SignalRule(long).prepare(recorded(gapped)).values
    expected = SignalRule(long).prepare(recorded(values)).values
    assert not found[50:80].any()
    np.testing.assert_array_equal(np.delete(found, slice(50, 80), axis=0), expected)


@pytest.mark.parametrize("long", ["cut", "adapt"])
def test_constant_channels_one_step_and_missing_channels_are_zero(long):
    values = np.stack([np.full(1000, 1_000_000.1), np.full(1000, np.nan), RANDOM.normal(size=1000)], axis=1)
    found = SignalRule(long).prepare(recorded(values)).values
    assert not found[:, :2].any()
    assert abs(found[:, 2].std() - 1) < 1e-5
    assert not SignalRule(long).prepare(recorded(np.array([7]))).values.any()


def test_adapt_does_not_depend_on_the_unit():
    volts = RANDOM.normal(0, 1e-9, 500)
    micro, plain = (SignalRule().prepare(recorded(values)).values for values in (volts * 1e6, volts))
    assert abs(micro - plain).max() <= 1e-6
    assert SignalRule("cut").prepare(recorded(volts)).values.std() < 0.1  # as published


def test_integers_at_the_ends_of_their_type():
    found = SignalRule().prepare(recorded(np.array([-32768, 32767, 0], "int16"))).values[:, 0]
    assert abs(found - [-1.2247, 1.2248, 0]).max() < 1e-4


def test_a_signal_that_does_not_fit_is_refused():
    rule = SignalRule(max_tokens=4)
    assert rule.stride(170_000, 10) == 10_000
    with pytest.raises(DataError) as error:
        rule.tokens(170_001, 10, where="doc 3")
    assert (error.value.where, error.value.value, error.value.allowed) == ("doc 3", 170_001, 170_000)


BAD = {
    "no steps": np.zeros((0, 2)),
    "no channels": np.zeros((2, 0)),
    "one axis": np.zeros(3),
    "three axes": np.zeros((2, 2, 2)),
    "complex": np.zeros((2, 2), complex),
    "nothing finite": np.full((3, 2), np.nan),
    "steps along the second axis": np.zeros((2, MOST_CHANNELS + 1)),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_signal_is_one_line_that_names_it(name):
    with pytest.raises(DataError) as error:
        SignalRule().prepare(Recording(BAD[name], 1.0, (), ()), where="doc 3")
    assert (error.value.where, error.value.value) == ("doc 3", BAD[name].shape)
    assert len(error.value.lines) == 1


@pytest.mark.parametrize("scale", [2.0**-1000, 2.0**-600, 2.0**600, 2.0**1010])
def test_adapt_scales_values_whose_squares_leave_fp64(scale):
    """1e-301 to 1e304; a power of two changes no bit."""
    values = RANDOM.normal(5, 3, (500, 2))
    values[7, 0] = np.nan
    found = SignalRule().prepare(recorded(values * scale)).values
    np.testing.assert_array_equal(found, SignalRule().prepare(recorded(values)).values)


def test_cut_makes_tiny_values_zero_as_published():
    assert not SignalRule("cut").prepare(recorded(np.array([1e-170, 2e-170, 0]))).values.any()
    assert not SignalRule("cut").prepare(recorded(np.array([5e-324, 0, 0]))).values.any()
    assert abs(SignalRule().prepare(recorded(np.array([5e-324, -5e-324, 0]))).values[0, 0] - 1.2247) < 1e-4


@pytest.mark.parametrize(("key", "value"), [("long", "crop"), ("max_tokens", 0)])
def test_a_wrong_rule_is_refused(key, value):
    with pytest.raises(DataError) as error:
        SignalRule(**{key: value})
    assert (error.value.where, error.value.value) == (f"--signal {key}", value)


@pytest.mark.parametrize("values", [RANDOM.normal(size=(9, 2)), np.arange(8.0).reshape(4, 2), np.full((2, 2), np.nan)])
def test_a_stored_recording_is_the_recording(values):
    recording = Recording(values, 12.5, ("I", "µ"), ("mV", ""))
    data = recording.to_bytes()
    found = Recording.from_bytes(data, where="a")
    np.testing.assert_array_equal(found.values, values)
    assert (found.rate, found.channels, found.units) == (12.5, ("I", "µ"), ("mV", ""))
    assert found.to_bytes() == data


@pytest.mark.parametrize("cut", [0, 5, 20, 60, -1])
def test_a_stored_recording_that_is_cut_is_refused(cut):
    data = Recording(np.ones((4, 2)), None, ("a", "b"), ("", "")).to_bytes()
    with pytest.raises(DataError) as error:
        Recording.from_bytes(data[:cut], where="doc 3")
    assert error.value.where == "doc 3"


def test_channels_are_chosen_by_name():
    recording = Recording(np.arange(6).reshape(2, 3), 1.0, ("a", "b", "c"), ("V", "", "mV"))
    found = chosen(recording, ["c", "a"], "x")
    assert (found.values.tolist(), found.channels, found.units) == ([[2, 0], [5, 3]], ("c", "a"), ("mV", "V"))
    with pytest.raises(DataError) as error:
        chosen(recording, ["d"], "x")
    assert (error.value.where, error.value.value, error.value.allowed) == ("x", "d", ("a", "b", "c"))
    with pytest.raises(DataError) as error:
        one_rate({"a": 1.0, "b": 2.0}, "x")
    assert error.value.value == {"a": 1.0, "b": 2.0}


def test_times_with_a_gap_become_a_grid():
    times = np.round(np.array([0, 1, 2, 5, 6]) / 3 + 1e9, 2)
    values, rate = on_grid(times, np.arange(5.0)[:, None], "x")
    assert rate == pytest.approx(3, rel=0.01)
    np.testing.assert_array_equal(values[:, 0], [0, 1, 2, np.nan, np.nan, 3, 4])


@pytest.mark.parametrize(
    "times", [[0, 1, 1, 2], [0, 2, 1, 3], [0, 1, 2.3, 3.1, 4], [0.0], [0, np.nan, 2], [0, 1, 1e12]]
)
def test_times_that_are_not_a_grid_are_refused(times):
    with pytest.raises(DataError) as error:
        on_grid(np.array(times, float), np.zeros((len(times), 1)), "x")
    assert error.value.where == "x"
