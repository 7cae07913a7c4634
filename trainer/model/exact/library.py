"""The C functions of exact arithmetic, compiled for this processor when they are first needed.

Without a C compiler exact arithmetic is torch's, by blocks of a fixed number of rows.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shlex
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from trainer.storage.atomic import atomic_file
from trainer.storage.lock import LockedError

HERE = Path(__file__).parent
SOURCES, HEADER = [HERE / f"{name}.c" for name in ("products", "experts", "attention")], HERE / "vectors.h"
FLAGS = ["-O3", "-march=native", "-std=gnu11", "-ffp-contract=fast", "-shared", "-fPIC"]
POINTER, NUMBER = ctypes.c_void_p, ctypes.c_int64
ARGUMENTS = {  # p: a pointer, n: a number
    "octavo_rows": "pnpnnpnnn",
    "octavo_experts": "pnppnnnppnnn",
    "octavo_swiglu": "ppppnn",
    "octavo_select": "pnnnnp",
    "octavo_mixture": "pnpppppppnnnnn",
    "octavo_store": "pnpnpppnnn",
    "octavo_attend": "pppppppnnnnnnn",
}

log = logging.getLogger(__name__)


@cache
def library() -> ctypes.CDLL | None:
    """The compiled functions, from the user's cache where this processor's are there. None without a C compiler."""
    words = os.environ.get("CC") or "cc"
    try:
        compiler = shlex.split(words)
        sources = b"".join(path.read_bytes() for path in (*SOURCES, HEADER))
        made_from = f"{compiler}\n{_version(compiler)}\n{FLAGS}\n{_processor()}\n".encode() + sources
        cached = _cache() / f"exact-{hashlib.sha256(made_from).hexdigest()[:16]}.so"
        found = _load(cached) or _compile(compiler, cached)
    except (OSError, ValueError) as error:  # ValueError: CC has a quotation mark without its second
        remedy = "install one, such as gcc, for faster generation"
        log.warning("exact arithmetic is torch's, as the C compiler %s failed (%s): %s", words, error, remedy)
        return None
    for name, arguments in ARGUMENTS.items():
        function = getattr(found, name)
        function.argtypes = [NUMBER if one == "n" else POINTER for one in arguments]
    return found


def _cache() -> Path:
    """The directory of compiled functions, whether or not it is there."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "octavo"
    except RuntimeError as error:  # a user without a home
        raise OSError(f"{error}; set XDG_CACHE_HOME") from error


def _load(path: Path) -> ctypes.CDLL | None:
    """The library at `path`; None where there is none that can be loaded, or that somebody else may have written."""
    try:
        about = path.stat()
        if about.st_uid != os.getuid() or about.st_mode & 0o022:
            return None
        return ctypes.CDLL(str(path))
    except OSError:
        return None


def _version(compiler: list[str]) -> str:
    """The answer of a compiler to --version. Raises OSError."""
    done = subprocess.run([*compiler, "--version"], capture_output=True, text=True, errors="replace", check=False)
    return done.stdout


def _processor() -> str:
    """The model and the instructions of this processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    kept = [line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))]
    return "\n".join([platform.machine(), platform.processor(), *sorted(set(kept))])


def _compile(compiler: list[str], target: Path) -> ctypes.CDLL:
    """Compile, keep the result at `target` where that can be written, and load it. Raises OSError."""
    reason = "there is nothing to compile"
    with tempfile.TemporaryDirectory() as scratch:
        # OpenMP shares torch's threads. Compilers without it, or without its library, make functions of one thread.
        for number, extra in enumerate((["-fopenmp"], [])):
            built = Path(scratch) / f"exact-{number}.so"
            command = [*compiler, *FLAGS, *extra, *map(str, SOURCES), "-o", str(built), "-lm"]
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
            if done.returncode:
                reason = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[0]
                continue
            kept = _keep(built, target)
            try:
                return ctypes.CDLL(str(target if kept else built))
            except OSError as error:
                reason = str(error)
                if kept:
                    target.unlink(missing_ok=True)
    raise OSError(reason)


def _keep(built: Path, target: Path) -> bool:
    """Copy a library to its place, for this user alone to write. False where that cannot be written."""
    try:
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with atomic_file(target) as temporary:
            temporary.write_bytes(built.read_bytes())
            temporary.chmod(0o700)
    except (OSError, LockedError):
        log.info("%s cannot be written: the next process compiles again", target)
        return False
    return True
