"""One process at a time holds a lock, and its end, however it comes, gives the lock back."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from trainer.storage.lock import FileLock, LockedError, NoLocksError

HOLD = "import sys, time; from pathlib import Path; from trainer.storage.lock import FileLock\n"
HOLD += "lock = FileLock(Path(sys.argv[1]), owner='a test'); print('held', flush=True); time.sleep(60)"


def test_a_second_process_is_refused_until_the_first_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "lock"
    with subprocess.Popen([sys.executable, "-c", HOLD, path], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(LockedError) as refused:
            FileLock(path, owner="another")
        assert (refused.value.path, refused.value.owner) == (path, "a test")
        holder.kill()
    with FileLock(path, owner="another"):
        assert path.read_text() == "another"


def test_content_without_an_owner_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_text("of somebody else")
    with FileLock(path):
        with pytest.raises(LockedError) as refused:
            FileLock(path)
        assert refused.value.owner == ""
    assert path.read_text() == "of somebody else"


def test_waiting_is_announced_once_and_ends_when_the_lock_is_free(tmp_path: Path) -> None:
    path, announced = tmp_path / "lock", []
    first = FileLock(path)
    with pytest.raises(LockedError):
        FileLock(path, wait=0.2, on_wait=lambda: announced.append("short"))
    threading.Timer(0.2, first.close).start()
    with FileLock(path, wait=None, on_wait=lambda: announced.append("long")):
        assert announced == ["short", "long"]


def test_a_file_that_its_holder_removed_guards_nothing(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    first = FileLock(path)

    def remove() -> None:
        time.sleep(0.2)
        path.unlink()
        first.close()

    thread = threading.Thread(target=remove)
    thread.start()
    with FileLock(path, wait=10):
        assert path.exists()
    thread.join()


@pytest.mark.parametrize("given", [False, True])
def test_a_started_process_holds_it_if_it_is_given_the_file(tmp_path: Path, given: bool) -> None:
    lock = FileLock(tmp_path / "lock")
    with subprocess.Popen(["sleep", "60"], pass_fds=[lock.file] if given else []) as child:
        lock.close()
        if given:
            with pytest.raises(LockedError):
                FileLock(tmp_path / "lock")
        child.kill()
    FileLock(tmp_path / "lock").close()


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOTSUP])
def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def flock(file: object, how: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(NoLocksError):
        FileLock(tmp_path / "lock")


def test_nothing_is_created_where_that_is_not_asked_for(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        FileLock(tmp_path / "lock", create=False)
    assert not list(tmp_path.iterdir())
