"""The machine's side of state on NVMe: what must be there before a run, and the directory of a rank's files."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import resource
import shlex
import shutil
import subprocess
import tempfile
import weakref
from pathlib import Path

from parallel.errors import Fault

PREFIX, LOCK, NEW = "octavo-swap-", "lock", ".new"
PROGRAM = "#include <libaio.h>\nint main() { io_context_t context = 0; return io_setup(1, &context); }\n"


def unavailable(directory: Path) -> Fault | None:
    """A fault if this machine cannot keep state in files of `directory`, else None. Takes about a second: it compiles a
    small program."""
    return _directory_fault(directory) or _compiler_fault()


def _directory_fault(directory: Path) -> Fault | None:
    def fault(found: str, remedy: str) -> Fault:
        return Fault(f"optim.nvme_dir={directory} {found}; {remedy}", "optim.nvme_dir", str(directory), remedy)

    if not directory.is_dir():
        found = "is not a directory" if directory.exists() else "does not exist on this machine"
        return fault(found, "use a directory on a local NVMe disk")
    probe = directory / f"{PREFIX}probe-{os.getpid()}"
    try:
        os.close(os.open(probe, os.O_CREAT | os.O_WRONLY | os.O_DIRECT))
    except OSError as error:
        if error.errno == errno.EINVAL:  # tmpfs, some network file systems
            return fault("is on a file system without direct I/O", "use a directory on a local NVMe disk")
        return fault(f"cannot be written ({error.strerror})", "use a directory that this user can write to")
    finally:
        probe.unlink(missing_ok=True)
    return None


def _compiler_fault() -> Fault | None:
    """A fault if DeepSpeed's async_io cannot be compiled here: it needs a C++ compiler, and libaio with its header."""

    def fault(found: str, debian: str, conda: str) -> Fault:
        allowed = f"apt install {debian} (Debian, Ubuntu), {conda}"
        text = f"optim.offload=nvme compiles DeepSpeed's async_io, and {found}; use {allowed}, or optim.offload=cpu"
        return Fault(text, "optim.offload", "nvme", allowed)

    compiler = shlex.split(os.environ.get("CXX", "c++"))  # as torch.utils.cpp_extension chooses it
    if shutil.which(compiler[0]) is None:
        return fault(f"there is no C++ compiler {compiler[0]}", "g++", "conda install -c conda-forge gxx")
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch, "probe.cpp")
        source.write_text(PROGRAM)
        command = [*compiler, str(source), "-o", str(source.with_suffix("")), "-laio"]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode == 0:
        return None
    if "aio" in done.stderr.replace(PROGRAM, ""):
        there = "conda install -c anaconda libaio with CPATH=$CONDA_PREFIX/include LIBRARY_PATH=$CONDA_PREFIX/lib"
        return fault("libaio with its header libaio.h is missing", "libaio-dev", there)
    first = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[0]
    return fault(f"{compiler[0]} fails on a small program ({first})", "g++", "conda install -c conda-forge gxx")


def lock_fault(needed: int) -> Fault | None:
    """A fault if this process may not lock `needed` bytes in memory, as DeepSpeed's buffers for files are: it would end
    with a null pointer."""
    limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if limit == resource.RLIM_INFINITY or limit >= needed or _may_exceed(limit):
        return None
    allowed = "ulimit -l unlimited, memlock in /etc/security/limits.conf, or docker run --ulimit memlock=-1"
    text = f"optim.offload=nvme locks {needed / 1e9:.1f} GB in memory, and this process may lock {limit:,} bytes"
    return Fault(f"{text}; use {allowed}", "optim.offload", limit, allowed)


def _may_exceed(limit: int) -> bool:
    """Return True if the limit of locked memory does not bind this process, as root's does not."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    size = limit + mmap.PAGESIZE
    with mmap.mmap(-1, size) as block:
        view = (ctypes.c_char * size).from_buffer(block)
        locked = libc.mlock(ctypes.c_void_p(ctypes.addressof(view)), ctypes.c_size_t(size)) == 0
        if locked:
            libc.munlock(ctypes.c_void_p(ctypes.addressof(view)), ctypes.c_size_t(size))
        del view
    return locked


def remove_abandoned(directory: Path) -> None:
    """Remove what processes that were killed have left in `directory`."""
    for path in directory.glob(f"{PREFIX}*"):
        if path.suffix == NEW:
            continue  # its lock may not be held yet
        try:
            lock = os.open(path / LOCK, os.O_RDWR)
        except OSError:
            continue  # another user's, or being removed
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path, ignore_errors=True)
        except OSError:
            continue  # a live process has it
        finally:
            os.close(lock)


class SwapDirectory:
    """A new directory in `parent` for one rank's files: `path`. It is removed by `close`, at the latest when the
    process ends; if that is killed, by the next `remove_abandoned`."""

    def __init__(self, parent: Path) -> None:
        new = Path(tempfile.mkdtemp(prefix=PREFIX, suffix=NEW, dir=parent))
        lock = os.open(new / LOCK, os.O_CREAT | os.O_RDWR, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
        self.path = new.rename(new.with_suffix(""))  # from now on `remove_abandoned` sees it, locked
        self._remove = weakref.finalize(self, _remove, self.path, lock)

    def close(self) -> None:
        """May be called again."""
        self._remove()


def _remove(path: Path, lock: int) -> None:
    shutil.rmtree(path, ignore_errors=True)
    os.close(lock)
