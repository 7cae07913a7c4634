"""A file or directory is complete or absent, whatever interrupts its writer."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from trainer.storage.atomic import (
    OWNER,
    TargetExistsError,
    atomic_directory,
    atomic_file,
    publish,
    remove_unfinished,
)
from trainer.storage.lock import FileLock, LockedError


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def without_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(file: object, how: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)


def half_a_file(path: Path, error: BaseException) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text("half")
        raise error


def half_a_directory(path: Path, error: BaseException) -> None:
    with atomic_directory(path) as temporary:
        (temporary / "file").write_text("")
        raise error


@pytest.mark.parametrize("durable", [False, True])
@pytest.mark.parametrize("locks", [False, True])
def test_a_file_is_replaced_at_the_end(tmp_path: Path, monkeypatch, durable: bool, locks: bool) -> None:
    if not locks:
        without_locks(monkeypatch)
    path = tmp_path / "file"
    path.write_text("old")
    (tmp_path / "file.tmp").write_text("much more, of a writer that was killed")
    with atomic_file(path, durable=durable) as temporary:
        assert temporary.stat().st_size == 0
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, OSError])
def test_an_error_leaves_what_was_there(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(error):
        half_a_file(path, error())
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file"]


def test_a_write_that_fails_names_its_file(tmp_path: Path) -> None:
    """An error of `write` has no name of its own; one of another file keeps it."""
    for name, expected in ((None, str(tmp_path / "a.tmp")), ("b", "b")):
        with pytest.raises(OSError, match="No space left") as caught, atomic_file(tmp_path / "a"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), *([name] if name else []))
        assert caught.value.filename == expected
    assert not [*tmp_path.iterdir()]


def test_two_writers_of_one_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with atomic_file(path) as temporary:
        temporary.write_text("first")
        with pytest.raises(LockedError), atomic_file(path):
            pass
    assert path.read_text() == "first"
    with atomic_file(path) as temporary:
        temporary.write_text("second")
    assert path.read_text() == "second"


def test_a_file_that_came_meanwhile_stays_where_nothing_is_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "file"

    def late() -> None:
        with atomic_file(path, overwrite=False) as temporary:
            temporary.write_text("mine")
            path.write_text("of another")

    with pytest.raises(TargetExistsError):
        late()
    assert path.read_text() == "of another"
    assert (tmp_path / "file.tmp").read_text() == "mine"


@pytest.mark.parametrize("locks", [False, True])
def test_a_directory_has_its_name_at_the_end(tmp_path: Path, monkeypatch, locks: bool) -> None:
    if not locks:
        without_locks(monkeypatch)
    target = tmp_path / "deep" / "directory"
    with atomic_directory(target) as temporary:
        (temporary / "file").write_text("")
        assert not target.exists()
        assert OWNER in names(temporary)
    assert names(target) == ["file"]
    assert names(target.parent) == ["directory"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, OSError])
def test_an_error_leaves_no_directory(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error):
        half_a_directory(tmp_path / "directory", error())
    assert not names(tmp_path)


def test_an_existing_directory_is_never_replaced(tmp_path: Path) -> None:
    target = tmp_path / "directory"
    with pytest.raises(TargetExistsError), atomic_directory(target):
        target.mkdir()
    assert names(tmp_path) == ["directory"]
    target.rmdir()
    target.symlink_to(tmp_path / "nowhere")
    (tmp_path / "other").mkdir()
    with pytest.raises(TargetExistsError):
        publish(tmp_path / "other", target)


WRITE = """import os, sys, time
from pathlib import Path
from trainer.storage.atomic import atomic_directory
with atomic_directory(Path(sys.argv[1])) as temporary:
    (temporary / "file").write_text("half")
    print(temporary, flush=True)
    time.sleep(60)
"""


def test_a_killed_writers_directory_is_removed_and_a_living_ones_is_not(tmp_path: Path) -> None:
    target = tmp_path / "directory"
    (tmp_path / "directory.0123abcd.octavo.tmp").mkdir()  # without a lock
    (tmp_path / "directory.tmp").mkdir()
    with subprocess.Popen([sys.executable, "-c", WRITE, target], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        temporary = Path(writer.stdout.readline().strip())
        assert remove_unfinished(target) == temporary
        writer.send_signal(signal.SIGKILL)
    assert temporary.exists()
    assert remove_unfinished(target) is None
    assert names(tmp_path) == ["directory.0123abcd.octavo.tmp", "directory.tmp"]


def test_without_locks_a_directory_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = tmp_path / "directory.0123abcd.octavo.tmp"
    left.mkdir()
    FileLock(left / OWNER).close()
    without_locks(monkeypatch)
    assert remove_unfinished(tmp_path / "directory") is None
    assert left.exists()
