"""Layers of towers in halves take any size with one compilation, and compute the same."""

from __future__ import annotations

import pytest

from tests.bench.compiled_towers import LENGTHS, compiled, signal_layers, vision_layers


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("make", "width"), [(vision_layers, 128), (signal_layers, 128)])
def test_halves_are_compiled_once(make, width):
    found = compiled(make, width, "halves", LENGTHS[:3], rounds=1)
    assert found.graphs > 0
    assert found.later == 0
    assert found.difference <= 1e-5
