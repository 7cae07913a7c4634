"""What Transformer Engine can do where: which FP8 recipe needs which GPU, and which of its two grouped GEMMs it gets.

The native one takes the rows of each expert as a tensor on the device. The other is a list of GEMMs over several
streams, for which the host has to know the rows: it waits for the device once a layer. Transformer Engine falls back to
the list without a word, so the choice is made here, before it is asked.

Plain Python over version numbers: nothing here imports Transformer Engine or looks at a device.
"""

from __future__ import annotations

from dataclasses import dataclass

from trainer.config.checks.precision import TRANSFORMER_ENGINE

INSTALL = "pip install --no-build-isolation -e '.[gpu]'"
OLDEST = (2, 15)  # of Transformer Engine: 2.14 overlooks overwrite_main_grad; native grouped GEMMs since 2.19
NATIVE_ROWS = 128  # what an expert's rows have to be a multiple of on the native path, whatever get_align_size says
NATIVE_EXPERTS = 64  # as many pointers as its kernels take (kMaxGroups in cublaslt_grouped_gemm.cu)


@dataclass(frozen=True)
class Recipe:
    """A recipe of Transformer Engine.

    name: its class. gpu: the oldest GPUs that it runs on. capability: theirs. cuda: the oldest CUDA. native: the
    oldest cuBLASLt with a native grouped GEMM for it, by architecture.
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


def numbers(version: str) -> tuple[int, ...]:
    """ "2.20.2+local" -> (2, 20)."""
    return tuple(int(part) for part in version.split("+")[0].split(".")[:2])


def problem(
    recipe: str, capability: tuple[int, int] | None, cuda: str | None, installed: str | None, error: str | None = None
) -> str | None:
    """Why `recipe` cannot run, in one clause that says what would change that; None where it can.

    capability: of the GPU, None on a CPU. cuda: the CUDA that torch was built for. installed: the version of
    Transformer Engine. error: what it said when it was loaded.
    """
    needs = RECIPES[recipe]
    reasons = []
    oldest = f"{needs.gpu} (compute capability {_dotted(needs.capability)})"
    if capability is None:
        reasons.append(f"it needs an NVIDIA GPU, {oldest} or newer, and this is a CPU")
    elif capability < needs.capability:
        reasons.append(f"it needs {oldest} or newer, and this GPU has {_dotted(capability)}")
    elif recipe == "mxfp8" and capability >= (12, 0):
        # cuBLAS has them there with the first operand alone transposed, as forward passes want it. That is enough for
        # fp8_block, which stores its operands so that each of its GEMMs is of this kind (te_general_grouped_gemm).
        reasons.append(
            f"for compute capability {_dotted(capability)} Transformer Engine has no MXFP8 GEMMs of backward passes "
            "yet; use fp8_block, or another GPU"
        )
    elif numbers(cuda or "0.0") < needs.cuda:
        reasons.append(f"it needs a torch for CUDA {_dotted(needs.cuda)} or newer, and this one has {cuda}")
    if installed is None:
        reasons.append(f"Transformer Engine is not installed ({INSTALL})")
    elif numbers(installed) < OLDEST:
        reasons.append(f"Transformer Engine {installed} is older than {_dotted(OLDEST)} ({INSTALL})")
    elif error is not None:
        reasons.append(f"Transformer Engine {installed} does not load: {error} ({INSTALL} builds it for this torch)")
    return "; ".join(reasons) or None


def why_list_path(recipe: str, capability: tuple[int, int], cublaslt: int, installed: str, experts: int) -> str | None:
    """What keeps `experts` experts of a rank from the native grouped GEMM; None where they get it.

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
    """What each expert's rows are padded to a multiple of."""
    return NATIVE_ROWS if native else TRANSFORMER_ENGINE[recipe]


def _cublaslt(number: int) -> tuple[int, int]:
    return number // 10000, number // 100 % 100


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"
