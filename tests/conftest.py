"""Set-up of every test: one thread per process, no network, a temporary folder of its own, nothing left behind.

TMPDIR is a folder of the run, for the tests and for all processes that they start. When the tests have ended, the run
fails if that folder holds anything but pytest's own files, or if a process is still running.
"""

import contextlib
import copy
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any

# Before torch is imported, and for the processes that tests start: the machine's few cores are shared by them all.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# torch.compile's cache outlives a run, but is not a thing for the system's temporary folder
os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Path(__file__).resolve().parents[1] / ".cache" / "torchinductor"))

import pytest

CHECKOUT = Path(__file__).resolve().parent.parent
OWN_FOLDER = "OCTAVO_TESTS_FOLDER"  # in the environment of every process that a run starts
ENDING_S = 20.0  # for processes that end by themselves once the workers of the tests have


def pytest_configure(config: pytest.Config) -> None:
    if OWN_FOLDER in os.environ:  # a worker of pytest-xdist, or pytest inside a test
        return
    folder = tempfile.mkdtemp(prefix="octavo-tests-")
    os.environ[OWN_FOLDER] = os.environ["TMPDIR"] = tempfile.tempdir = folder
    config.stash[_FOLDER] = Path(folder)
    # after multiprocessing has removed its own folder inside, which it does at priority -100
    Finalize(None, shutil.rmtree, args=(folder,), kwargs={"ignore_errors": True}, exitpriority=-200)


_FOLDER = pytest.StashKey[Path]()


@pytest.hookimpl(trylast=True)  # after pytest-xdist has ended its workers
def pytest_sessionfinish(session: pytest.Session) -> None:
    folder = session.config.stash.get(_FOLDER, None)
    if folder is None:
        return
    if "tests.distributed.pool" in sys.modules:  # without pytest-xdist the ranks are ours
        sys.modules["tests.distributed.pool"].stop()
    left = [f"process {pid}: {command}" for pid, command in _processes_left(folder)]
    left += [f"file {path.name}" for path in sorted(folder.iterdir()) if not _is_pytests_own(path)]
    if left:
        print("\nerror: tests left behind\n  " + "\n  ".join(left), file=sys.stderr)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def _is_pytests_own(path: Path) -> bool:
    # pymp-: sockets of multiprocessing's fork server, which ends with the process that started it
    # wandb-: Megatron-core imports wandb, whose temporary directories last until this process ends
    # torchinductor_: torch's precompiled headers, which TORCHINDUCTOR_CACHE_DIR does not move
    ours = "wandb" in sys.modules and path.name.endswith(("wandb-media", "wandb-artifacts"))
    return ours or path.name.startswith(("pytest-of-", "pymp-", "torchinductor_"))


def _processes_left(folder: Path) -> list[tuple[int, str]]:
    """Processes of this run that do not end; each is killed. Empty on systems without /proc."""
    deadline = time.monotonic() + ENDING_S
    while (left := list(_processes_of(folder))) and time.monotonic() < deadline:
        time.sleep(0.1)
    for pid, _ in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return left


def _processes_of(folder: Path) -> Iterator[tuple[int, str]]:
    mark = f"{OWN_FOLDER}={folder}".encode()
    for status in Path("/proc").glob("[0-9]*/environ"):
        pid = int(status.parent.name)
        try:
            if mark not in status.read_bytes().split(b"\0"):
                continue
            command = (status.parent / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            state = (status.parent / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        helper = "multiprocessing." in command and int(state[1]) == os.getpid()  # ends with this process
        if state[0] != "Z" and not helper:
            yield pid, command[:200]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    gpu_tests = [item for item in items if item.get_closest_marker("gpu")]
    if not gpu_tests:
        return
    import torch

    if not torch.cuda.is_available():
        for item in gpu_tests:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True, scope="session")
def _hydra_composes_a_choice_of_our_recipes_once() -> Iterator[None]:
    """Three quarters of a call of `compose` are Hydra's, and it makes the same of the same words throughout a run.

    Directories of a user's recipes, which tests write and change, are read every time.
    """
    import hydra

    genuine, composed = hydra.compose, {}

    def compose(name: str, overrides: list[str]) -> Any:
        if any(word.startswith("hydra.") for word in overrides):
            return genuine(name, overrides=overrides)
        key = (name, *overrides)
        if key not in composed:
            composed[key] = genuine(name, overrides=overrides)
        return copy.deepcopy(composed[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hydra, "compose", compose)
        yield


@pytest.fixture(scope="session")
def reference() -> Path:
    """Directory of reference data next to the checkout: tiny published models, their inputs, outputs and gradients."""
    path = CHECKOUT.parent / "shared" / "reference"
    if not path.is_dir():
        pytest.skip(f"no reference data at {path}")
    return path
