"""The terminal line and wandb: they show the record and can never stop a run."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
import types
from pathlib import Path

import pytest

from tests.trainer.tiny_run import tiny_config
from trainer.config.keys import LoggingConfig
from trainer.metrics.console import event_text, progress_line
from trainer.metrics.rates import Rates
from trainer.metrics.record import MetricsLog
from trainer.run.loop import Trainer
from trainer.run.process import train

RUN = {"flops_per_token": 1e6, "peak_flops": None, "config": {}}
FULL = {
    "step": 20,
    "loss": 5.43219,
    "tokens_per_second": 12345.6,
    "flops_per_second": 21.44e9,
    "peak_share": 0.413,
    "peak_memory_bytes": 3 * 2**30,
    "grad_norm": 1.2345,
    "max_load": 1.5,
    "lr": 3e-3,
    "skipped": 2,
}


def run(run_dir: Path, *, first: int = 1, **logging) -> None:
    cfg = LoggingConfig(**{"console": "plain", **logging})
    log = MetricsLog(
        run_dir,
        cfg,
        resume_step=first - 1,
        total_steps=100,
        flops_per_token=1e6,
        peak_flops=None,
        config={"a": {"b": 1}},
    )
    log.write([{"step": step, "loss": 3.0, "tokens": 10} for step in range(first, first + 2)])
    log.event({"event": "evaluation", "loss": 2.5, "per_source": {"code": 2.25}})
    log.write([{"step": step, "loss": 2.0, "tokens": 10} for step in range(first + 2, first + 4)])
    log.close()


def recorded_steps(run_dir: Path) -> list[int]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [line["step"] for line in lines if "event" not in line]


def on_a_terminal(monkeypatch, columns: int = 100) -> io.StringIO:
    """Make standard output a terminal. Returns the screen."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", str(columns))
    return screen


def test_the_line_has_every_part():
    line = progress_line(FULL, 300, seconds_left=3725)
    assert line == (
        "step  20/300 · loss 5.4322 · 12,346 tok/s · 21.4 GFLOP/s (41.3% of peak) · 3.00 GiB · |g| 1.234 · "
        "busiest expert 1.50x · lr 3.00e-03 · skipped 2 · 1:02:05 left"
    )


def test_scalars_of_an_objective_follow_the_loss():
    record = {"step": 1, "tokens": 64, "loss": 2.0, "accuracy": 0.25, "temperature": 0.07, "balance": 0.002, "z": 0.0}
    line = progress_line(record, 10, seconds_left=0)
    assert line == "step  1/10 · loss 2.0000 · accuracy 0.250 · temperature 0.070 · 0:00 left"


def test_of_the_many_figures_of_rollouts_three_are_shown():
    figures = {"length/mean": 3.5, "length/cut": 0.25, "masked/mis_low": 0.0, "mismatch/max": 0.0, "reward/mean": 0.5}
    line = progress_line({"step": 1, "loss": 2.0, "entropy": 1.5, **figures}, 10, seconds_left=0)
    shown = "entropy 1.500 · length/mean 3.500 · mismatch/max 0.000 · reward/mean 0.500"
    assert line == f"step  1/10 · loss 2.0000 · {shown} · 0:00 left"


def test_a_column_keeps_its_decimals_whatever_the_number():
    round_numbers = {**FULL, "loss": 5.0, "flops_per_second": 2e13, "peak_share": 0.4, "grad_norm": 0.5}
    line = progress_line(round_numbers, 300, seconds_left=0)
    assert "loss 5.0000 · 12,346 tok/s · 20.0 TFLOP/s (40.0% of peak) · 3.00 GiB · |g| 0.500 · " in line
    assert event_text({"step": 9, "event": "evaluation", "loss": 3.0}) == "step 9 · evaluation: loss 3.0000"


def test_no_share_is_shown_where_the_peak_is_unknown():
    line = progress_line({key: value for key, value in FULL.items() if key != "peak_share"}, 300, seconds_left=59.6)
    assert "21.4 GFLOP/s · " in line
    assert line.endswith("1:00 left")


def test_text_of_several_lines_is_shown_below_its_event():
    text = event_text({"step": 9, "event": "sample", "source": "code", "text": "def f():\n    return 1"})
    assert text == "step 9 · sample: source code\n    def f():\n        return 1"


def test_sizes_and_times_have_their_units():
    text = event_text({"step": 9, "event": "checkpoint", "size_bytes": 150 * 2**20, "write_seconds": 0.74})
    assert text == "step 9 · checkpoint: size 150.0 MiB · 0.7 s"


def test_elsewhere_than_a_terminal_there_are_plain_lines_only(tmp_path, capsys):
    run(tmp_path, console="auto")
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert [line.split(" · ")[0] for line in out.splitlines()] == ["step   2/100", "step 2", "step   4/100"]
    assert "evaluation: loss 2.5000 · per_source code 2.2500" in out


def test_on_a_terminal_rich_keeps_the_lines_and_leaves_no_bar_behind(tmp_path, monkeypatch):
    screen = on_a_terminal(monkeypatch, 200)
    run(tmp_path, console="auto")
    text = screen.getvalue()
    assert "step   4/100 · loss 2.0000" in text
    assert "\x1b[?25l" in text, "a live bar hides the cursor"
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l"), "and gives it back"


def bars(screen: io.StringIO) -> list[str]:
    """The bar as it was drawn, frame by frame, without colours."""
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())
    return [frame for frame in re.split(r"[\r\n]+", text) if "/100 ━" in frame]


def test_the_bar_moves_with_every_step_and_knows_the_time_left_from_the_first(tmp_path, monkeypatch):
    """At the resume, too, and long before the first log line."""
    clock = [0.0]
    for module in ("rates", "console"):
        monkeypatch.setattr(f"trainer.metrics.{module}.time", types.SimpleNamespace(monotonic=lambda: clock[0]))
    screen = on_a_terminal(monkeypatch)
    log = MetricsLog(tmp_path, LoggingConfig(console="rich"), resume_step=23, total_steps=100, **RUN)
    (view,) = log._views
    view._progress.refresh()
    assert "23/100" in bars(screen)[-1]
    assert "the first step" in bars(screen)[-1]
    for step, left in ((24, "12:40 left"), (25, "1:15 left"), (26, "1:14 left")):
        clock[0] += 10.0 if step == 24 else 1.0  # the first step also compiles
        log.advance(step)
        view._progress.refresh()
        assert f"{step}/100" in bars(screen)[-1]
        assert left in bars(screen)[-1]
        assert "GiB" in bars(screen)[-1]
        assert str(tmp_path)[:10] in bars(screen)[-1]
    log.during("evaluation")
    view._progress.refresh()
    assert "evaluation" in bars(screen)[-1]
    log.close()
    assert recorded_steps(tmp_path) == [], "a step that is only shown is not recorded"


def test_time_in_evaluations_is_part_of_the_time_left_and_not_of_a_step(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("trainer.metrics.rates.time", types.SimpleNamespace(monotonic=lambda: clock[0]))
    rates = Rates(1.0, None)
    for _ in range(10):
        clock[0] += 2.0
        rates.count_step()
    assert rates.seconds_left(5) == pytest.approx(10.0)
    clock[0] += 30.0
    rates.wait(30.0)
    clock[0] += 2.0
    rates.count_step()
    assert rates.seconds_left(11) == pytest.approx(11 * 2.0 + 30.0)


@pytest.mark.parametrize("columns", [40, 80])
def test_a_bar_leaves_room_for_what_the_terminal_prints_at_control_c(tmp_path, monkeypatch, columns):
    screen = on_a_terminal(monkeypatch, columns)
    long = tmp_path / ("long" * 20)
    long.mkdir()
    log = MetricsLog(long, LoggingConfig(console="rich"), resume_step=0, total_steps=100, **RUN)
    log.advance(1)
    log._views[0]._progress.refresh()
    log.close()
    assert bars(screen)
    assert all(len(frame.rstrip()) <= columns - 3 for frame in bars(screen)), bars(screen)


def test_moving_the_bar_costs_far_less_than_a_step(tmp_path, monkeypatch):
    on_a_terminal(monkeypatch)
    log = MetricsLog(tmp_path, LoggingConfig(console="rich"), resume_step=0, total_steps=100, **RUN)
    start = time.process_time()
    for step in range(1, 101):
        log.advance(step)
    spent = (time.process_time() - start) / 100
    log.close()
    assert spent < 0.005  # 1 % of a step of the toy, which takes half a second


def test_off_shows_nothing_and_records_all(tmp_path, capsys):
    run(tmp_path, console="off")
    assert capsys.readouterr().out == ""
    assert recorded_steps(tmp_path) == [1, 2, 3, 4]


def test_a_terminal_that_goes_away_does_not_stop_the_run(tmp_path, monkeypatch):
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError("reader left")

    monkeypatch.setattr(sys, "stdout", Gone())
    run(tmp_path)
    assert recorded_steps(tmp_path) == [1, 2, 3, 4]
    assert "the terminal view is disabled" in (tmp_path / "metrics.jsonl").read_text()


def test_without_wandb_the_run_continues_and_the_extra_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)  # import wandb raises ImportError
    run(tmp_path, wandb="offline")
    warnings = [line for line in capsys.readouterr().out.splitlines() if "warning" in line]
    assert len(warnings) == 1
    assert "pip install -e '.[wandb]'" in warnings[0]
    assert recorded_steps(tmp_path) == [1, 2, 3, 4]


class FakeWandb(types.ModuleType):
    """Records its calls; fails where it is asked to."""

    def __init__(self, fails_at: str = "", has_account: bool = True) -> None:
        super().__init__("wandb")
        self.fails_at, self.has_account, self.logged, self.mode = fails_at, has_account, [], None
        self.Settings = dict

    def _maybe_fail(self, where: str) -> None:
        if where == self.fails_at:
            raise RuntimeError(f"{where} broke\nin two lines")

    def login(self, **options) -> bool:
        assert options["prompt"] is False, "a question on the terminal would hang a batch job"
        return self.has_account

    def init(self, **options) -> "FakeWandb":
        self._maybe_fail("init")
        self.mode, self.id = options["mode"], options["id"]
        return self

    def log(self, record, step) -> None:
        self._maybe_fail("log")
        self.logged.append((step, record))

    def finish(self) -> None:
        self._maybe_fail("finish")


@pytest.mark.parametrize("where", ["init", "log", "finish"])
def test_a_broken_wandb_gives_one_warning_and_stops_nothing(tmp_path, monkeypatch, capsys, where):
    monkeypatch.setitem(sys.modules, "wandb", FakeWandb(fails_at=where))
    run(tmp_path, wandb="offline")
    warnings = [line for line in capsys.readouterr().out.splitlines() if "warning" in line]
    assert len(warnings) == 1
    assert f"{where} broke in two lines" in warnings[0]
    assert recorded_steps(tmp_path) == [1, 2, 3, 4]


def test_online_without_an_account_is_kept_offline_and_said(tmp_path, monkeypatch, capsys):
    fake = FakeWandb(has_account=False)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    run(tmp_path, wandb="online")
    assert fake.mode == "offline"
    assert "wandb sync" in capsys.readouterr().out


def test_wandb_sees_every_step_and_a_resumed_run_keeps_its_id(tmp_path, monkeypatch):
    first, second = FakeWandb(), FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", first)
    run(tmp_path, wandb="online")
    monkeypatch.setitem(sys.modules, "wandb", second)
    run(tmp_path, wandb="online", first=5)
    assert [step for step, record in first.logged if "loss" in record] == [1, 2, 3, 4]
    assert (2, {"evaluation/loss": 2.5, "evaluation/per_source": {"code": 2.25}}) in first.logged
    assert second.id == first.id


class KnownSettings:
    model_fields = ("silent", "x_transaction_log_flush_interval")


class OldSettings:
    """No interval: an older version."""


@pytest.mark.parametrize(("kind", "interval"), [(KnownSettings, 1.0), (OldSettings, None)], ids=["new", "old"])
def test_wandb_writes_what_is_logged_within_a_second_if_it_can(tmp_path, monkeypatch, kind, interval):
    fake, given = FakeWandb(), []
    fake.Settings = type("Settings", (kind,), {"__init__": lambda self, **options: given.append(options)})
    monkeypatch.setitem(sys.modules, "wandb", fake)
    run(tmp_path, wandb="offline")
    assert [options.get("x_transaction_log_flush_interval") for options in given] == [interval]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_run_that_a_signal_stops_finishes_wandb(tmp_path, monkeypatch, number, code):
    """After the step in which the signal came, and before the process ends."""
    calls: list[str] = []

    class Recording(FakeWandb):
        def log(self, record, step) -> None:
            calls.append(f"step {step}")

        def finish(self) -> None:
            calls.append("finish")

    genuine = Trainer._train_step

    def train_step(self, *args):
        if self.position.step == 1:
            os.kill(os.getpid(), number)
        genuine(self, *args)

    monkeypatch.setitem(sys.modules, "wandb", Recording())
    monkeypatch.setattr(Trainer, "_train_step", train_step)
    cfg = tiny_config(tmp_path, steps=9)
    cfg.logging.wandb = "offline"
    assert train(cfg) == code
    assert "step 2" in calls
    assert calls[-1] == "finish"
    assert calls.count("finish") == 1


KILLED = """
    import os, signal, sys, time
    from pathlib import Path
    from trainer.config.keys import LoggingConfig
    from trainer.metrics.record import MetricsLog
    where = Path(sys.argv[1])
    log = MetricsLog(where, LoggingConfig(wandb="offline", console="off"), resume_step=0,
                     total_steps=9, flops_per_token=1e6, peak_flops=None, config={})
    log.write([{"step": step, "loss": 3.0} for step in (1, 2)])  # wandb keeps a step back until the next one
    deadline = time.monotonic() + 60
    while not any(b"loss" in file.read_bytes() for file in where.glob("wandb/offline-run-*/run-*.wandb")):
        assert time.monotonic() < deadline, "not flushed"
        time.sleep(0.1)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_the_real_wandb_keeps_a_run_that_is_killed(tmp_path):
    wandb = pytest.importorskip("wandb", reason="the wandb extra is not installed")
    if "x_transaction_log_flush_interval" not in wandb.Settings.model_fields:
        pytest.skip("this version of wandb cannot flush")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("WANDB")}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**environment, "HOME": str(tmp_path)},
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    (file,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    assert b"loss" in file.read_bytes()


@pytest.mark.slow
def test_the_real_wandb_writes_offline_without_an_account(tmp_path):
    pytest.importorskip("wandb", reason="the wandb extra is not installed")
    program = f"""
        from pathlib import Path
        from trainer.config.keys import LoggingConfig
        from trainer.metrics.record import MetricsLog
        log = MetricsLog(Path({str(tmp_path)!r}), LoggingConfig(wandb="online", console="plain"), resume_step=0,
                         total_steps=2, flops_per_token=1e6, peak_flops=None, config={{"a": 1}})
        log.write([{{"step": 1, "loss": 3.0}}, {{"step": 2, "loss": float("nan")}}])
        log.event({{"event": "evaluation", "loss": 2.5}})
        log.close()
    """
    environment = {key: value for key, value in os.environ.items() if not key.startswith("WANDB")}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**environment, "HOME": str(tmp_path), "NETRC": str(tmp_path / "no-netrc")},
    )
    assert done.returncode == 0, done.stderr
    assert "kept offline" in done.stdout, done.stdout + done.stderr
    assert "warning" not in done.stdout
    assert list(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))
