"""Checks of a machine before a run keeps the state of its optimizer on NVMe."""

from __future__ import annotations

import errno
import mmap
import os
import resource
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

from parallel.errors import Fault

PROGRAM = "#include <libaio.h>\nint main() { io_context_t context = 0; return io_setup(1, &context); }\n"
IN_MEMORY = ("tmpfs", "ramfs", "devtmpfs")  # file systems


def unavailable(directory: Path) -> Fault | None:
    """A fault if this machine cannot keep state in files of `directory`, else None. Takes about a second: it compiles a
    small program."""
    return directory_fault(directory) or _compiler_fault() or _lock_of_build_fault()


def directory_fault(directory: Path) -> Fault | None:
    """A fault if `directory` is not one on a disk that takes files with direct I/O, else None. Leaves no file there."""

    def fault(found: str, remedy: str = "use a directory on a local NVMe disk") -> Fault:
        return Fault(f"optim.nvme_dir={directory} {found}; {remedy}", "optim.nvme_dir", str(directory), remedy)

    if not directory.is_dir():
        return fault("is not a directory" if directory.exists() else "does not exist on this machine")
    if _file_system(directory) in IN_MEMORY:  # since Linux 6.6 tmpfs takes direct I/O
        return fault("is in memory (tmpfs), not on a disk")
    try:
        _probe(directory)
    except OSError as error:
        if error.errno == errno.EINVAL:  # older tmpfs, some network file systems
            return fault("is on a file system without direct I/O")
        return fault(f"cannot be written ({error.strerror})", "use a directory that this user can write to")
    return None


def _probe(directory: Path) -> None:
    """Open a file without a name for direct I/O, or one with a name where the file system needs one. Raises
    `OSError`."""
    flags = os.O_WRONLY | os.O_DIRECT
    try:
        os.close(os.open(directory, flags | os.O_TMPFILE, 0o600))
        return
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR):
            raise
    named = directory / f"octavo-probe-{os.getpid()}"
    try:
        os.close(os.open(named, flags | os.O_CREAT, 0o600))
    finally:
        named.unlink(missing_ok=True)


def _file_system(directory: Path) -> str:
    """The type of the file system of a directory, such as ext4; an empty text if it cannot be found."""
    device = directory.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    try:
        mounts = Path("/proc/self/mountinfo").read_text(errors="replace")
    except OSError:
        return ""
    for before, _, after in (line.partition(" - ") for line in mounts.splitlines()):
        if before.split()[2] == number:
            return after.split()[0]
    return ""


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


def _lock_of_build_fault() -> Fault | None:
    """A fault if a compilation of async_io was killed and left its lock, for which later ones wait without end."""
    from parallel.torch_private import build_lock  # imports torch

    lock = build_lock("async_io")
    if not lock.exists() or _is_open(lock):
        return None
    remedy = f"rm {shlex.quote(str(lock))}"
    text = f"{lock} is left from a compilation of DeepSpeed's async_io that was killed, and new ones wait for it"
    return Fault(f"optim.offload=nvme: {text}; use {remedy}", "optim.offload", "nvme", remedy)


def _is_open(path: Path) -> bool:
    """Return True if a process of this machine, as far as this user can see, has the file open."""
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if link.samefile(path):
                return True
        except OSError:  # closed meanwhile, or of another user
            continue
    return False


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
