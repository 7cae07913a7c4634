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
    compiler = os.environ.get("CC", "cc")
    sources = b"".join(path.read_bytes() for path in (*SOURCES, HEADER))
    key = hashlib.sha256(f"{compiler}\n{FLAGS}\n{_processor()}\n".encode() + sources).hexdigest()[:16]
    cached = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "octavo" / f"exact-{key}.so"
    try:
        found = _load(cached) or _compile(compiler, cached)
    except OSError as error:
        remedy = "install one, such as gcc, for faster generation"
        log.warning("exact arithmetic is torch's, as the C compiler %s failed (%s): %s", compiler, error, remedy)
        return None
    for name, arguments in ARGUMENTS.items():
        function = getattr(found, name)
        function.argtypes = [NUMBER if one == "n" else POINTER for one in arguments]
    return found


def _load(path: Path) -> ctypes.CDLL | None:
    """The library at `path`; None where there is none that can be loaded."""
    try:
        return ctypes.CDLL(str(path))
    except OSError:
        return None


def _processor() -> str:
    """The model and the instructions of this processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    kept = [line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))]
    return "\n".join([platform.machine(), platform.processor(), *sorted(set(kept))])


def _compile(compiler: str, target: Path) -> ctypes.CDLL:
    """Compile, keep the result at `target` where that can be written, and load it. Raises OSError."""
    with tempfile.TemporaryDirectory() as scratch:
        built = Path(scratch) / "exact.so"
        # OpenMP shares torch's threads. Compilers without it make functions of one thread.
        for extra in (["-fopenmp"], []):
            command = [*shlex.split(compiler), *FLAGS, *extra, *map(str, SOURCES), "-o", str(built), "-lm"]
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
            if done.returncode == 0:
                break
        else:
            raise OSError((done.stderr.strip() or f"exit code {done.returncode}").splitlines()[0])
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(target, durable=False) as temporary:
                temporary.write_bytes(built.read_bytes())
        except (OSError, LockedError):
            log.info("%s cannot be written: the next process compiles again", target)
        return ctypes.CDLL(str(built))
