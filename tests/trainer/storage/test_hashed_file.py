"""Files hashed while they are written: every byte there, the hash of exactly these, and no error lost in the thread."""

from __future__ import annotations

import errno
import fcntl
import os
import random
from pathlib import Path

import pytest

from trainer.storage import hashed_file
from trainer.storage.hashed_file import DIRECT, HashedFile
from trainer.storage.manifest import CHECKPOINT


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashed_file, "BLOCK", 8192)
    monkeypatch.setattr(hashed_file, "STEP", 3000)


def pieces(seed: int, last: int) -> list[bytes]:
    rng = random.Random(seed)
    sizes = [0, 1, 4096, 8192, 8191, 40_000, *(rng.randrange(20_000) for _ in range(20)), last]
    return [rng.randbytes(size) for size in sizes]


def write(path: Path, parts: list[bytes]) -> dict[str, object]:
    with HashedFile(path) as file:
        for part in parts:
            file.write(memoryview(part))
        return file.finish()


@pytest.mark.parametrize("last", [0, 1, 5000])
def test_the_file_and_its_hash_are_what_was_written(tmp_path, last):
    parts = pieces(last, last)
    parts.append(bytes(-sum(map(len, parts)) % 8192 if last == 0 else 0))  # one that ends with a block
    path = tmp_path / "file"
    facts = write(path, parts)
    assert path.read_bytes() == b"".join(parts)
    assert facts == CHECKPOINT.file_facts(path)


def test_an_empty_file(tmp_path):
    assert write(tmp_path / "file", []) == CHECKPOINT.file_facts(tmp_path / "file")


def test_what_was_there_is_gone(tmp_path):
    (tmp_path / "file").write_bytes(bytes(100_000))
    write(tmp_path / "file", [b"abc"])
    assert (tmp_path / "file").read_bytes() == b"abc"


@pytest.mark.skipif(not DIRECT, reason="no O_DIRECT here")
def test_a_file_system_that_goes_through_the_cache_and_cuts_writes_short(tmp_path, monkeypatch):
    real, refused = os.pwrite, []

    def pwrite(file: int, data: memoryview, start: int) -> int:
        if fcntl.fcntl(file, fcntl.F_GETFL) & DIRECT:
            refused.append(start)
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return real(file, data[:1000], start)

    monkeypatch.setattr(os, "pwrite", pwrite)
    parts = pieces(7, 17)
    facts = write(tmp_path / "file", parts)
    assert refused
    assert (tmp_path / "file").read_bytes() == b"".join(parts)
    assert facts == CHECKPOINT.file_facts(tmp_path / "file")


def test_a_full_disk_is_reported(tmp_path, monkeypatch):
    def pwrite(file: int, data: memoryview, start: int) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", pwrite)
    for parts in ([b"short"], [bytes(100_000)]):  # known at the end, and on the way
        with pytest.raises(OSError, match="No space left"):
            write(tmp_path / "file", parts)
