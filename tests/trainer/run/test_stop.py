"""A signal is a request: recorded, and reported by one rank."""

from __future__ import annotations

import os
import signal

import pytest

from trainer.run.stop import StopRequest


@pytest.mark.parametrize("silent", [False, True])
def test_a_signal_is_recorded_and_reported_unless_silent(capfd, silent):
    with StopRequest(silent=lambda: silent) as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested(signal.SIGTERM)
        assert not stop.requested(signal.SIGINT)
    printed = capfd.readouterr().err.splitlines()
    assert ["SIGTERM" in line for line in printed] == ([] if silent else [True])
