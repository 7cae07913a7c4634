"""Directories that end with their process."""

from __future__ import annotations

import os

from trainer.storage import scratch
from trainer.storage.scratch import ScratchDirectory, remove_abandoned


def test_only_what_killed_processes_left_is_removed(tmp_path):
    live = ScratchDirectory(tmp_path)
    (live.path / "state").write_bytes(b"1")
    abandoned = tmp_path / f"{scratch.PREFIX}abandoned"
    starting = tmp_path / f"{scratch.PREFIX}starting{scratch.NEW}"
    others = tmp_path / "of somebody"
    for path in (abandoned, starting, others):
        path.mkdir()
        (path / scratch.LOCK).touch()
    remove_abandoned(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {live.path.name, starting.name, others.name}
    assert (live.path / "state").exists()
    live.close()
    live.close()
    assert not live.path.exists()


def test_a_removal_that_was_killed_is_finished(tmp_path):
    half = tmp_path / f"{scratch.PREFIX}half"
    half.mkdir()
    (half / "state").write_bytes(b"1")  # its lock was removed first
    remove_abandoned(tmp_path)
    assert not half.exists()


def test_files_are_removed_when_a_process_ends_without_close(tmp_path):
    if (child := os.fork()) == 0:
        directory = ScratchDirectory(tmp_path)
        del directory
        os._exit(0)
    os.waitpid(child, 0)
    assert list(tmp_path.iterdir()) == []
