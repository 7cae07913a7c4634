"""The engine of upcycling on tensors that need no model: what is kept, what is made again, what is refused."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from trainer.storage.manifest import CHECKPOINT
from trainer.storage.progress import Progress
from trainer.weights import hf_write as write
from trainer.weights.hf_files import INDEX, HuggingFaceError
from trainer.weights.hf_write import Bundle, OutputTensor
from trainer.weights.upcycle import engine, journal
from trainer.weights.upcycle.engine import Done, Interrupted, run
from trainer.weights.upcycle.errors import UpcycleError

FILES, EACH = 6, 3  # files, and bundles in each
SHAPE = (32, 33)
SHARD_BYTES = EACH * 2 * 32 * 33
FIRST = "model-00001-of-00006.safetensors"


class Model:
    """Groups that record in a file which of them was made, and fail on request."""

    def __init__(self, directory: Path, seed: int = 0) -> None:
        self.log, self.seed = directory / "made", seed
        self.fail: dict[int, Callable[[], object]] = {}
        self.source = {"model.safetensors": "1 2 3"}
        (directory / "tokenizer.json").write_text("{}")
        bundles = [
            Bundle((OutputTensor(f"w{n}", "BF16", SHAPE),), lambda n=n: self._make(n)) for n in range(FILES * EACH)
        ]
        self.upcycled: Any = SimpleNamespace(
            bundles=bundles,
            config={"seed": seed},
            facts={"seed": seed},
            side_files={"tokenizer.json": directory / "tokenizer.json"},
        )

    def value(self, n: int) -> Tensor:
        return torch.randn(SHAPE, generator=torch.Generator().manual_seed(100 * self.seed + n)).bfloat16()

    def _make(self, n: int) -> list[Tensor]:
        if n in self.fail:
            self.fail[n]()
        with open(self.log, "a") as log:
            log.write(f"{n}\n")
        value = self.value(n)
        return [value[:10], value[10:]] if n % 2 else [value]  # in runs of rows, and whole

    def made(self) -> list[int]:
        """Groups made since the last call."""
        lines = self.log.read_text().split() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return sorted(map(int, lines))

    def run(self, target: Path, workers: int = 1, **options: Any) -> Done:
        options |= {"workers": workers, "shard_bytes": SHARD_BYTES}
        return run(target, self.upcycled, lambda: dict(self.source), **options)


def raising(error: BaseException) -> Callable[[], object]:
    def act() -> None:
        raise error

    return act


def contents(directory: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in directory.iterdir()}


def of_files(*files: int) -> list[int]:
    return [n for file in files for n in range(file * EACH, file * EACH + EACH)]


def kept_in(error: BaseException) -> set[str]:
    """`3 of 6` and the path, of the files that an interrupted start keeps."""
    return set(re.findall(r"\d+ of \d+|/\S+\.tmp\b", str(error)))


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return Model(tmp_path)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "below" / "out"


@pytest.fixture
def halfway(model: Model, target: Path) -> Path:
    """The work of a start that failed at the fourth of six files."""
    model.fail[10] = raising(HuggingFaceError("no luck", where="w10", value=10, allowed="luck"))
    with pytest.raises(UpcycleError) as failure:
        model.run(target)
    assert (failure.value.where, failure.value.value, failure.value.allowed) == ("w10", 10, "luck")
    assert {"3 of 6", str(journal.work_path(target))} <= kept_in(failure.value)
    model.fail.clear()
    assert model.made() == [*of_files(0, 1, 2), 9]
    return journal.work_path(target)


def test_what_is_written(model, target):
    reports: list[Progress] = []
    done = model.run(target, progress=reports.append)
    total = FILES * SHARD_BYTES
    assert done == Done(total, FILES, 0, ())
    made = [total * n // (FILES * EACH) for n in range(1, FILES * EACH + 1)]
    assert reports == [Progress("writing", done, total, "bytes", kept=0) for done in made]
    found = {}
    for file in target.glob("*.safetensors"):
        found |= load_file(file)
    assert {name: value.tolist() for name, value in found.items()} == {
        f"w{n}": model.value(n).tolist() for n in range(FILES * EACH)
    }
    manifest = CHECKPOINT.read(target)
    assert manifest["upcycle"] == {"seed": 0}
    assert manifest["files"].keys() | {"manifest.json"} == {file.name for file in target.iterdir()}
    assert not any(CHECKPOINT.check_file(target, name, facts) for name, facts in manifest["files"].items())
    assert len(json.loads((target / INDEX).read_text())["weight_map"]) == FILES * EACH
    assert [entry.name for entry in target.parent.iterdir()] == ["out"]


def test_any_number_of_workers_writes_the_same(model, target):
    model.run(target)
    for workers in (2, 9):
        other = target.with_name(f"out{workers}")
        model.run(other, workers)
        assert contents(other) == contents(target)


def test_what_is_finished_is_kept(model, target, halfway):
    model.run(target.with_name("undisturbed"))
    model.made()
    reports: list[Progress] = []
    done = model.run(target, workers=2, progress=reports.append)
    assert (done.kept, done.faults) == (3, ())
    assert model.made() == of_files(3, 4, 5)
    assert reports[-1] == Progress("writing", 6 * SHARD_BYTES, 6 * SHARD_BYTES, "bytes", kept=3 * SHARD_BYTES)
    assert contents(target) == contents(target.with_name("undisturbed"))
    assert not halfway.exists()


def test_what_is_not_as_it_was_finished_is_made_again(model, target, halfway):
    names = sorted(file.name for file in (halfway / "model").iterdir())
    (halfway / "model" / names[0]).unlink()
    with open(halfway / "model" / names[2], "r+b") as file:
        file.seek(500)
        byte = file.read(1)[0]
        file.seek(500)
        file.write(bytes([byte ^ 1]))
    done = model.run(target)
    assert done.kept == 1
    assert [fault.split()[0] for fault in sorted(done.faults)] == [
        str(halfway / "model" / names[0]), str(halfway / "model" / names[2])
    ]  # fmt: skip
    assert model.made() == of_files(0, 2, 3, 4, 5)


def test_a_line_of_the_journal_that_a_kill_cut_is_not_taken(model, target, halfway):
    lines = (halfway / "journal.jsonl").read_bytes()
    (halfway / "journal.jsonl").write_bytes(lines[:-30])
    model.fail[10] = raising(HuggingFaceError("again", where="w10"))
    with pytest.raises(UpcycleError) as failure:
        model.run(target)
    assert "3 of 6" in kept_in(failure.value)
    assert (halfway / "journal.jsonl").read_bytes() == lines
    assert model.made() == [*of_files(2), 9]


@pytest.mark.parametrize("junk", [b"1\n", b"[]\n", b"{}\n", b'{"file": "x"}\n', b"\0\0\0\n"])
def test_what_is_no_line_of_a_journal_is_not_taken(model, target, halfway, junk):
    with open(halfway / "journal.jsonl", "ab") as journal:
        journal.write(junk)
    assert model.run(target).kept == 3


@pytest.mark.parametrize("what", ["seed", "source", "shards"])
def test_another_plan_is_refused(model, target, halfway, tmp_path, what):
    before = contents(halfway / "model")
    other, expected = model, {"seed": ["config.json", "options"], "source": ["source"], "shards": ["files"]}[what]
    if what == "seed":
        other = Model(tmp_path, seed=1)
    elif what == "source":
        model.source["model.safetensors"] = "1 2 4"
    else:
        model.upcycled.bundles = model.upcycled.bundles[:-1]
    with pytest.raises(UpcycleError) as refused:
        other.run(target)
    assert (refused.value.where, refused.value.value) == (str(halfway), expected)
    assert contents(halfway / "model") == before


def test_a_source_that_changes_meanwhile_is_no_model(model, target):
    def change() -> None:
        model.source["model.safetensors"] = "4"

    with pytest.raises(UpcycleError) as failure:
        model.run(target, progress=lambda state: change())
    assert (failure.value.where, failure.value.value) == ("model.safetensors", ["model.safetensors"])
    assert failure.value.allowed == f"remove {journal.work_path(target)}"
    assert not target.exists()


def test_the_owner_of_the_lock_is_left_alone(model, target, halfway, monkeypatch):
    monkeypatch.setattr(journal, "PATIENCE", 0.1)
    with open(halfway / "owner.lock", "rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UpcycleError) as refused:
            model.run(target)
    assert (refused.value.where, refused.value.allowed) == (str(target), "another directory")
    model.run(target)


def test_a_waiter_for_the_lock_sees_that_the_other_one_finished(model, target, halfway):
    with open(halfway / "owner.lock", "rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)

        def finish() -> None:
            time.sleep(0.3)
            (halfway / "model").rename(target)
            for path in halfway.iterdir():
                if path.name != "owner.lock":
                    path.unlink()
            journal.remove(halfway)  # the lock last, as a finished run does: the waiter creates another
            lock.close()

        other = threading.Thread(target=finish)
        other.start()
        with pytest.raises(HuggingFaceError) as refused:
            model.run(target)
        other.join()
    assert (refused.value.where, refused.value.allowed) == (str(target), "a directory that does not exist")
    assert model.made() == []
    assert not halfway.exists()


def test_a_destination_that_comes_meanwhile_costs_no_work(model, target, halfway, monkeypatch):
    before = {entry.name for entry in halfway.iterdir()}
    target.mkdir()
    with pytest.raises(HuggingFaceError) as refused, journal.open_work(target, {}):
        pass
    assert (refused.value.where, refused.value.allowed) == (str(target), "a directory that does not exist")
    assert {entry.name for entry in halfway.iterdir()} == before
    target.rmdir()
    assert model.run(target).kept == 3


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOTSUP])
def test_a_file_system_without_locks_is_refused(model, target, halfway, monkeypatch, code):
    def flock(file: object, how: int) -> None:
        raise OSError(code, os.strerror(code))

    before = contents(halfway / "model")
    with monkeypatch.context() as patched:
        patched.setattr(fcntl, "flock", flock)
        with pytest.raises(UpcycleError) as refused:
            model.run(target)
    assert (refused.value.where, refused.value.allowed) == (str(halfway), "a directory on another disk")
    assert contents(halfway / "model") == before
    assert model.run(target).kept == 3


def test_a_directory_of_others_is_left_alone(model, target):
    work = journal.work_path(target)
    work.mkdir(parents=True)
    (work / "thesis.tex").write_text("all of it")
    with pytest.raises(UpcycleError) as refused:
        model.run(target)
    assert (refused.value.where, refused.value.value) == (str(work), "thesis.tex")
    assert (work / "thesis.tex").exists()


def test_what_others_put_beside_an_unfinished_model_stays(model, target, halfway):
    (halfway / "notes").mkdir()
    (halfway / "notes" / "thesis.tex").write_text("all of it")
    model.run(target)
    assert sorted(str(entry.relative_to(halfway)) for entry in halfway.rglob("*")) == ["notes", "notes/thesis.tex"]


def test_what_others_put_among_the_files_does_not_become_part_of_the_model(model, target, halfway):
    (halfway / "model" / "adapter.safetensors").write_text("theirs")
    for name in ("config.json", "manifest.json", INDEX, "tokenizer.json"):  # of a start killed at its very end
        (halfway / "model" / name).write_text("{")
    with pytest.raises(UpcycleError) as refused:
        model.run(target)
    assert refused.value.where == str(halfway / "model" / "adapter.safetensors")
    assert (refused.value.value, refused.value.allowed) == (["adapter.safetensors"], "move it away")
    assert not target.exists()
    (halfway / "model" / "adapter.safetensors").rename(target.with_name("adapter.safetensors"))
    assert model.run(target).kept == FILES
    assert CHECKPOINT.read(target)["files"].keys() | {"manifest.json"} == contents(target).keys()


def test_a_worker_that_dies_is_reported_and_what_it_finished_kept(model, target):
    model.fail[8] = lambda: os.kill(os.getpid(), signal.SIGKILL)
    with pytest.raises(UpcycleError) as failure:
        model.run(target, workers=1)
    assert (failure.value.where, failure.value.allowed) == ("model-00003-of-00006.safetensors", "fewer --workers")
    assert "SIGKILL" in failure.value.value
    model.made()
    model.fail.clear()
    assert model.run(target).kept == 2
    assert model.made() == of_files(2, 3, 4, 5)


@pytest.mark.parametrize(
    ("error", "name", "value", "allowed"),
    [
        (OSError(28, "disk full"), FIRST, "disk full", "a path that can be written, with enough space"),
        (UpcycleError("not finite", where="w1", value="inf", allowed="finite numbers"), "w1", "inf", "finite numbers"),
        (MemoryError(), FIRST, None, "fewer --workers"),
    ],
)
def test_what_fails_in_a_worker_is_one_line(model, target, error, name, value, allowed):
    model.fail[1] = raising(error)
    with pytest.raises(UpcycleError) as failure:
        model.run(target)
    assert (Path(failure.value.where).name, failure.value.value, failure.value.allowed) == (name, value, allowed)
    assert len(failure.value.lines) == 1
    assert "0 of 6" in kept_in(failure.value)


def test_an_interruption_says_what_is_kept(model, target):
    def progress(state: Progress) -> None:
        if state.made > 2 * SHARD_BYTES:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted) as stop:
        model.run(target, progress=progress)
    assert {"2 of 6", str(journal.work_path(target))} <= kept_in(stop.value)
    assert model.run(target).kept >= 2


def test_an_existing_destination_is_refused(model, target):
    target.mkdir(parents=True)
    with pytest.raises(HuggingFaceError) as refused:
        model.run(target)
    assert (refused.value.where, refused.value.allowed) == (str(target), "a directory that does not exist")
    assert model.made() == []
    assert [entry.name for entry in target.parent.iterdir()] == ["out"]


def test_a_kill_after_the_directory_had_its_name_leaves_nothing_permanent(model, target, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(engine, "remove", lambda path: None)
        model.run(target)
    work = journal.work_path(target)
    assert sorted(entry.name for entry in work.iterdir()) == ["journal.jsonl", "owner.lock", "plan.json"]
    with pytest.raises(HuggingFaceError) as refused:
        model.run(target)
    assert (refused.value.where, refused.value.allowed) == (str(target), "a directory that does not exist")
    assert not work.exists()
    assert len(contents(target)) == FILES + 4


def test_a_disk_that_is_too_small_is_reported_before_the_first_byte(model, target, monkeypatch):
    free = SimpleNamespace(free=FILES * SHARD_BYTES)  # the headers do not fit
    monkeypatch.setattr(write.shutil, "disk_usage", lambda path: free)
    with pytest.raises(HuggingFaceError) as refused:
        model.run(target)
    assert (refused.value.where, refused.value.value) == (str(target), free.free)
    assert free.free < refused.value.allowed <= free.free + 20_000
    assert not target.parent.exists()
    free.free += 20_000
    model.run(target)


def test_what_is_there_needs_no_room(model, target, halfway, monkeypatch):
    monkeypatch.setattr(write.shutil, "disk_usage", lambda path: SimpleNamespace(free=3 * SHARD_BYTES + 10_000))
    assert model.run(target).kept == 3


def test_identity_sees_a_change_of_any_file(tmp_path):
    from trainer.weights.hf_files import open_directory
    from trainer.weights.hf_survey import SourceModel
    from trainer.weights.upcycle.journal import identity

    vocabulary = tmp_path / "vocabulary"

    def now() -> Mapping[str, str]:
        return identity(SourceModel(open_directory(tmp_path), None, "", (), {}), str(vocabulary))

    vocabulary.mkdir()
    (vocabulary / "tokenizer.json").write_text("1")
    (tmp_path / "tokenizer.json").write_text("{}")
    bundle = Bundle((OutputTensor("w", "U8", (2,)),), lambda: [torch.zeros(2).byte()])
    write.write_directory(tmp_path / "made", [bundle], {})
    for file in (tmp_path / "made").iterdir():
        file.rename(tmp_path / file.name)
    first = now()
    assert now() == first
    for change in (
        lambda: os.utime(tmp_path / "model-00001-of-00001.safetensors", ns=(1, 1)),
        lambda: (tmp_path / "tokenizer.json").write_text("[]"),
        lambda: (tmp_path / "config.json").write_text('{"a": 1}'),
        lambda: (vocabulary / "tokenizer.json").write_text("2"),
    ):
        change()
        assert now() != first
        first = now()
