"""Dtypes that do not work together."""

from __future__ import annotations

from parallel.errors import Fault
from trainer.config.keys import OptimConfig, PrecisionConfig

# A bf16 moment no longer moves when a step would change it by less than half a unit in the last place, up to 1/256 of
# it. With this beta it then is within 8 % of the average that it tracks, with 0.99 within 40 %.
MAX_BETA_OF_BF16 = 0.95
# FP8 recipe of Transformer Engine -> the sides of an expert's weights must be multiples of this for its GEMMs.
TRANSFORMER_ENGINE = {"fp8_block": 16, "fp8_current": 16, "fp8_delayed": 16, "mxfp8": 32}
FP8_MULTIPLES = TRANSFORMER_ENGINE | {"fp8_reference": 4}  # in fp32 arithmetic by torch's grouped GEMM
WHOLE_BLOCKS = 128  # of a base in FP8, whose stored blocks Transformer Engine reads: their rows and columns


def check(p: PrecisionConfig, o: OptimConfig) -> list[Fault]:
    """Faults of the section `precision`."""
    faults = []
    if {p.experts, p.linears} == {"fp32", "bf16"}:
        text = (
            f"precision.experts={p.experts} differs from precision.linears={p.linears}, the dtype of the activations "
            "that the experts receive; use precision=fp32 or precision=bf16"
        )
        faults.append(Fault(text, "precision.experts", p.experts, (p.linears,)))
    if p.payload == "fp32" and p.linears == "bf16":
        text = "precision.payload=fp32 is wider than precision.linears=bf16; use precision.payload=bf16 or fp8"
        faults.append(Fault(text, "precision.payload", "fp32", ("bf16", "fp8")))
    return faults + (_bf16_moments(o) if p.moments == "bf16" else [])


def _bf16_moments(o: OptimConfig) -> list[Fault]:
    faults = []
    averages = {"optim.betas": o.betas} if o.name in ("adamw", "muon") else {}
    averages |= {"optim.momentum": [o.momentum]} if o.name == "muon" else {}
    for key, betas in averages.items():
        if max(betas, default=0) <= MAX_BETA_OF_BF16:
            continue
        shown, value = ",".join(f"{beta:g}" for beta in betas), betas if key == "optim.betas" else o.momentum
        text = (
            f"{key}={f'[{shown}]' if key == 'optim.betas' else shown} with precision.moments=bf16 would freeze "
            f"moments: a step adds {1 - max(betas):.1e} of a difference, which bf16 rounds away"
        )
        advice = f"use {MAX_BETA_OF_BF16} or less, or precision.moments=fp32"
        faults.append(Fault(f"{text}; {advice}", key, value, f"{MAX_BETA_OF_BF16} or less"))
    if o.name == "sgd":
        text = "precision.moments=bf16 is not available with optim.name=sgd; use fp32, or adamw or muon"
        faults.append(Fault(text, "precision.moments", "bf16", ("fp32",)))
    if o.engine == "deepspeed":
        text = "precision.moments=bf16 is not available with optim.engine=deepspeed; use fp32, or optim.engine=native"
        faults.append(Fault(text, "precision.moments", "bf16", ("fp32",)))
    return faults
