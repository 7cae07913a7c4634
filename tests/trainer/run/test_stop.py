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
    printed = "" if silent else "SIGTERM: finishing the step, then saving; again to quit now\n"
    assert capfd.readouterr().err == printed
