"""The bench's sections: which arms each has at one size, how they are compared, and what comes of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor

from tests.bench.gpu import experts, gemms, peer_te
from tests.bench.gpu.clock import Arm, Clock, Skipped, distance, tried
from tests.bench.gpu.layer import DOCUMENT, Layers
from tests.bench.gpu.routing import Size, Skew
from tests.bench.gpu.table import GEMM_BF16, GEMM_FP8, LARGE, LAYER_BF16, Row
from trainer.model.experts.loop import loop

PRECISIONS = ("bf16", "fp8_block", "fp8_current", "fp8_delayed", "mxfp8")
Builders = Mapping[str, Callable[[], Arm | Skipped]]


def gemm_arms(size: Size) -> Builders:
    given = gemms.Operands(size.part, size.ids(), size.dtype)
    return {
        "torch grouped_mm": partial(gemms.grouped_mm, given),
        "loop of matmuls": partial(gemms.loop, given),
        "bmm of equal parts (ceiling)": lambda: gemms.equal_split(given)._replace(results=None),
        "torch _scaled_grouped_mm fp8, quantised beforehand": partial(gemms.scaled, given),
        **{variant.name: partial(peer_te.gemms, variant, given) for variant in peer_te.VARIANTS},
    }


def expert_arms(size: Size) -> Builders:
    ids = size.ids()
    given = experts.Inputs(gemms.Operands(size.part, ids, size.dtype), ids)
    quantised = PRECISIONS[1:]
    return {
        "ours bf16": partial(experts.ours, "bf16", False, given, size.ops),
        **{f"ours {name}, weights held": partial(experts.ours, name, True, given, size.ops) for name in quantised},
        **{f"ours {name}": partial(experts.ours, name, False, given, size.ops) for name in quantised},
        "our loop": partial(experts.backend, loop, given),
        "torch grouped_mm and autograd": partial(experts.plain, given),
        **{variant.name: partial(experts.transformer_engine, variant, given) for variant in peer_te.VARIANTS},
    }


def moe_arms(size: Size) -> Builders:
    layers, with_masters = Layers(size), Layers(size, masters=True)
    return {
        **{f"ours {name}": partial(layers.moe_arm, name) for name in PRECISIONS},
        **{f"ours {name}, fp32 masters": partial(with_masters.moe_arm, name) for name in PRECISIONS},
    }


def decoder_arms(size: Size) -> Builders:
    layers = Layers(size)
    return {f"ours {name}": partial(layers.block_arm, name) for name in PRECISIONS}


@dataclass(frozen=True)
class Section:
    """arms: what a size has. targets: TFLOP/s by the arms' precision, at LARGE sizes."""

    title: str
    arms: Callable[[Size], Builders]
    flops: Callable[[Size], int] = lambda size: size.part.expert_flops(size.tokens)
    skews: tuple[Skew, ...] = ("uniform", "zipf")
    bf16_target: float | None = None
    fp8_target: float | None = None

    def target(self, arm: str, tokens: int) -> float | None:
        if tokens < LARGE:
            return None
        return self.fp8_target if "fp8" in arm else self.bf16_target


SECTIONS = {
    "gemms": Section(
        "The experts' six matrix products alone, rows sorted",
        gemm_arms, bf16_target=GEMM_BF16, fp8_target=GEMM_FP8,
    ),
    "experts": Section(
        "The experts: gather, two grouped GEMMs, gated activation, sum",
        expert_arms, bf16_target=LAYER_BF16,
    ),
    "moe": Section(
        "The whole mixture-of-experts layer, router included; quantised weights held",
        moe_arms, bf16_target=LAYER_BF16,
    ),
    "decoder": Section(
        "A whole decoder layer of the 1T model; quantised weights held",
        decoder_arms, flops=lambda size: size.part.decoder_layer_flops(size.tokens, min(DOCUMENT, size.tokens)),
        skews=("uniform",),  # attention decides what its router sees: about even
    ),
}  # fmt: skip


def second_time(arm: Arm) -> dict[str, Tensor]:
    """Its results as they are when it is timed: with caches that are full."""
    assert arm.results is not None
    arm.both()
    return arm.results()


def measure(name: str, size: Size, rounds: int, clock: Clock) -> Iterator[Row]:
    """A row for each arm. One that fails or computes something else is a row that says so, and has no figures."""
    section = SECTIONS[name]
    blank = Row(name, "", size.tokens, size.skew, section.flops(size))
    ready: dict[str, Arm] = {}
    rows: list[Row] = []
    expected: dict[str, Tensor] | None = None
    for arm_name, make in section.arms(size).items():
        row = replace(blank, arm=arm_name, target=section.target(arm_name, size.tokens))
        arm = tried(make)
        if isinstance(arm, Arm) and arm.results:
            found = tried(partial(second_time, arm))
            if isinstance(found, Skipped):
                arm = found
            else:
                expected = expected or found
                off = distance(found, expected)
                row = replace(row, distance=off if math.isfinite(off) else None)
                if off > arm.tolerance:
                    arm = Skipped(f"FAILED: its results are off by {off:.2g}, more than {arm.tolerance:g}")
            del found
        if isinstance(arm, Arm):
            ready[arm_name] = arm
        rows.append(replace(row, skipped=arm.reason) if isinstance(arm, Skipped) else row)
    del expected
    timings = clock.compare(ready, rounds)
    for row in rows:
        yield replace(row, timing=timings.get(row.arm))
