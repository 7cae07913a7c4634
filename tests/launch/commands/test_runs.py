"""`octavo runs`: states by lock and record, damaged and foreign directories, and two runs side by side."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from launch.cli import main
from launch.commands.runs import _age, _bytes, prepare
from trainer.config.command_line import Parser
from trainer.config.compose import compose, to_yaml
from trainer.config.errors import CommandError
from trainer.run.directory import hold

CONFIG = to_yaml(compose(["recipe=toy", "data=synthetic", "train.steps=20"]))
EVALUATION = {"step": 10, "event": "evaluation", "heldout": {"code": 5.0, "prose": 4.0}}


def make(path: Path, *lines: dict, saved: int = 0, config: str = CONFIG) -> Path:
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(config)
    if lines:
        (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if saved:
        (path / "checkpoints" / f"step-{saved}").mkdir(parents=True)
        (path / "checkpoints" / f"step-{saved}" / "manifest.json").write_text("{}")
    return path


def steps(last: int) -> list[dict]:
    return [{"step": step, "loss": 8.0 - step / 10, "tokens": 100} for step in range(1, last + 1)]


def listed(capsys, *words: str) -> dict:
    assert main(["runs", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("lines", "saved", "state", "step"),
    [
        ([*steps(20), EVALUATION, {"step": 20, "event": "done"}], 20, "finished", 20),
        ([*steps(20)], 20, "finished", 20),  # killed in the last evaluation: all steps are saved
        ([*steps(12), {"step": 12, "event": "stopped", "message": "by SIGINT"}], 12, "stopped", 12),
        ([*steps(12), {"step": 12, "event": "failed", "message": "no tokens"}], 10, "failed", 12),
        ([*steps(12)], 10, "failed", 12),  # killed
        ([*steps(12), {"step": 12, "event": "stopped"}, {"step": 12, "event": "run"}], 12, "failed", 12),  # then killed
        ([*steps(10), {"step": 10, "event": "done"}], 10, "failed", 10),  # continued to 20, and killed at once
        ([], 0, "failed", 0),  # ended before its first step
        ([{"step": 0, "event": "run"}], 0, "failed", 0),
    ],
)
def test_the_state_is_that_of_the_lock_and_the_record(tmp_path, capsys, lines, saved, state, step):
    path = make(tmp_path / "runs" / "one", *lines, saved=saved)
    for held in (False, True):
        lock = hold(path) if held else None
        (run,) = listed(capsys, str(tmp_path / "runs"))["runs"]
        assert (run["state"], run["step"], run["steps"]) == ("running" if held else state, step, 20)
        assert (str(os.getpid()) in run["message"]) == held
        if lock is not None:
            lock.close()
    assert (run["recipe"], run["path"]) == ("toy", str(path))


def test_a_look_at_the_lock_refuses_no_start(tmp_path):
    """The look shares the lock; a start at the same time waits for a moment."""
    path = make(tmp_path / "one")
    with hold(path):
        pass
    program = f"import fcntl, os, sys, time; f = os.open({str(path / 'run.lock')!r}, os.O_RDONLY); "
    program += "fcntl.flock(f, fcntl.LOCK_SH); print('held', flush=True); time.sleep(0.1)"
    with subprocess.Popen([sys.executable, "-S", "-c", program], stdout=subprocess.PIPE, text=True) as look:
        assert look.stdout.readline() == "held\n"
        hold(path).close()


def test_results_sizes_and_the_order(tmp_path, capsys):
    make(
        tmp_path / "runs" / "old", *steps(20), {"step": 15, "event": "evaluation", "heldout": {"code": None}}, saved=20
    )
    new = make(tmp_path / "runs" / "new", *steps(11), EVALUATION, {"step": 12, "loss": None})
    os.utime(tmp_path / "runs" / "old" / "metrics.jsonl", (1, 1))
    (new / "big").write_bytes(bytes(100_000))
    first, second = listed(capsys, str(tmp_path / "runs"))["runs"]
    assert [Path(run["path"]).name for run in (first, second)] == ["new", "old"]
    assert first["loss"] == pytest.approx(7.3)  # the mean of steps 3 to 11: the last of ten steps has none
    assert (first["heldout"], first["heldout_mean"]) == ({"code": 5.0, "prose": 4.0}, 4.5)
    assert (second["heldout"], second["heldout_mean"]) == ({}, None)
    assert 100_000 < first["size_bytes"] < 110_000
    assert first["age_seconds"] < 600 < second["age_seconds"]
    assert main(["runs", str(tmp_path / "runs")]) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[1].split()[1:6] == ["toy", "failed", "12/20", "7.3000", "4.5000"]
    assert table[2].split()[1:6] == ["toy", "finished", "20/20", "6.4500", "-"]


def test_broken_and_foreign_directories_are_reported(tmp_path, capsys):
    runs = tmp_path / "runs"
    make(runs / "good", *steps(3))
    make(runs / "empty-config", config="")
    make(runs / "half", config=CONFIG[: len(CONFIG) // 2] + "\n  : [")
    make(runs / "list", config="- 1\n")
    make(runs / "other", config="a: 1\n")
    make(runs / "numbers", config="1: {2: 3}\n")
    make(runs / "binary").joinpath("config.yaml").write_bytes(b"\xff\xfe\x00")
    (runs / "foreign").mkdir()
    (runs / "config-is-a-directory" / "config.yaml").mkdir(parents=True)
    make(runs / "record-is-a-directory").joinpath("metrics.jsonl").mkdir()
    (runs / "a-file").write_text("not a directory")
    (runs / "dangling").symlink_to(tmp_path / "nowhere")
    found = listed(capsys, str(runs))
    assert [Path(run["path"]).name for run in found["runs"]] == ["good"]
    named = " ".join(found["problems"])
    for name in ("empty-config", "half", "list", "other", "numbers", "binary", "foreign", "config-is-a", "record-is-a"):
        assert str(runs / name) in named
    assert main(["runs", str(runs)]) == 0
    assert str(runs / "foreign") in capsys.readouterr().out


def test_damaged_lines_of_a_record_are_passed_over(tmp_path, capsys):
    path = make(tmp_path / "one", *steps(5), EVALUATION)
    with open(path / "metrics.jsonl", "ab") as file:
        file.write(b'{"step": 6, "loss": 7.0}\n\xff\xfe\n[1]\n{"step": "x"}\n{"step": 7, "lo')
    (run,) = listed(capsys, str(path))["runs"]
    assert (run["step"], run["evaluated"]) == (10, 10)
    assert run["loss"] == pytest.approx((7.9 + 7.8 + 7.7 + 7.6 + 7.5 + 7.0) / 6)


def test_a_directory_without_runs(tmp_path, capsys):
    assert listed(capsys, str(tmp_path)) == {"runs": [], "problems": []}
    assert main(["runs", str(tmp_path)]) == 0
    assert str(tmp_path) in capsys.readouterr().out


def test_two_runs_side_by_side(tmp_path, capsys):
    one = make(tmp_path / "one", *steps(12), EVALUATION)
    other = to_yaml(compose(["recipe=toy", "data=synthetic", "train.steps=20", "optim.lr=1e-4", "run.dir=elsewhere"]))
    older = other.replace("  objective: next_token\n", "")  # a key that runs of its time did not have
    two = make(tmp_path / "two", *steps(20), saved=20, config=older)
    found = listed(capsys, str(one), str(two))
    assert found["differing"] == {"optim.lr": [0.003, 0.0001]}
    assert [run["state"] for run in found["runs"]] == ["failed", "finished"]
    assert main(["runs", str(one), str(two)]) == 0
    rows = {line[:20].strip(): line[20:].split() for line in capsys.readouterr().out.splitlines()}
    assert rows["optim.lr"] == ["0.003", "0.0001"]
    assert rows["step"] == ["12/20", "20/20"]
    assert rows["held-out prose"] == ["4.0000", "-"]
    assert main(["runs", str(one), str(one)]) == 0
    assert "no key differs" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "where"),
    [(["nowhere"], "nowhere"), (["file"], "file"), (["a", "b", "c"], "DIR"), (["one", "."], "DIR"), ([], "runs")],
)
def test_arguments_that_are_none(tmp_path, monkeypatch, words, where):
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "one")
    (tmp_path / "file").touch()
    with pytest.raises(CommandError) as caught:
        prepare(Parser("octavo runs", ""), words)
    assert caught.value.where == where
    assert caught.value.allowed


def test_fifty_runs_take_less_than_a_second_and_no_torch(tmp_path):
    for number in range(50):
        path = make(tmp_path / f"run-{number}", EVALUATION, *steps(1000), saved=20)
        for file in range(20):
            (path / "checkpoints" / "step-20" / f"shard-{file}").touch()
    program = "import sys, time; from launch.cli import main; main(sys.argv[1:]); "
    program += "print([name for name in ('torch', 'numpy') if name in sys.modules], time.process_time())"
    words = [sys.executable, "-c", program, "runs", str(tmp_path)]
    out = subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()
    absent, seconds = out[-1].rsplit(maxsplit=1)
    assert len(out) == 52
    assert absent == "[]"
    assert float(seconds) < 1.0


def test_units():
    assert [_bytes(size) for size in (0, 1023, 1024, 5 * 2**30, 3 * 2**40)] == [
        "0 B",
        "1,023 B",
        "1.0 KiB",
        "5.0 GiB",
        "3.0 TiB",
    ]
    assert [_age(seconds) for seconds in (0, 59, 60, 7200, 200_000)] == ["0 s", "59 s", "1 min", "2 h", "2 d"]
