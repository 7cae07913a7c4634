"""Runs a Python program of a stranger: see `guard`. Linux with user namespaces; refused with the reason elsewhere."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

GUARD = Path(__file__).with_name("guard.py")
LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64")
PRINTED = ("output", "errors")
CHUNK = 1 << 16
SETUP_S = 30.0  # for the namespaces, before the program's own seconds


@dataclass(frozen=True)
class Limits:
    """wall_s, cpu_s: seconds of the whole, and of CPU of each process. memory_mb: MiB of address space of each process.
    processes: at one time. file_mb: of each file; disk_mb: of all, which are in memory. output_kb: of what is printed.
    packages: the installed packages of this environment may be imported, not only Python's own library."""

    wall_s: float = 10.0
    cpu_s: int = 5
    memory_mb: int = 512
    processes: int = 8
    file_mb: int = 8
    disk_mb: int = 32
    output_kb: int = 256
    packages: bool = False


@dataclass(frozen=True)
class Ended:
    """code: the exit code, negative for a signal; None where the guard ended the program, for `reason`: late, or too
    much output. output, errors: what it printed, as far as it was read."""

    code: int | None
    reason: str
    output: str
    errors: str


class Unavailable(Exception):
    """This machine cannot isolate a program; the text is the reason."""


@cache
def unavailable() -> str | None:
    """The reason for which this machine cannot run a stranger's program, or None."""
    if sys.platform != "linux":
        return f"{sys.platform} has no namespaces; Linux has"
    try:
        ended = run("print('ran')", "", Limits())
    except Unavailable as error:
        return str(error)
    return None if ended.output == "ran\n" else f"a program that prints a word ended with {ended.code}: {ended.errors}"


def run(code: str, given: str, limits: Limits) -> Ended:
    """Run a program; given: its standard input. Raises Unavailable before it was started where the machine does not
    allow a part of the isolation."""
    executable = os.path.realpath(sys.executable)
    read, write = os.pipe()
    bases = [f"{sys.base_prefix}/{name}" for name in ("lib", "lib64")]
    links = [path for path in LIBRARIES if not os.path.islink(path)]
    paths = dict.fromkeys([*links, *bases, executable, *([sys.prefix] if limits.packages else [])])
    shown = executable if not limits.packages else sys.executable
    read_only = [path for path in paths if not any(path.startswith(f"{other}/") for other in paths)]
    config: Mapping[str, Any] = {
        **asdict(limits), "code": code, "executable": shown, "read_only": read_only, "status": write
    }  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", str(GUARD), json.dumps(config)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, pass_fds=[write],
        start_new_session=True, env={}, cwd="/",
    )  # fmt: skip
    os.close(write)
    try:
        found, reason = _watch(process, read, given.encode("utf-8", "surrogatepass"), limits)
    finally:
        _end(process)
        os.close(read)
    status: dict[str, Any] = {}
    for line in found["status"].splitlines():
        status |= json.loads(line)
    output, errors = (found[name][: limits.output_kb << 10].decode("utf-8", "replace") for name in PRINTED)
    if "error" in status:
        raise Unavailable(status["error"])
    if "started" not in status or ("exit" not in status and not reason):
        raise Unavailable(reason or f"the guard ended with {process.returncode}: {errors.strip()[-200:]}")
    return Ended(None if reason else status["exit"], reason, output, errors)


def _watch(
    process: subprocess.Popen[bytes], status: int, given: bytes, limits: Limits
) -> tuple[dict[str, bytearray], str]:
    """The bytes of output, errors and status, and the reason to end the program, empty where it ended by itself."""
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    names = {process.stdout.fileno(): "output", process.stderr.fileno(): "errors", status: "status"}
    found = {name: bytearray() for name in names.values()}
    end, started = time.monotonic() + SETUP_S, False
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdin, selectors.EVENT_WRITE)
        os.set_blocking(process.stdin.fileno(), False)
        for number in names:
            selector.register(number, selectors.EVENT_READ)
        while not names.keys().isdisjoint(selector.get_map()):
            left = end - time.monotonic()
            if left <= 0:
                return found, f"not done in {limits.wall_s:g} s" if started else f"not started in {SETUP_S:g} s"
            for key, _ in selector.select(left):
                if key.fileobj is process.stdin:
                    given = _write(process, given)
                    if not given:
                        selector.unregister(process.stdin)
                        process.stdin.close()
                    continue
                part = os.read(key.fd, CHUNK)
                found[names[key.fd]] += part
                if not part:
                    selector.unregister(key.fd)
            if not started and b"started" in found["status"]:
                end, started = time.monotonic() + limits.wall_s, True
            if sum(len(found[name]) for name in PRINTED) > limits.output_kb << 10:
                return found, f"more than {limits.output_kb} KiB of output"
    return found, ""


def _write(process: subprocess.Popen[bytes], given: bytes) -> bytes:
    """Write what fits; returns the rest, nothing where the program does not read."""
    assert process.stdin is not None
    try:
        return given[os.write(process.stdin.fileno(), given[:CHUNK]) :] if given else b""
    except BlockingIOError:
        return given
    except BrokenPipeError:
        return b""


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the guard and its init process, with which all that the program started ends."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            with suppress(OSError):
                stream.close()
