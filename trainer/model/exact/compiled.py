"""Matrix products in fp32 on a CPU, compiled from `products.c` when they are first needed.

Every sum is taken in the order of the inner index, so that a row's bits depend on nothing but the row and the matrix:
neither on the rows beside it, nor on the number of threads, nor on how the matrix is stored. Few rows take the time of
reading the matrix, which torch's products of few rows take twice.

Without a C compiler products are torch's, by blocks of a fixed number of rows.

Legend: T rows · M inner dimension · N columns · E experts · K experts per token · R rows of all experts.
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
from typing import NamedTuple

import torch
from torch import Tensor

from trainer.storage.atomic import atomic_file
from trainer.storage.lock import LockedError

SOURCE = Path(__file__).with_name("products.c")
FLAGS = ["-O3", "-march=native", "-std=gnu11", "-ffp-contract=fast", "-shared", "-fPIC"]
POINTER, NUMBER = ctypes.c_void_p, ctypes.c_int64

log = logging.getLogger(__name__)


@cache
def library() -> ctypes.CDLL | None:
    """The compiled products, from the user's cache where this processor's are there. None without a C compiler."""
    compiler = os.environ.get("CC", "cc")
    key = hashlib.sha256(f"{compiler}\n{FLAGS}\n{_processor()}\n".encode() + SOURCE.read_bytes()).hexdigest()[:16]
    cached = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "octavo" / f"products-{key}.so"
    try:
        found = _load(cached) or _compile(compiler, cached)
    except OSError as error:
        remedy = "install one, such as gcc, for faster generation"
        log.warning("exact products are torch's, as the C compiler %s failed (%s): %s", compiler, error, remedy)
        return None
    found.octavo_rows.argtypes = [POINTER, NUMBER, POINTER, *[NUMBER] * 2, POINTER, *[NUMBER] * 3]
    found.octavo_experts.argtypes = [
        *(POINTER, NUMBER, POINTER, POINTER, *[NUMBER] * 3, POINTER, POINTER, *[NUMBER] * 3)
    ]
    found.octavo_order.argtypes = [POINTER, *[NUMBER] * 2, *[POINTER] * 3]
    found.octavo_order.restype = None
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
        built = Path(scratch) / "products.so"
        # OpenMP shares torch's threads. Compilers without it make products of one thread.
        for extra in (["-fopenmp"], []):
            command = [*shlex.split(compiler), *FLAGS, *extra, str(SOURCE), "-o", str(built)]
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


def compiles(x: Tensor) -> bool:
    """True where products of `x` are compiled ones."""
    return x.dtype is torch.float32 and x.device.type == "cpu" and type(x) is Tensor and library() is not None


@torch.compiler.disable
def product(x: Tensor, matrix: Tensor) -> Tensor:
    """x [T, M] @ matrix [M, N] -> [T, N], both fp32 on the CPU; outside autograd. The matrix may have any strides, and
    one whose columns are adjacent is not copied."""
    x = x if x.stride(1) == 1 else x.contiguous()
    (rows, inner), columns = x.shape, matrix.shape[1]
    y = x.new_empty(rows, columns)
    strides = x.stride(0), matrix.data_ptr(), *matrix.stride()
    _check(_library().octavo_rows(x.data_ptr(), *strides, y.data_ptr(), rows, inner, columns))
    return y


@torch.compiler.disable
def expert_products(x: Tensor, matrices: Tensor, ends: Tensor, index: Tensor | None = None) -> Tensor:
    """Each expert's rows times its matrix, all fp32 on the CPU; outside autograd.

    Args: x: [R, M], or with `index` [R] int64 any rows: index[r] is the one at place r. matrices: [E, M, N].
        ends: [E] int32, the end of each expert's rows.
    Returns: [R, N]; rows behind ends[-1] hold what the memory held.
    """
    x = x if x.stride(1) == 1 else x.contiguous()
    experts, inner, columns = matrices.shape
    y = x.new_empty(len(x) if index is None else len(index), columns)
    chosen = None if index is None else index.data_ptr()
    given = x.data_ptr(), x.stride(0), chosen, matrices.data_ptr(), *matrices.stride()
    _check(_library().octavo_experts(*given, y.data_ptr(), ends.data_ptr(), experts, inner, columns))
    return y


class Order(NamedTuple):
    """Rows of tokens sorted by expert. slot_of_row: [R]. row_of_slot: [T, K]. ends: [E] int32."""

    slot_of_row: Tensor
    row_of_slot: Tensor
    ends: Tensor

    @staticmethod
    def of(ids: Tensor, experts: int) -> Order:
        """ids: [T, K] int64 on the CPU, of `experts`."""
        ids = ids.contiguous()
        rows, slots, ends = ids.new_empty(ids.numel()), torch.empty_like(ids), ids.new_empty(experts, dtype=torch.int32)
        pointers = rows.data_ptr(), slots.data_ptr(), ends.data_ptr()
        _library().octavo_order(ids.data_ptr(), ids.numel(), experts, *pointers)
        return Order(rows, slots, ends)


def _library() -> ctypes.CDLL:
    found = library()
    assert found is not None
    return found


def _check(failed: int) -> None:
    if failed:
        raise MemoryError("no memory for a panel of a matrix")
