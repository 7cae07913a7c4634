"""Stop and resume: bit for bit the run that was never stopped, whatever stopped it."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch.distributed.checkpoint as dcp

from tests.distributed.doomed import run_ranks
from tests.distributed.pool import on_ranks
from tests.printed import error_line
from tests.trainer.tiny_run import events, losses, records, steps, tiny_config
from trainer.checkpoint.store import CheckpointStore
from trainer.config.compose import to_yaml
from trainer.config.errors import ConfigError
from trainer.run import build as module
from trainer.run.directory import RunDir, choose, prepare
from trainer.run.loop import Trainer
from trainer.run.process import train
from trainer.storage.manifest import Manifest
from trainer.weights.opened import open_checkpoint

STEPS = 9


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> list[tuple[int, str]]:
    directory = tmp_path_factory.mktemp("uninterrupted")
    assert train(tiny_config(directory, steps=STEPS)) == 0
    assert len(losses(directory)) == STEPS
    return losses(directory)


def stop_during(monkeypatch, step: int, number: signal.Signals = signal.SIGINT) -> None:
    """Send this process a signal in the middle of optimizer step `step`."""
    genuine = Trainer._train_step

    def train_step(self, *args):
        if self.position.step + 1 == step:
            os.kill(os.getpid(), number)
        genuine(self, *args)

    monkeypatch.setattr(Trainer, "_train_step", train_step)


@pytest.mark.parametrize("first", [1, *(pytest.param(n, marks=pytest.mark.slow) for n in (3, 5)), STEPS - 1])
def test_stopped_twice_and_resumed_is_bitwise_the_run_that_never_stopped(tmp_path, monkeypatch, uninterrupted, first):
    cfg = tiny_config(tmp_path, steps=STEPS, every=2)
    for step in sorted({first, min(first + 2, STEPS - 1)}):
        with monkeypatch.context() as patch:
            stop_during(patch, step)
            assert train(cfg) == 130
        assert len(losses(tmp_path)) == step
    assert train(cfg) == 0
    assert losses(tmp_path) == uninterrupted


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 143)])
def test_a_signal_finishes_the_step_saves_and_says_how_to_resume(tmp_path, monkeypatch, capfd, number, code):
    before = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
    signal.signal(number, before)  # under nohup, SIGHUP comes ignored
    stop_during(monkeypatch, 4, number)
    assert train(tiny_config(tmp_path, steps=STEPS)) == code
    said = capfd.readouterr().err
    assert all(datum in said for datum in (signal.Signals(code - 128).name, "step 4", "step-4"))
    assert len(losses(tmp_path)) == 4
    assert (tmp_path / "checkpoints" / "latest").read_text() == "step-4\n"
    assert records(tmp_path)[-1]["event"] == "stopped"
    assert signal.getsignal(number) is before


def rank_is_stopped(directory: str) -> tuple[int, int]:
    genuine = Trainer._train_step

    def train_step(self, *args):
        if self.position.step + 1 == 4 and self.world.rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        genuine(self, *args)

    Trainer._train_step = train_step
    try:
        first = train(tiny_config(directory, steps=STEPS, micro_batch=1))
    finally:
        Trainer._train_step = genuine
    return first, train(tiny_config(directory, steps=STEPS, micro_batch=1))


def rank_is_not_stopped(directory: str) -> int:
    return train(tiny_config(directory, steps=STEPS, micro_batch=1))


def test_all_ranks_stop_at_the_same_step_when_one_gets_a_signal(tmp_path):
    assert on_ranks(2, rank_is_stopped, str(tmp_path / "stopped")) == [(143, 0)] * 2
    assert on_ranks(2, rank_is_not_stopped, str(tmp_path / "whole")) == [0, 0]
    assert losses(tmp_path / "stopped") == losses(tmp_path / "whole")


def test_the_hint_names_the_directory_where_the_same_command_would_not_continue(tmp_path, monkeypatch, capfd):
    stop_during(monkeypatch, 2)
    assert train(tiny_config(tmp_path / "run", steps=STEPS, resume="never")) == 130
    assert f"run.dir={tmp_path / 'run'} train.resume=auto" in capfd.readouterr().err


def test_a_finished_run_says_what_extends_it_and_resumes(tmp_path, capsys, uninterrupted):
    cfg = tiny_config(tmp_path, steps=4, schedule="constant")
    assert train(cfg) == 0
    once = losses(tmp_path)
    assert train(cfg) == 0
    assert "train.steps" in capsys.readouterr().out
    assert losses(tmp_path) == once
    cfg.train.steps = STEPS
    assert train(cfg) == 0
    first, second = (event["message"] for event in events(tmp_path, "done"))
    assert ("step 4" in first, "step 4" in second) == (False, True)
    whole = tiny_config(tmp_path / "whole", steps=STEPS, schedule="constant")
    assert train(whole) == 0
    assert losses(tmp_path) == losses(tmp_path / "whole")


def test_a_run_of_an_earlier_version_resumes_bitwise(tmp_path, monkeypatch, uninterrupted):
    """Its configuration lacks the objective's keys and has an empty data.weights."""
    with monkeypatch.context() as patch:
        stop_during(patch, 4)
        assert train(tiny_config(tmp_path, steps=STEPS)) == 130
    file = tmp_path / "config.yaml"
    lines = [line for line in file.read_text().splitlines() if not line.startswith(("  objective", "  contrastive"))]
    file.write_text("\n".join(lines).replace("\ndata:\n", "\ndata:\n  weights: {}\n"))
    assert train(tiny_config(tmp_path, steps=STEPS)) == 0
    assert losses(tmp_path) == uninterrupted


def test_a_damaged_checkpoint_is_named_and_the_one_before_gives_the_same_run(
    tmp_path, monkeypatch, uninterrupted, capsys
):
    cfg = tiny_config(tmp_path, steps=STEPS, every=2)
    with monkeypatch.context() as patch:
        stop_during(patch, 6)
        assert train(cfg) == 130
    shard = tmp_path / "checkpoints" / "step-6" / "__0_0.distcp"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    assert train(cfg) == 0
    assert losses(tmp_path) == uninterrupted
    (warning,) = events(tmp_path, "warning")
    assert "step-6/__0_0.distcp" in warning["message"]


def test_damage_everywhere_is_one_line_and_no_new_run(tmp_path, capsys):
    cfg = tiny_config(tmp_path, steps=4)
    assert train(cfg) == 0
    (tmp_path / "checkpoints" / "step-4" / ".metadata").unlink()
    cfg.train.steps = 8
    assert train(cfg) == 2
    error_line(capsys.readouterr().err, "step-4/.metadata", "train.resume=never")
    assert len(losses(tmp_path)) == 4


def save_until_killed(directory: Path, moment: str) -> int:
    genuine = getattr(Manifest, moment)

    def die(*args, **kwargs):
        if any("step-6" in str(argument) for argument in args):
            os.kill(os.getpid(), signal.SIGKILL)
        return genuine(*args, **kwargs)

    setattr(Manifest, moment, die)
    return train(tiny_config(directory, steps=STEPS, every=3))


@pytest.mark.parametrize("moment", ["file_facts", "write"])
def test_kill_9_during_a_save(tmp_path, uninterrupted, moment):
    run = tmp_path / "run"
    assert run_ranks(tmp_path / "rank", 1, save_until_killed, run, moment, limit_s=100).codes == [-signal.SIGKILL]
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["latest", "step-3", "step-6.tmp"]
    assert train(tiny_config(run, steps=STEPS, every=3)) == 0
    assert losses(run) == uninterrupted
    (warning,) = events(run, "warning")
    assert "step-6.tmp" in warning["message"]


def stuck(directory: Path) -> int:
    def train_step(self, *args):
        (directory / "ready").write_text(str(os.getpid()))
        time.sleep(100)

    Trainer._train_step = train_step
    return train(tiny_config(directory / "run"))


def test_a_second_ctrl_c_quits_at_once_and_an_echo_of_the_first_does_not(tmp_path):
    alive = []

    def interrupt() -> None:
        while not (tmp_path / "ready").exists() or not (tmp_path / "ready").read_text():
            time.sleep(0.02)
        number = int((tmp_path / "ready").read_text())
        os.kill(number, signal.SIGINT)
        time.sleep(0.1)
        os.kill(number, signal.SIGTERM)  # as torchrun does after a terminal's Ctrl-C
        time.sleep(1.2)
        alive.append(Path(f"/proc/{number}").exists())
        os.kill(number, signal.SIGINT)

    user = threading.Thread(target=interrupt, daemon=True)
    user.start()
    ended = run_ranks(tmp_path, 1, stuck, tmp_path, limit_s=60)
    user.join(1)
    assert (alive, ended.codes) == ([True], [130])
    assert [line.partition(" ")[0].strip(":") for line in ended.output.splitlines()] == ["SIGINT", "SIGINT"]


def fill_the_disk(monkeypatch, at_steps: set[int]) -> None:
    genuine = dcp.FileSystemWriter.write_data

    def write_data(self, *args, **kwargs):
        if any(f"step-{step}." in str(self.path) for step in at_steps):
            raise OSError(errno.ENOSPC, "No space left on device")
        return genuine(self, *args, **kwargs)

    monkeypatch.setattr(dcp.FileSystemWriter, "write_data", write_data)


def test_a_full_disk_during_a_save_is_a_warning(tmp_path, monkeypatch, uninterrupted):
    fill_the_disk(monkeypatch, {4, 6})
    assert train(tiny_config(tmp_path, steps=STEPS, every=2, keep=9)) == 0
    assert losses(tmp_path) == uninterrupted
    for step, warning in zip((4, 6), events(tmp_path, "warning"), strict=True):
        assert all(datum in warning["message"] for datum in (f"step-{step}", os.strerror(errno.ENOSPC)))
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["latest", "step-2", "step-8", "step-9"]


def test_a_full_disk_at_the_last_save_is_exit_code_1(tmp_path, monkeypatch, capsys):
    fill_the_disk(monkeypatch, {STEPS})
    assert train(tiny_config(tmp_path, steps=STEPS, every=4)) == 1
    error_line(capsys.readouterr().err, "step-8")
    monkeypatch.undo()
    assert train(tiny_config(tmp_path, steps=STEPS, every=4)) == 0


def test_a_full_disk_at_a_stop_is_exit_code_1(tmp_path, monkeypatch, capfd):
    fill_the_disk(monkeypatch, {3})
    stop_during(monkeypatch, 3)
    assert train(tiny_config(tmp_path, steps=STEPS, every=2)) == 1
    assert any(line.startswith("error: ") and "step 3" in line for line in capfd.readouterr().err.splitlines())


def test_another_model_is_refused_by_its_directory(tmp_path, capsys):
    assert train(tiny_config(tmp_path, steps=2)) == 0
    assert train(tiny_config(tmp_path, steps=4, model={"expert_width": 24})) == 2
    error_line(capsys.readouterr().err, "model.expert_width: 16 -> 24")


def test_another_model_is_refused_by_the_store_too(tmp_path, capsys):
    assert train(tiny_config(tmp_path / "a", steps=2)) == 0
    (tmp_path / "b").mkdir()
    (tmp_path / "a" / "checkpoints").rename(tmp_path / "b" / "checkpoints")
    cfg = tiny_config(tmp_path / "b", steps=4, model={"expert_width": 24})
    prepare(RunDir(tmp_path / "b", "new"), cfg)
    assert train(cfg) == 2
    error_line(capsys.readouterr().err, "moe.experts.w13", "[8, 2, 16, 32] float32", "[8, 2, 24, 32] float32")


def test_other_data_are_refused(tmp_path, monkeypatch, capsys):
    assert train(tiny_config(tmp_path, steps=2)) == 0
    genuine = module.build_data

    def other_data(*args, **kwargs):
        return replace(genuine(*args, **kwargs), fingerprint="f" * 64)

    monkeypatch.setattr(module, "build_data", other_data)
    assert train(tiny_config(tmp_path, steps=4)) == 2
    error_line(capsys.readouterr().err, "ffffffffffff")


def test_what_fails_in_the_middle_leaves_no_half_written_checkpoint(tmp_path, monkeypatch):
    genuine = CheckpointStore._make_room

    def slow(self, *args):
        time.sleep(0.3)
        genuine(self, *args)

    def breaks(self, *args):
        if self.position.step == 3:
            raise ZeroDivisionError
        train_step(self, *args)

    train_step = Trainer._train_step
    monkeypatch.setattr(CheckpointStore, "_make_room", slow)
    monkeypatch.setattr(Trainer, "_train_step", breaks)
    with pytest.raises(ZeroDivisionError):
        train(tiny_config(tmp_path, steps=STEPS, every=3))
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["latest", "step-3"]


# ---- files that are lost between two starts


def stop_at_four(directory: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        stop_during(patch, 4)
        assert train(tiny_config(directory, steps=STEPS, every=2)) == 130


@pytest.fixture(scope="module")
def stopped_once(tmp_path_factory) -> Path:
    """A run that was stopped at step 4. Its configuration names a directory, so that it stays there."""
    directory = tmp_path_factory.mktemp("stopped") / "run"
    stop_at_four(directory)
    return directory


@pytest.fixture
def stopped(stopped_once, tmp_path) -> Path:
    """The same run, as it was stopped; what a test does to it is undone."""
    shutil.copytree(stopped_once, tmp_path / "kept")
    yield stopped_once
    shutil.rmtree(stopped_once)
    (tmp_path / "kept").rename(stopped_once)


@pytest.mark.parametrize(
    "text",
    [None, "a: [", *(pytest.param(text, marks=pytest.mark.slow) for text in ("", "- a\n", "\0\xff"))],
    ids=["gone", "torn", "empty", "a list", "binary"],
)
def test_a_lost_configuration_is_made_anew_from_the_checkpoint(stopped, uninterrupted, text):
    file = stopped / "config.yaml"
    written = file.read_text()
    if text is None:
        file.unlink()
    else:
        file.write_text(text, encoding="latin-1")
    opened = open_checkpoint(stopped)  # export, inspect and generate need the model
    assert opened.model == tiny_config(stopped).model
    assert train(tiny_config(stopped, steps=STEPS, every=2)) == 0
    assert losses(stopped) == uninterrupted
    assert file.read_text() == written
    (warning,) = events(stopped, "warning")
    assert str(file) in warning["message"]


def test_without_its_file_a_configuration_still_counts(stopped):
    """A damaged checkpoint is passed over, and another configuration refused."""
    (stopped / "config.yaml").unlink()
    newest = max((stopped / "checkpoints").glob("step-*/manifest.json"))
    newest.write_text(newest.read_text()[:-9])
    with pytest.raises(ConfigError) as error:
        choose(tiny_config(stopped, steps=STEPS, every=2, seed=9))
    assert error.value.faults[0].allowed == ["train.seed: 0 -> 9"]


def test_checkpoints_without_a_copy_name_a_remedy_that_works(tmp_path, monkeypatch, uninterrupted):
    with monkeypatch.context() as patch:
        patch.setattr("trainer.run.checkpoints.CONFIG_FACT", "unknown")  # an earlier version
        stop_at_four(tmp_path)
    file = tmp_path / "config.yaml"
    file.unlink()
    cfg = tiny_config(tmp_path, steps=STEPS, every=2)
    with pytest.raises(ConfigError) as error:
        choose(cfg)
    assert (error.value.where, error.value.value) == (str(file), None)
    file.write_text(to_yaml(cfg))  # what `octavo config` prints
    assert train(cfg) == 0
    assert losses(tmp_path) == uninterrupted


@pytest.mark.parametrize(
    ("kept", "lost"),
    [
        (None, "steps 1 to 4"),
        (3, "step 4"),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in ((0, "steps 1 to 4"), (1, "steps 2 to 4"))),
    ],
)
def test_a_record_that_lost_steps_is_continued_with_a_warning(stopped, kept, lost):
    record = stopped / "metrics.jsonl"
    lines = [line for line in record.read_text().splitlines(keepends=True) if "event" not in line]
    assert len(lines) == 4
    record.unlink()
    if kept is not None:
        record.write_text("".join(lines[:kept]))
    assert train(tiny_config(stopped, steps=STEPS, every=2)) == 0
    (warning,) = events(stopped, "warning")
    assert lost in warning["message"]
    assert "step 5" in warning["message"]
    assert [record["step"] for record in steps(stopped)] == [*range(1, (kept or 0) + 1), *range(5, STEPS + 1)]
