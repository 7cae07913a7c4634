"""The bench of the towers: the promise about memory, and every section at a small size."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.bench.towers import SECTIONS, signal_bytes
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
@pytest.mark.timeout(600)
@pytest.mark.parametrize("section", ["images", "vision"])
def test_a_section_prints_its_table(section):
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.towers", "--sections", section, "--quick"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n|") >= 3
    assert section in SECTIONS
