"""The checks of a machine before it keeps state on NVMe."""

from __future__ import annotations

import errno
import os
import resource
from pathlib import Path

import pytest
from torch.utils.file_baton import FileBaton

from parallel.torch_private import build_lock
from parallel.zero import nvme
from parallel.zero.nvme import lock_fault, unavailable

COMPILER = """#!/bin/sh
echo "{error}" >&2
exit {code}
"""


def compiler(directory: Path, monkeypatch: pytest.MonkeyPatch, error: str = "", code: int = 1) -> None:
    path = directory / "compiler"
    path.write_text(COMPILER.format(error=error, code=code))
    path.chmod(0o700)
    monkeypatch.setenv("CXX", str(path))


@pytest.mark.parametrize(
    ("error", "data"),
    [
        ("probe.cpp:1:10: fatal error: libaio.h: No such file or directory", ("libaio-dev", "anaconda libaio")),
        ("/usr/bin/ld: cannot find -laio: No such file or directory", ("libaio-dev", "anaconda libaio")),
        ("cc1plus: out of memory", ("g++", "conda-forge gxx", "cc1plus: out of memory")),
    ],
)
def test_what_the_compiler_lacks_is_one_line_with_the_package(error, data, tmp_path, monkeypatch):
    compiler(tmp_path, monkeypatch, error)
    fault = unavailable(tmp_path)
    assert fault is not None
    assert (fault.where, fault.value) == ("optim.offload", "nvme")
    assert "\n" not in fault.text
    assert all(datum in fault.text for datum in ("optim.offload=nvme", *data))


def test_a_missing_compiler_is_one_line_with_the_package(tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "compiler-that-is-missing -O2")
    fault = unavailable(tmp_path)
    assert fault is not None
    assert all(datum in fault.text for datum in ("compiler-that-is-missing", "apt install g++", "gxx"))


def test_a_machine_with_all_is_fit(tmp_path, monkeypatch):
    compiler(tmp_path, monkeypatch, code=0)
    assert unavailable(tmp_path) is None
    assert [path.name for path in tmp_path.iterdir()] == ["compiler"]  # the probe is removed


def test_the_lock_of_a_killed_compilation_is_named(tmp_path, monkeypatch):
    """DeepSpeed would wait for it without end. The lock of one that runs is open there."""
    compiler(tmp_path, monkeypatch, code=0)
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "built here"))
    baton = FileBaton(str(build_lock("async_io")))
    assert baton.try_acquire()
    assert unavailable(tmp_path) is None
    os.close(baton.fd)
    fault = unavailable(tmp_path)
    assert fault is not None
    assert (fault.where, fault.value) == ("optim.offload", "nvme")
    assert fault.allowed == f"rm '{tmp_path}/built here/async_io/lock'"
    assert str(fault.allowed) in fault.text


def test_a_directory_that_cannot_hold_files_is_named(tmp_path, monkeypatch):
    compiler(tmp_path, monkeypatch, code=0)
    (tmp_path / "file").touch()
    for path in (tmp_path / "missing", tmp_path / "file", Path("/proc/self")):
        fault = unavailable(path)
        assert fault is not None
        assert (fault.where, fault.value) == ("optim.nvme_dir", str(path))
        assert f"optim.nvme_dir={path} " in fault.text

    monkeypatch.setattr(nvme, "_file_system", lambda _: "tmpfs")  # of Linux 6.6, with direct I/O
    fault = unavailable(tmp_path)
    assert fault is not None
    assert "tmpfs" in fault.text
    monkeypatch.undo()
    compiler(tmp_path, monkeypatch, code=0)

    def without_direct_io(*_: object) -> int:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "open", without_direct_io)
    fault = unavailable(tmp_path)
    assert fault is not None
    assert "direct I/O" in fault.text


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="there is no directory in memory")
def test_the_file_system_of_a_directory(tmp_path):
    assert nvme._file_system(Path("/dev/shm")) == "tmpfs"
    assert nvme._file_system(Path("/proc/self")) == "proc"


def test_too_little_memory_that_can_be_locked_is_named(monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (8 << 20, 8 << 20))
    monkeypatch.setattr(nvme, "_may_exceed", lambda _: False)
    assert lock_fault(8 << 20) is None
    fault = lock_fault(6 * 10**9)
    assert fault is not None
    assert (fault.where, fault.value) == ("optim.offload", 8 << 20)
    assert all(datum in fault.text for datum in ("6.0 GB", "8,388,608 bytes", "ulimit -l unlimited"))
    monkeypatch.setattr(nvme, "_may_exceed", lambda _: True)
    assert lock_fault(6 * 10**9) is None
