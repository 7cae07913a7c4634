"""The ledger: whole lines stay, half a line is cut off, one process at a time."""

import errno
import os
from pathlib import Path

import pytest

from trainer.storage.ledger import Ledger, LedgerLineError
from trainer.storage.lock import LockedError


def test_entries_outlive_their_writer_and_half_a_line_does_not(tmp_path: Path) -> None:
    path = tmp_path / "new" / "ledger.jsonl"
    with Ledger(path) as ledger:
        ledger.add("a", {"text": "ä\n"})
        ledger.add("b", {"text": "2"})
        ledger.add("a", {"text": "3"})
    whole = path.read_bytes()
    for cut in range(1, len(whole.splitlines(keepends=True)[-1])):
        path.write_bytes(whole[:-cut])
        with Ledger(path) as ledger:
            assert len(ledger) == 2
            assert ledger.get("a") == {"key": "a", "text": "ä\n"}
            ledger.add("c", {"text": "4"})
        assert path.read_bytes().endswith(b'"2"}\n{"key": "c", "text": "4"}\n')
    path.write_bytes(whole)
    with Ledger(path) as ledger:
        assert ledger.get("a") == {"key": "a", "text": "3"}
        assert "b" in ledger
        assert "c" not in ledger
        assert ledger.get("c") is None
        with pytest.raises(LockedError):
            Ledger(path)


@pytest.mark.parametrize("line", [b"not json\n", b"[]\n", b'{"text": "x"}\n'])
def test_a_line_that_is_not_an_entry_is_named(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(b'{"key": "a"}\n' + line)
    with pytest.raises(LedgerLineError) as caught:
        Ledger(path)
    assert (caught.value.path, caught.value.line) == (path, 2)
    path.write_bytes(b'{"key": "a"}\n')
    Ledger(path).__exit__(None, None, None)  # the lock was given back


def test_an_entry_is_on_the_disk_before_add_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = []
    monkeypatch.setattr("trainer.storage.ledger.sync", lambda file: synced.append(os.fstat(file).st_size))
    with Ledger(tmp_path / "ledger.jsonl") as ledger:
        ledger.add("a", {})
        assert synced == [len(b'{"key": "a"}\n')]


def test_a_full_disk_leaves_the_ledger_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Ledger(tmp_path / "ledger.jsonl") as ledger:
        genuine = os.pwrite
        monkeypatch.setattr(os, "pwrite", lambda file, line, at: genuine(file, line[:4], at))
        with pytest.raises(OSError, match="space"):
            ledger.add("a", {})
        monkeypatch.undo()
        assert "a" not in ledger
        ledger.add("b", {})
        assert ledger.path.read_bytes() == b'{"key": "b"}\n'


@pytest.mark.parametrize("cut", [True, False])
def test_a_failed_sync_leaves_the_ledger_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: bool) -> None:
    """cut: the entry can be cut off at once, or only before the next."""

    def fail(*args: int) -> None:
        raise OSError(errno.EIO, "no disk")

    path = tmp_path / "ledger.jsonl"
    with Ledger(path) as ledger:
        ledger.add("a", {})
        before = path.read_bytes()
        monkeypatch.setattr("trainer.storage.ledger.sync", fail)
        if not cut:
            monkeypatch.setattr(os, "ftruncate", fail)
        for _ in range(2):
            with pytest.raises(OSError, match="no disk"):
                ledger.add("long", {"text": "x" * 100})
        assert "long" not in ledger
        if cut:
            assert path.read_bytes() == before
        monkeypatch.undo()
        ledger.add("b", {})
    assert path.read_bytes() == before + b'{"key": "b"}\n'
    with Ledger(path) as ledger:
        assert len(ledger) == 2
