"""A signal is a request: noted, told to the person who may have sent it, and to nobody else."""

from __future__ import annotations

import os
import signal

import pytest

from trainer.run.stop import StopRequest


@pytest.mark.parametrize("ends_anyway", [False, True])
def test_a_signal_is_noted_and_told_unless_the_run_ends_anyway(capfd, ends_anyway):
    with StopRequest(silent=lambda: ends_anyway) as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.asked(signal.SIGTERM)
        assert not stop.asked(signal.SIGINT)
    said = "" if ends_anyway else "SIGTERM: finishing the step, then saving; again to quit now\n"
    assert capfd.readouterr().err == said
