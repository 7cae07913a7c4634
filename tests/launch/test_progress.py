"""The display of long work on stderr."""

import io
import sys

import pytest

from launch.progress import ProgressDisplay
from trainer.storage.progress import Progress


def test_without_a_terminal_it_is_a_line_now_and_then(monkeypatch, capsys):
    seconds = iter([100.0, 100.0, 101.0, 120.0, 120.0, 124.0, 126.0, 200.0])
    monkeypatch.setattr("launch.progress.time.perf_counter", lambda: next(seconds))
    with ProgressDisplay() as progress:
        progress(Progress("tokenizing", 500, 1000, kept=500, tokens=0))  # an earlier start made half
        progress(Progress("tokenizing", 501, 1000, kept=500, tokens=100))
        progress(Progress("tokenizing", 600, 1000, kept=500, tokens=20_000))
        progress(Progress("writing", 0, 10, "tokens"))
        progress(Progress("writing", 1, 10, "tokens"))
        progress(Progress("writing", 2, 10, "tokens"))
        progress(Progress("writing", 10, 10, "tokens"))  # the end is the command's to report
    assert capsys.readouterr().err == (
        "tokenizing: 0.0 of 0.0 GB (60.0%), 1,000 tokens/s, 80 s left\n"
        "writing: 2 of 10 tokens (20.0%), 0 tokens/s, 24 s left\n"
    )


@pytest.mark.parametrize(
    ("state", "line"),
    [
        (Progress("writing", 2 * 10**9, 8 * 10**9), "writing: 2.0 of 8.0 GB (25.0%), 0.20 GB/s, 30 s left"),
        (Progress("counting experts", 1, 94, "layers"), "counting experts: 1 of 94 layers (1.1%), 16 min left"),
        (Progress("verifying", 3 * 10**9, 4 * 10**9, kept=3 * 10**9), "verifying: 3.0 of 4.0 GB (75.0%)"),
        (Progress("reading", 1, 2, "layers", detail="layer 0"), "reading: 1 of 2 layers (50.0%), 10 s left, layer 0"),
    ],
)
def test_speed_and_time_left_are_those_of_this_start(state, line, monkeypatch, capsys):
    seconds = iter([0.0, 10.0])
    monkeypatch.setattr("launch.progress.time.perf_counter", lambda: next(seconds))
    with ProgressDisplay() as progress:
        progress(state)
    assert capsys.readouterr().err == f"{line}\n"


def test_on_a_terminal_each_stage_has_a_bar(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    with ProgressDisplay() as progress:
        progress(Progress("tokenizing", 10**9, 10**9, tokens=10))
        progress(Progress("writing", 5, 10, "tokens"))
    shown = sys.stderr.getvalue()
    assert "tokenizing" in shown
    assert "1.0 of 1.0 GB (100.0%)" in shown
    assert "5 of 10 tokens (50.0%)" in shown


def test_results_on_standard_output_are_not_drawn_into_the_bar(monkeypatch, capsys):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    with ProgressDisplay() as progress:
        progress(Progress("comparing", 1, 10))
        print("a result")
    assert capsys.readouterr().out == "a result\n"
