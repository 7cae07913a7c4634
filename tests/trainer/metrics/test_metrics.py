"""metrics.jsonl as the record, and what happens to it when something breaks."""

import errno
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from trainer.config.keys import LoggingConfig
from trainer.metrics.rates import device_peak, peak_memory
from trainer.metrics.record import JsonLines, MetricsLog


def open_log(run_dir: Path, *, resume_step: int = 0, **options) -> MetricsLog:
    logging = {"console": "plain", **{key: options.pop(key) for key in ("console", "wandb") if key in options}}
    arguments = {"total_steps": 100, "flops_per_token": 1e6, "peak_flops": None, "config": {}, **options}
    return MetricsLog(run_dir, LoggingConfig(**logging), resume_step=resume_step, **arguments)


def read(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def steps(first: int, last: int) -> list[dict]:
    return [{"step": step, "loss": 8.0 - step / 7, "tokens": 1000} for step in range(first, last + 1)]


def test_every_step_is_a_line_and_its_loss_comes_back_to_the_bit(tmp_path):
    log = open_log(tmp_path)
    log.write(steps(1, 3))
    log.write(steps(4, 5))
    assert len(read(tmp_path)) == 5, "lines are on disk before close"
    log.close()
    assert [line["step"] for line in read(tmp_path)] == [1, 2, 3, 4, 5]
    assert [line["loss"].hex() for line in read(tmp_path)] == [step["loss"].hex() for step in steps(1, 5)]


def test_rates_count_the_tokens_of_the_window_and_leave_events_out(tmp_path, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr("trainer.metrics.rates.time.monotonic", lambda: clock[0])
    log = open_log(tmp_path, peak_flops=1e9)
    clock[0] += 30.0
    log.event({"event": "evaluation", "seconds": 20.0})
    log.write(steps(1, 4))
    last = read(tmp_path)[-1]
    assert last["tokens_per_second"] == pytest.approx(4000 / 10.0)
    assert last["flops_per_second"] == pytest.approx(4000 / 10.0 * 1e6)
    assert last["peak_share"] == pytest.approx(0.4)
    clock[0] += 10.0
    log.write([{**step, "tower_flops": 10**9} for step in steps(5, 8)])
    last = read(tmp_path)[-1]
    assert last["flops_per_second"] == pytest.approx(4000 / 10.0 * 1e6 + 4e8)
    assert last["peak_share"] == pytest.approx(0.8)
    assert last["peak_memory_bytes"] > 2**20


def test_a_resumed_record_is_that_of_an_uninterrupted_run(tmp_path):
    log = open_log(tmp_path)
    log.write(steps(1, 4))
    log.event({"event": "checkpoint"})
    log.write(steps(5, 8))
    log.event({"event": "evaluation", "loss": 3.0})
    log.close()
    log = open_log(tmp_path, resume_step=4)
    log.write(steps(5, 10))
    log.close()
    kept = [line["step"] for line in read(tmp_path) if "event" not in line]
    assert kept == list(range(1, 11))
    assert [line["event"] for line in read(tmp_path) if "event" in line] == ["checkpoint"]


def test_a_torn_last_line_is_dropped_and_said(tmp_path, capsys):
    log = open_log(tmp_path)
    log.write(steps(1, 3))
    log.close()
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-9])  # a kill in the middle of line 3
    open_log(tmp_path, resume_step=3).close()
    assert [line["step"] for line in read(tmp_path) if "event" not in line] == [1, 2]
    assert "dropped 1 unreadable line" in capsys.readouterr().out


def test_a_start_from_nothing_drops_the_record_of_a_life_without_checkpoint(tmp_path):
    log = open_log(tmp_path)
    log.event({"event": "note", "message": "first life"})
    log.write(steps(1, 3))
    log.close()
    open_log(tmp_path).close()
    assert read(tmp_path) == []


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_number_that_json_lacks_is_read_back_by_float(tmp_path, number):
    log = open_log(tmp_path)
    log.write([{"step": 1, "loss": number, "per_source": {"code": number}}])
    log.close()

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    (line,) = [
        json.loads(text, parse_constant=refuse) for text in (tmp_path / "metrics.jsonl").read_text().splitlines()
    ]
    assert str(float(line["loss"])) == str(number)
    assert str(float(line["per_source"]["code"])) == str(number)


def test_other_ranks_write_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("RANK", "3")
    log = open_log(tmp_path)
    log.write(steps(1, 2))
    log.event({"event": "checkpoint"})
    log.close()
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""


class FullFor:
    """A raw file on a disk that takes `room` more bytes, then none until `room` is raised."""

    def __init__(self, file, room: int) -> None:
        self.file, self.room = file, room

    def write(self, data) -> int:
        if not self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = self.file.write(bytes(data)[: self.room])
        self.room -= written
        return written

    def truncate(self, size: int) -> int:
        return self.file.truncate(size)

    def close(self) -> None:
        self.file.close()


def test_a_full_disk_warns_once_and_loses_nothing(tmp_path, capsys):
    log = open_log(tmp_path)
    log.write(steps(1, 2))
    disk = log._file._file = FullFor(log._file._file, room=30)
    log.write(steps(3, 3))
    log.write(steps(4, 5))
    assert [line["step"] for line in read(tmp_path)] == [1, 2], "no torn line while the disk is full"
    disk.room = 10_000
    log.write(steps(6, 6))
    log.close()
    assert [line["step"] for line in read(tmp_path)] == [1, 2, 3, 4, 5, 6]
    assert capsys.readouterr().out.count("No space left on device") == 1


def test_lines_that_never_found_room_are_counted(tmp_path):
    lines = JsonLines(tmp_path / "metrics.jsonl", 0)
    lines._file = FullFor(lines._file, room=0)
    lines.append(steps(1, 3))
    assert "last 3 line(s) are lost" in lines.close()


def test_an_unwritable_directory_is_an_error_at_the_start(tmp_path):
    with pytest.raises(OSError, match="missing"):
        open_log(tmp_path / "missing")


@pytest.mark.parametrize(
    ("name", "compute", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16", 989.4),
        ("NVIDIA H100 80GB HBM3", "fp32", 66.9),
        ("NVIDIA H100 PCIe", "bf16", 756.5),
        ("NVIDIA H200", "bf16", 989.4),
        ("NVIDIA GB200", "bf16", 2500.0),
        ("NVIDIA B200", "bf16", 2250.0),
        ("NVIDIA H20", "bf16", 148.0),
        ("NVIDIA A100-SXM4-80GB", "bf16", 312.0),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "bf16", None),
        ("NVIDIA GeForce GTX 1080", "bf16", None),
        ("cpu", "fp32", None),
    ],
)
def test_the_peak_is_that_of_the_named_gpu_or_unknown(name, compute, tflops):
    assert device_peak(name, compute) == (None if tflops is None else tflops * 1e12)


def test_the_parents_memory_is_not_ours():
    ballast = bytearray(300 * 2**20)
    child = "from trainer.metrics.rates import peak_memory; print(peak_memory())"
    ours = int(subprocess.run([sys.executable, "-c", child], capture_output=True, text=True, check=True).stdout)
    assert 2**20 < ours < len(ballast) < peak_memory()
