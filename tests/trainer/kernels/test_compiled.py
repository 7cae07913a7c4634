"""Every Triton kernel compiles for GPUs that are not here, at the 1T model's sizes, without spilling registers."""

from __future__ import annotations

import importlib.util
import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="needs triton, which has wheels for Linux alone"
)

BF16, FP32, IDS = torch.bfloat16, torch.float32, torch.int64
OTHERS = ((90, (FP32,)), (100, (BF16,)))
TOKENS, K, ROWS, HIDDEN, WIDTH, EXPERTS, GROUPS = 4096, 8, 40960, 4096, 1536, 512, 8


def shaped(*shape: int, dtype: torch.dtype = BF16) -> Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


def launch_all(dtypes: tuple[torch.dtype, ...]) -> None:
    from trainer.kernels import triton_order, triton_payload, triton_router, triton_rows, triton_swiglu

    for dtype in dtypes:
        hidden, weight = shaped(ROWS, 2 * WIDTH, dtype=dtype), shaped(ROWS, dtype=FP32)
        triton_swiglu.forward(hidden, weight)
        for again in (False, True):
            triton_swiglu.backward(hidden, weight, shaped(ROWS, WIDTH, dtype=dtype), again)
        triton_rows.gather(shaped(TOKENS, HIDDEN, dtype=dtype), shaped(ROWS, dtype=IDS))
        triton_rows.sum_slots(shaped(ROWS, HIDDEN, dtype=dtype), shaped(TOKENS, K, dtype=IDS))
        triton_payload.unpack(triton_payload.pack(shaped(TOKENS, HIDDEN, dtype=dtype)), HIDDEN, dtype)
    triton_rows.spread(shaped(TOKENS, K, dtype=FP32), shaped(ROWS, dtype=IDS))
    for experts in (EXPERTS // GROUPS, EXPERTS):
        triton_order.build(shaped(TOKENS, K, dtype=IDS), experts, ROWS, 128)
    logits = shaped(TOKENS, EXPERTS, dtype=FP32)
    for groups in (GROUPS, 1):
        ids, weights = triton_router.forward(logits, groups, K)
    triton_router.backward(logits, ids, weights, 1.0)


@dataclass
class Compiled:
    kernel: str
    registers: int
    spilled: int  # bytes of stack and local memory
    wide_accesses: int  # of 16 bytes
    ptx: str


def compiling(capability: int, directory: Path, found: list[Compiled]) -> Callable[..., None]:
    """Stands in for a launch: compiles what would have been launched."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = {BF16: "bf16", FP32: "fp32", IDS: "i64", torch.int32: "i32", torch.uint8: "u8"}
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"

    def run(kernel: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        given = dict(zip(kernel.arg_names, args, strict=False))
        given |= {name: options.pop(name) for name in kernel.arg_names if name in options}
        signature, constants, attributes = {}, {}, {}
        for place, parameter in enumerate(kernel.params):
            value = given[parameter.name]
            if parameter.is_constexpr:
                signature[parameter.name], constants[parameter.name] = "constexpr", value
                continue
            is_tensor = isinstance(value, Tensor)
            signature[parameter.name] = (
                "*" + names[value.dtype] if is_tensor else {int: "i32", float: "fp32"}[type(value)]
            )
            if is_tensor or (isinstance(value, int) and value % 16 == 0):
                attributes[(place,)] = [["tt.divisibility", 16]]
        source = ASTSource(kernel, signature, constants, attributes)
        compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
        cubin = directory / "kernel.cubin"
        cubin.write_bytes(compiled.asm["cubin"])
        usage = subprocess.check_output([tools / "cuobjdump", "--dump-resource-usage", cubin], text=True)
        registers, stack, local = (int(re.search(rf"\b{name}:(\d+)", usage)[1]) for name in ("REG", "STACK", "LOCAL"))
        ptx = compiled.asm["ptx"]
        wide = len(re.findall(r"\b(?:ld|st)\.global\S*\.v4\.b32", ptx))
        found.append(Compiled(f"{kernel.__module__}.{kernel.__name__}", registers, stack + local, wide, ptx))

    return run


@pytest.mark.parametrize(
    ("capability", "dtypes"),
    [(90, (BF16,)), *(pytest.param(number, dtypes, marks=pytest.mark.slow) for number, dtypes in OTHERS)],
)
def test_kernels_compile_without_spills(capability, dtypes, tmp_path, monkeypatch):
    from triton.runtime.jit import JITFunction

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    found: list[Compiled] = []
    monkeypatch.setattr(JITFunction, "run", compiling(capability, tmp_path, found))
    launch_all(dtypes)
    for kernel in found:
        print(f"sm_{capability} {kernel.kernel}: {kernel.registers} registers, {kernel.wide_accesses} wide accesses")
        assert kernel.spilled == 0, kernel.kernel
        # torch's division and products keep subnormal numbers.
        assert ".ftz" not in kernel.ptx, kernel.kernel
    # A quotient that is off by its last bit would give a tile twice the scale.
    assert not any("div.full" in kernel.ptx for kernel in found if "pack_kernel" in kernel.kernel)
    streaming = ("swiglu", "gather_kernel", "sum_kernel", "pack_kernel")
    assert all(kernel.wide_accesses for kernel in found if any(name in kernel.kernel for name in streaming))
    assert len({kernel.kernel for kernel in found}) == 12
