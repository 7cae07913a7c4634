"""The bench of the towers: the promises about memory and time."""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest

from tests.bench.towers import images, signal_bytes
from trainer.data.media.signals import SignalRule


def peak(steps: int, max_tokens: int, **sizes: int) -> int:
    return signal_bytes(steps, 500.0, SignalRule(max_tokens=max_tokens).stride(steps, 500.0), **sizes)


def test_a_signal_of_four_times_the_steps_needs_a_fifth_more_memory_at_most():
    """A quarter of the published lengths with a quarter of the tokens."""
    assert peak(250_000, 96, num_layers=2) <= 1.2 * peak(60_000, 96, num_layers=2)


@pytest.mark.slow
def test_a_million_steps_need_a_fifth_more_memory_than_240000_at_most():
    assert peak(1_000_000, 384) <= 1.2 * peak(240_000, 384)


@pytest.mark.slow
def test_images_take_two_thirds_of_the_time_of_transformers_at_most():
    found = images(quick=False, rounds=5)
    assert found["after decoding"] >= 1.5
    assert found["with decoding"] >= 1.2


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_vision_tower_is_near_its_products_and_not_slower_than_transformers():
    """In a process of its own: the allocator's settings would stay in this one."""
    code = "from tests.bench.towers import vision; print(vision(quick=False, rounds=2))"
    done = subprocess.run(
        [sys.executable, "-c", f"import torch; torch.set_num_threads(1); {code}"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = ast.literal_eval(done.stdout.splitlines()[-1])
    assert found["over its products"] <= 1.12
    assert found["against transformers"] >= 1.0
