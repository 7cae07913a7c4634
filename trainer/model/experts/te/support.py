"""The machines on which Transformer Engine runs an FP8 recipe, and which of its two grouped GEMMs it uses there.

The native one takes the rows of each expert as a tensor on the device. The other is a list of GEMMs over several
streams, for which the host has to know the rows: it waits for the device once a layer. Transformer Engine falls back to
the list without a warning, so the choice is made here first.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from trainer.config.checks.precision import TRANSFORMER_ENGINE
from trainer.model.experts.te import private

INSTALL = "pip install --no-build-isolation -e '.[gpu]'"
OLDEST = (2, 15)  # of Transformer Engine: 2.14 ignores overwrite_main_grad; native grouped GEMMs exist since 2.19
NATIVE_ROWS = 128  # an expert's rows must be a multiple of it on the native path, whatever get_align_size returns
NATIVE_EXPERTS = 64  # the most that its kernels take (kMaxGroups in cublaslt_grouped_gemm.cu)


@dataclass(frozen=True)
class Recipe:
    """A recipe of Transformer Engine.

    name: its class. gpu, capability: the oldest GPUs that run it. cuda: the oldest CUDA. native: the oldest cuBLASLt
    with a native grouped GEMM for it, by architecture.
    """

    name: str
    gpu: str
    capability: tuple[int, int]
    cuda: tuple[int, int]
    native: dict[str, int]


RECIPES = {
    "fp8_block": Recipe("Float8BlockScaling", "Hopper", (9, 0), (12, 9), {"Hopper": 130600}),
    "fp8_current": Recipe("Float8CurrentScaling", "Ada", (8, 9), (12, 1), {"Hopper": 130500, "Blackwell": 130300}),
    "fp8_delayed": Recipe("DelayedScaling", "Ada", (8, 9), (12, 1), {}),
    "mxfp8": Recipe("MXFP8BlockScaling", "Blackwell", (10, 0), (12, 8), {"Blackwell": 130300}),
}


def unavailable(recipe: str, device: torch.device) -> str | None:
    """The reason why `recipe` (a key of RECIPES) cannot run on `device`, with a remedy; None where it can.

    Imports Transformer Engine only if nothing else prevents its use.
    """
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
    found = (recipe, capability, torch.version.cuda, private.installed())
    if reason := unavailable_with(*found):
        return reason
    try:
        import transformer_engine.pytorch  # noqa: F401
    except Exception as error:  # a library that is missing, or was built for another torch, fails in many ways
        return unavailable_with(*found, error=(str(error) or repr(error)).splitlines()[0])
    return None


def unavailable_with(
    recipe: str, capability: tuple[int, int] | None, cuda: str | None, installed: str | None, error: str | None = None
) -> str | None:
    """The reason why `recipe` cannot run with these versions, with a remedy; None where it can.

    capability: of the GPU, None on a CPU. cuda: the CUDA that torch was built for. installed: the version of
    Transformer Engine. error: the message of a failed import.
    """
    needs = RECIPES[recipe]
    reasons = []
    oldest = f"{needs.gpu}, compute capability {_dotted(needs.capability)}, or newer"
    if capability is None:
        reasons.append(f"it needs an NVIDIA GPU ({oldest}), and this run is on a CPU")
    elif capability < needs.capability:
        reasons.append(f"it needs a newer GPU ({oldest}); this one has compute capability {_dotted(capability)}")
    elif recipe == "mxfp8" and capability >= (12, 0):
        # cuBLAS has them there only with the first operand transposed, as forward passes need it. That is enough for
        # fp8_block, which stores its operands so that each of its GEMMs has this form (te_general_grouped_gemm).
        reasons.append(
            f"for compute capability {_dotted(capability)} Transformer Engine has no MXFP8 GEMMs of backward passes "
            "yet; use fp8_block, or another GPU"
        )
    elif numbers(cuda or "0.0") < needs.cuda:
        reasons.append(f"it needs torch built for CUDA {_dotted(needs.cuda)} or newer; this one is built for {cuda}")
    if installed is None:
        also = "also " if reasons else ""
        reasons.append(f"Transformer Engine is {also}not installed ({INSTALL})")
    elif numbers(installed) < OLDEST:
        reasons.append(f"Transformer Engine {installed} is older than {_dotted(OLDEST)} ({INSTALL})")
    elif error is not None:
        reasons.append(f"Transformer Engine {installed} does not load: {error} ({INSTALL} builds it for this torch)")
    return "; ".join(reasons) or None


def why_list_path(recipe: str, capability: tuple[int, int], cublaslt: int, installed: str, experts: int) -> str | None:
    """The reason why `experts` experts of a rank do not get the native grouped GEMM; None where they do.

    cublaslt: as the library numbers itself, 130600 for 13.6.
    """
    if numbers(installed) < (2, 19):
        return f"Transformer Engine {installed} < 2.19"
    if experts > NATIVE_EXPERTS:
        return f"{experts} experts a rank > {NATIVE_EXPERTS}"
    architecture = "Hopper" if capability == (9, 0) else "Blackwell" if (10, 0) <= capability <= (11, 0) else None
    oldest = RECIPES[recipe].native.get(architecture or "")
    if oldest is None:
        where = architecture or f"compute capability {_dotted(capability)}"
        return f"{RECIPES[recipe].name} has no native grouped GEMM on {where}"
    if cublaslt < oldest:
        return f"cuBLASLt {_dotted(_cublaslt(cublaslt))} < {_dotted(_cublaslt(oldest))}"
    return None


def multiple_of_rows(recipe: str, *, native: bool) -> int:
    """Each expert's rows are padded to a multiple of this number."""
    return NATIVE_ROWS if native else TRANSFORMER_ENGINE[recipe]


def numbers(version: str) -> tuple[int, ...]:
    """The first two numbers of a version: "2.20.2+local" -> (2, 20)."""
    return tuple(int(part) for part in version.split("+")[0].split(".")[:2])


def _cublaslt(number: int) -> tuple[int, int]:
    return number // 10000, number // 100 % 100


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"
