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
    if o.name == "adamw" and max(o.betas, default=0) > MAX_BETA_OF_BF16:
        text = (
            f"optim.betas=[{','.join(f'{beta:g}' for beta in o.betas)}] with precision.moments=bf16 would freeze "
            f"moments: a step adds {1 - max(o.betas):.1e} of a difference, which bf16 rounds away"
        )
        advice = f"use betas of {MAX_BETA_OF_BF16} or less, or precision.moments=fp32"
        faults.append(Fault(f"{text}; {advice}", "optim.betas", o.betas, f"{MAX_BETA_OF_BF16} or less"))
    if o.name != "adamw":
        text = f"precision.moments=bf16 works only with optim.name=adamw, not with {o.name}; use fp32, or adamw"
        faults.append(Fault(text, "precision.moments", "bf16", ("fp32",)))
    if o.engine == "deepspeed":
        text = "precision.moments=bf16 is not available with optim.engine=deepspeed; use fp32, or optim.engine=native"
        faults.append(Fault(text, "precision.moments", "bf16", ("fp32",)))
    return faults
