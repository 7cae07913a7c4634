"""The guard around programs, with harmless programs only; each limit is passed on purpose, by a little."""

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from trainer.rl.rewards.base import Question, RewardError, build_reward
from trainer.rl.rewards.code import sandbox
from trainer.rl.rewards.code.sandbox import Limits, Unavailable, run, unavailable

reason = unavailable()
needs_isolation = pytest.mark.skipif(reason is not None, reason=f"programs cannot be isolated here: {reason}")
QUICK = Limits(wall_s=20, cpu_s=10)


@needs_isolation
def test_a_program_sees_an_empty_directory_and_little_else(tmp_path):
    (tmp_path / "secret").write_text("x")
    program = f"""
import os, pathlib, sys
print(os.getcwd(), os.listdir("."), sorted(os.environ), os.getuid() != 0, len(sys.argv))
print(os.path.exists({str(tmp_path)!r}), os.path.exists("/proc/self"), os.path.exists("/etc/passwd"))
pathlib.Path("a.txt").write_text("12")
print(pathlib.Path("a.txt").read_text() + input())
import ctypes
print(ctypes.CDLL(None).unshare(0x10000000), ctypes.CDLL(None).umount2(b"/lib", 2))
for place in (os.__file__, "/dev/null/x", "/usr/lib/x", "/lib64/x"):
    try:
        open(place, "a").close()
    except OSError as error:
        print("refused")
"""
    ended = run(program, "34\n", QUICK)
    assert (ended.code, ended.reason, ended.errors) == (0, "", "")
    assert ended.output.splitlines() == [
        "/work [] ['HOME', 'LANG', 'TMPDIR'] True 1",
        "False False False",
        "1234",
        "-1 -1",
        *["refused"] * 4,
    ]


@needs_isolation
def test_there_is_no_network():
    program = """
import socket
for family, place in ((socket.AF_INET, ("127.0.0.1", 9)), (socket.AF_INET6, ("::1", 9))):
    try:
        socket.create_connection(place, 1) if family == socket.AF_INET else socket.socket(family).connect(place)
    except OSError as error:
        print(type(error).__name__, error.errno)
print(socket.if_nameindex())
"""
    ended = run(program, "", QUICK)
    assert ended.output.splitlines()[-1] == "[(1, 'lo')]"
    assert len(ended.output.splitlines()) == 3


LIMITS = [
    # what is passed, the program, the limits
    ("memory", "x = bytearray(200 << 20)\nprint('held')", {"memory_mb": 100}),
    ("processor", "while True: pass", {"cpu_s": 1}),
    ("file", "open('f', 'wb').write(bytes(3 << 20))\nprint('held')", {"file_mb": 2}),
    ("disk", "for n in range(9): open(str(n), 'wb').write(bytes(1 << 20))\nprint('held')", {"disk_mb": 4}),
    ("processes", "import os, time\nfor _ in range(6):\n    if os.fork() == 0: time.sleep(9)\nprint('held')",
     {"processes": 3}),
]  # fmt: skip


@needs_isolation
@pytest.mark.parametrize(("program", "limits"), [one[1:] for one in LIMITS], ids=[one[0] for one in LIMITS])
def test_a_limit_ends_the_program(program, limits):
    ended = run(program, "", replace(QUICK, **limits))
    assert ended.reason == ""
    assert ended.code != 0
    assert "held" not in ended.output


@needs_isolation
def test_a_program_that_does_not_end_is_ended_with_all_that_it_started():
    """A process that left its session, and one whose parent is gone, too."""
    mark = f"{time.time_ns()}"
    program = f"""
import os, sys, time
for _ in range(2):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.execv(sys.executable, [sys.executable, "-S", "-c", "import time; time.sleep(60)", "{mark}"])
        os._exit(0)
print("waits", flush=True)
time.sleep(60)
"""
    started = time.monotonic()
    ended = run(program, "", replace(QUICK, wall_s=2))
    assert time.monotonic() - started < 40
    assert (ended.code, ended.output) == (None, "waits\n")
    assert ended.reason
    assert not _left(mark)


@needs_isolation
def test_processes_that_outlive_the_program_are_ended():
    mark = f"{time.time_ns()}"
    program = f"""
import os, sys
if os.fork() == 0:
    os.setsid()
    for stream in range(3):
        os.close(stream)
    os.execv(sys.executable, [sys.executable, "-S", "-c", "import time; time.sleep(60)", "{mark}"])
print("done")
"""
    assert run(program, "", QUICK).output == "done\n"
    assert not _left(mark)


def _left(mark):
    """Return True if a command with `mark` is there. The kernel ends the processes of a namespace after its
    first one, and may take a moment."""
    end = time.monotonic() + 10
    while (there := any(mark in line for line in _commands())) and time.monotonic() < end:
        time.sleep(0.02)
    return there


def _commands():
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            yield path.read_text()
        except OSError:
            continue


@needs_isolation
def test_output_is_cut_and_ends_the_program():
    ended = run("while True: print('x' * 1000)", "", replace(QUICK, output_kb=4))
    assert (ended.code, len(ended.output)) == (None, 4096)
    assert ended.reason


@needs_isolation
@pytest.mark.parametrize(
    ("part", "instead", "named"),
    [
        ('"network": 0x40000000', '"network": 0x00000001', "network"),  # flags that the kernel refuses
        ('"users": 0x10000000', '"users": 0x00000001', "users"),
        ("{INSIDE} {number} 1", "{INSIDE} {number} 0", "map the user"),
        ("None, MS_BIND | MS_REC)", '"none", 0)', "mount"),
    ],
)
def test_a_machine_that_does_not_allow_a_part_refuses(monkeypatch, tmp_path, part, instead, named):
    guard = tmp_path / "guard.py"
    guard.write_text(sandbox.GUARD.read_text().replace(part, instead))
    assert part not in guard.read_text()
    monkeypatch.setattr(sandbox, "GUARD", guard)
    with pytest.raises(Unavailable) as caught:
        run("print('ran')", "", QUICK)
    assert named in str(caught.value)


def test_a_machine_without_namespaces_refuses_the_reward(monkeypatch):
    monkeypatch.setattr(sandbox.sys, "platform", "win32")
    unavailable.cache_clear()
    try:
        with pytest.raises(RewardError) as caught:
            build_reward("code")
    finally:
        monkeypatch.undo()
        unavailable.cache_clear()
    assert caught.value.where == "rl.reward.name"
    assert "win32" in caught.value.value


ADD = """Here:
```python
def add(a, b):
    return a + b
if __name__ == '__main__':
    print(add(*map(int, input().split())))
```
"""
CHEAT = "```python\nimport os, sys\nprint(5)\nsys.stdout.flush()\nos._exit(0)\n```"
ALL = [{"stdin": "2 3\n", "stdout": "5"}, {"call": "add", "arguments": [2, 3], "returns": 5}, "assert add(2, 3) == 5"]


def ask(*tests):
    return Question(7, "?", None, {"tests": [*tests]})


@needs_isolation
@pytest.mark.parametrize(
    ("answer", "tests", "value", "partial"),
    [
        (ADD, ALL, 1, 1),
        (ADD.replace("a + b", "a * b"), ALL, 0, 0),
        (ADD.replace("python", "py"), ALL[:1], 1, 1),
        (f"```python\n1/0\n```\n{ADD}", ALL[1:2], 1, 1),  # the last block counts
        (ADD.replace("\n", "\r\n"), ALL[1:2], 1, 1),
        (f"<think>{ADD}</think>It is easy.", ALL[:1], 0, 0),
        (CHEAT, ALL, 0, 1 / 3),  # it prints the one output that it guesses
        (ADD, [{"call": "sub", "arguments": [2, 3], "returns": -1}, ALL[1]], 0, 0.5),
        (ADD, [{"call": "add", "arguments": [0.1, 0.2], "returns": 0.3}], 1, 1),
        (ADD, [{"call": "add", "arguments": [[1], [2]], "returns": [1, 2]}], 1, 1),
        (ADD, [{"call": "add", "arguments": [True, False], "returns": True}], 0, 0),
    ],
)
def test_programs(answer, tests, value, partial):
    assert build_reward("code")(ask(*tests), answer).value == value
    assert build_reward({"name": "code", "partial": True})(ask(*tests), answer).value == pytest.approx(partial)


@needs_isolation
@pytest.mark.parametrize("tests", [[], "assert x", [{"stdin": "1"}], [{"call": "f", "returns": 1}], [3]])
def test_tests_that_cannot_be_run_are_named(tests):
    with pytest.raises(RewardError) as caught:
        build_reward("code")(Question(7, "?", None, {"tests": tests}), ADD)
    assert caught.value.where == "question 7, tests"


@needs_isolation
@pytest.mark.parametrize(("option", "value"), [("cpu_s", 0), ("memory_mb", -1), ("wall_s", "ten"), ("processes", True)])
def test_limits_are_numbers(option, value):
    with pytest.raises(RewardError) as caught:
        build_reward({"name": "code", option: value})
    assert caught.value.where == f"rl.reward.{option}"


def test_the_guard_needs_pythons_own_library_alone():
    ended = subprocess.run([sys.executable, "-I", "-S", "-c", f"import runpy; runpy.run_path({str(sandbox.GUARD)!r})"],
                           capture_output=True, text=True)  # fmt: skip
    assert (ended.returncode, ended.stderr) == (0, "")
