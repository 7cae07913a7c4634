"""Saves that survive and loads that notice: every byte of a checkpoint is checked before it is used."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed.checkpoint as dcp

from parallel.world import World, start_world
from tests.distributed.doomed import run_ranks
from tests.distributed.pool import on_ranks
from trainer.checkpoint import store as module
from trainer.checkpoint.errors import CheckpointError
from trainer.checkpoint.store import CheckpointStore
from trainer.storage.manifest import CHECKPOINT, CorruptError, Manifest


def state(value: float, *, rank: int = 0) -> dict[str, torch.Tensor]:
    return {
        "model.w": torch.full((5, 7), value),
        "optim.w.exp_avg": torch.full((5, 7), value + 0.5),
        "optim.w.step": torch.tensor(value),
        f"rng.cpu.{rank}": torch.full((11,), int(value), dtype=torch.uint8),
    }


def accept(manifest: dict) -> None:
    pass


@pytest.fixture
def warnings_seen() -> list[str]:
    return []


@pytest.fixture
def store(tmp_path, warnings_seen) -> CheckpointStore:
    return CheckpointStore(tmp_path / "checkpoints", keep=2, world=World(), warn=warnings_seen.append)


def save(store: CheckpointStore, *steps: int) -> None:
    for step in steps:
        store.save(step, state(float(step)), {"sample": 8 * step})
        saved = store.wait()
        assert saved is not None
        assert saved.error is None
        assert saved.step == step


def load(store: CheckpointStore) -> tuple[dict | None, dict[str, torch.Tensor]]:
    tensors = state(0.0)
    return store.load(tensors, accept), tensors


def test_what_was_saved_comes_back_bitwise_and_only_the_last_stay(store):
    save(store, 1, 2, 3)
    manifest, tensors = load(store)
    assert manifest["step"] == 3
    assert manifest["sample"] == 24
    assert all(torch.equal(tensors[name], tensor) for name, tensor in state(3.0).items())
    assert sorted(p.name for p in store.directory.iterdir()) == ["latest", "step-2", "step-3"]
    assert (store.directory / "latest").read_text() == "step-3\n"


def test_an_empty_directory_has_no_checkpoint(store):
    assert load(store)[0] is None


def test_the_state_is_copied_before_the_caller_changes_it(store):
    tensors = state(1.0)
    store.save(1, tensors, {})
    for tensor in tensors.values():
        tensor.zero_()
    assert store.wait().error is None
    assert torch.equal(load(store)[1]["model.w"], state(1.0)["model.w"])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("damage", [flip, truncate, Path.unlink], ids=["flipped", "truncated", "missing"])
@pytest.mark.parametrize("name", ["__0_0.distcp", ".metadata", "manifest.json"])
def test_damage_is_named_and_the_checkpoint_before_is_used(store, warnings_seen, name, damage):
    save(store, 1, 2)
    damage(store.directory / "step-2" / name)
    manifest, tensors = load(store)
    assert manifest["step"] == 1
    assert all(torch.equal(tensors[key], tensor) for key, tensor in state(1.0).items())
    assert len(warnings_seen) == 1
    assert f"step-2/{name}" in warnings_seen[0]
    assert (store.directory / "step-2.damaged").is_dir()
    assert (store.directory / "latest").read_text() == "step-1\n"
    save(store, 2, 3)  # neither met nor counted by later saves
    assert sorted(p.name for p in store.directory.glob("step-*")) == ["step-2", "step-2.damaged", "step-3"]


def test_a_change_inside_the_manifest_is_noticed(store, warnings_seen):
    save(store, 1, 2)
    path = store.directory / "step-2" / "manifest.json"
    path.write_text(path.read_text().replace('"sample": 16', '"sample": 17'))
    assert load(store)[0]["step"] == 1
    assert len(warnings_seen) == 1
    assert "step-2/manifest.json" in warnings_seen[0]


def test_another_format_is_not_read(tmp_path):
    CHECKPOINT.write(tmp_path, {"step": 1}, {})
    body = json.loads((tmp_path / "manifest.json").read_text())
    assert body["format"] == 1
    CHECKPOINT.write(tmp_path, {"step": 1, "format": 2}, {})
    with pytest.raises(CorruptError) as refused:
        CHECKPOINT.read(tmp_path)
    assert (refused.value.path, refused.value.value, refused.value.allowed) == (tmp_path / "manifest.json", 2, 1)


def test_only_damaged_checkpoints_is_an_error_that_says_what_would_work(store):
    save(store, 1, 2)
    flip(store.directory / "step-1" / "__0_0.distcp")
    truncate(store.directory / "step-2" / "__0_0.distcp")
    with pytest.raises(CheckpointError) as failure:
        load(store)
    damaged = [str(store.directory / step / "__0_0.distcp") for step in ("step-2", "step-1")]
    assert (failure.value.where, failure.value.value) == (str(store.directory), damaged)
    assert "train.resume=never" in failure.value.allowed
    (line,) = failure.value.lines
    assert all(file in line for file in damaged)
    assert (store.directory / "step-2").is_dir()  # nothing is moved where nothing could be used


def test_a_half_written_directory_is_named_and_removed(store, warnings_seen):
    save(store, 1)
    shutil.copytree(store.directory / "step-1", store.directory / "step-2.tmp")
    assert load(store)[0]["step"] == 1
    assert "step-2.tmp" in warnings_seen[0]
    assert not (store.directory / "step-2.tmp").exists()


def test_another_model_is_refused_with_names_and_shapes(store):
    save(store, 1)
    other = state(0.0)
    other["model.w"] = torch.zeros(5, 8)
    other["model.bias"] = torch.zeros(3)
    del other["optim.w.step"]
    with pytest.raises(CheckpointError) as failure:
        store.load(other, accept)
    assert failure.value.where == str(store.directory / "step-1")
    reported = {line.split()[0]: line for line in failure.value.value}
    assert set(reported) == {"model.w", "model.bias", "optim.w.step"}
    assert reported["model.w"].index("[5, 7] float32") < reported["model.w"].index("[5, 8] float32")
    (line,) = failure.value.lines
    assert all(difference in line for difference in reported.values())


def test_the_caller_can_refuse_before_anything_is_read(store):
    save(store, 1)
    tensors = state(0.0)

    def refuse(manifest):
        raise CheckpointError("not ours", where="sample", value=manifest["sample"])

    with pytest.raises(CheckpointError) as refused:
        store.load(tensors, refuse)
    assert (refused.value.where, refused.value.value) == ("sample", 8)
    assert not tensors["model.w"].any()


@pytest.mark.parametrize(
    ("error", "seen"), [(KeyboardInterrupt(), KeyboardInterrupt), (MemoryError(), CheckpointError)]
)
def test_a_whole_checkpoint_that_cannot_be_read_is_not_called_damaged(store, monkeypatch, error, seen):
    """DCP wraps whatever happens while it reads, Ctrl-C included."""
    save(store, 1, 2)

    def fail(*_args, **_kwargs):
        raise error

    monkeypatch.setattr(dcp.FileSystemReader, "read_data", fail)
    with pytest.raises(seen):
        load(store)
    assert sorted(p.name for p in store.directory.iterdir()) == ["latest", "step-1", "step-2"]


@pytest.mark.parametrize("where", ["shards", "manifest", "rename"])
def test_a_save_that_fails_keeps_the_old_ones_and_leaves_nothing(store, monkeypatch, where):
    save(store, 1)
    full = OSError(errno.ENOSPC, "No space left on device", "disk")

    def fail(*_args, **_kwargs):
        raise full

    with monkeypatch.context() as patch:
        if where == "shards":
            patch.setattr(dcp.FileSystemWriter, "write_data", fail)
        elif where == "manifest":
            patch.setattr(Manifest, "write", fail)
        else:
            patch.setattr("trainer.checkpoint.store.publish", fail)
        store.save(2, state(2.0), {})
        saved = store.wait()
    assert saved.error == "No space left on device: disk"
    assert sorted(p.name for p in store.directory.iterdir()) == ["latest", "step-1"]
    assert load(store)[0]["step"] == 1
    save(store, 3)


@pytest.mark.parametrize("foreseen", [True, False], ids=["foreseen", "while writing"])
def test_a_full_file_system_is_survived(tmp_path, warnings_seen, monkeypatch, foreseen):
    """The real thing where a small file system can be mounted (needs root)."""
    if not foreseen:
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1 << 40))
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("cannot mount a tmpfs here")
    try:
        store = CheckpointStore(disk / "checkpoints", keep=2, world=World(), warn=warnings_seen.append)
        save(store, 1)
        store.save(2, {"model.w": torch.rand(500_000)}, {})
        saved = store.wait()
        assert saved.error is not None
        assert "No space left on device" in saved.error
        assert "\n" not in saved.error
        assert sorted(p.name for p in store.directory.iterdir()) == ["latest", "step-1"]
        assert load(store)[0]["step"] == 1
        save(store, 3)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_an_unwritable_directory_is_a_failed_save(store):
    if os.geteuid() == 0:
        store.directory.parent.joinpath("checkpoints").write_text("a file where the directory should be")
    else:
        store.directory.mkdir()
        store.directory.chmod(0o500)
    store.save(1, state(1.0), {})
    saved = store.wait()
    assert saved.error is not None
    assert "\n" not in saved.error


def save_until_killed(directory: Path, moment: str) -> int:
    """Save step 1, then step 2 until `moment`."""
    store = CheckpointStore(directory, keep=2, world=World(), warn=print)
    store.save(1, {"model.w": torch.full((5, 7), 1.0)}, {"sample": 8})
    assert store.wait().error is None
    where = module if moment == "_write_latest" else Manifest
    genuine = getattr(where, moment)

    def die(*args, **kwargs):
        if moment != "file_facts":
            genuine(*args, **kwargs)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(where, moment, die)
    store.save(2, {"model.w": torch.full((5, 7), 2.0)}, {"sample": 16})
    store.wait()
    return 0


@pytest.mark.parametrize(("moment", "usable"), [("file_facts", 1), ("write", 1), ("_write_latest", 2)])
def test_kill_9_during_a_save_leaves_a_usable_checkpoint(tmp_path, warnings_seen, moment, usable):
    directory = tmp_path / "checkpoints"
    assert run_ranks(tmp_path / "rank", 1, save_until_killed, directory, moment, limit_s=60).codes == [-signal.SIGKILL]
    store = CheckpointStore(directory, keep=2, world=World(), warn=warnings_seen.append)
    tensors = {"model.w": torch.zeros(5, 7)}
    assert store.load(tensors, accept)["step"] == usable
    assert torch.equal(tensors["model.w"], torch.full((5, 7), float(usable)))
    assert bool(warnings_seen) == (usable == 1)


def test_a_save_runs_beside_the_caller(store, monkeypatch):
    write = dcp.FileSystemWriter.write_data

    came_back = threading.Event()

    def slow(*args, **kwargs):
        assert came_back.wait(30)
        return write(*args, **kwargs)

    monkeypatch.setattr(dcp.FileSystemWriter, "write_data", slow)
    assert store.save(1, state(1.0), {}) is None
    assert store.poll() is None
    came_back.set()
    before = store.save(2, state(2.0), {})  # waits for the first and returns how it ended
    assert (before.step, before.error) == (1, None)
    assert store.wait().step == 2
    assert store.wait() is None


def rank_saves(directory: str, fail_on: int | None) -> tuple[str | None, list[str]]:
    world = start_world("cpu", 30)
    try:
        store = CheckpointStore(Path(directory), keep=2, world=world, warn=print)
        tensors = {**state(4.0, rank=world.rank), "model.big": torch.arange(1000.0)}
        store.save(4, tensors, {"sample": 1})
        assert store.wait().error is None
        if fail_on == world.rank:
            dcp.FileSystemWriter.write_data, kept = _full_disk, dcp.FileSystemWriter.write_data
        store.save(5, tensors, {"sample": 2})
        error = store.wait().error
        if fail_on == world.rank:
            dcp.FileSystemWriter.write_data = kept
        for tensor in tensors.values():
            tensor.zero_()
        assert store.load(tensors, accept)["step"] == (5 if fail_on is None else 4)
        assert torch.equal(tensors["model.big"], torch.arange(1000.0))
        return error, sorted(p.name for p in Path(directory).iterdir())
    finally:
        world.close()


def _full_disk(*_args, **_kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_two_ranks_save_and_one_loads(tmp_path):
    assert on_ranks(2, rank_saves, str(tmp_path), None) == [(None, ["latest", "step-4", "step-5"])] * 2
    files = CHECKPOINT.read(tmp_path / "step-5")["files"]
    assert {".metadata", "__0_0.distcp", "__1_0.distcp"} == set(files)
    store = CheckpointStore(tmp_path, keep=2, world=World(), warn=print)
    tensors = {**state(0.0), "model.big": torch.zeros(1000)}
    assert store.load(tensors, accept)["world_size"] == 2
    assert torch.equal(tensors["model.big"], torch.arange(1000.0))


def test_a_save_that_fails_on_one_rank_fails_on_all(tmp_path):
    results = on_ranks(2, rank_saves, str(tmp_path), 1)
    assert results == [("rank 1: No space left on device", ["latest", "step-4"])] * 2
