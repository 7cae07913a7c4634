"""Noise that tells copies of one matrix apart: Gaussian, seeded, cheaper than hashing what it is added to.

    copy = w + std * z        std: `relative` times the root mean square of the matrix w; z standard normal

z comes from a pool of POOL numbers. Each CHUNK elements of a copy take a run of it that begins at a place keyed by
(seed, the copy's name, number of the chunk), so that its values depend on nothing else: no order, worker or resume. Two
copies of a chunk take the same run once in 60,000 times, and are uncorrelated otherwise.

The sum is taken in fp32 and rounded once. Rounding to bf16 keeps the noise's std where it is about half the distance of
two neighbouring numbers or more, that is a relative std of 2^-9 or more; `least` says so for a dtype.
"""

from __future__ import annotations

import functools
import hashlib
import math
import threading
from collections.abc import Mapping

import torch
from torch import Tensor

from trainer.checkpoint.upcycle.errors import UpcycleError
from trainer.model.initial import seeded_normal

POOL, CHUNK = 1 << 21, 1 << 18  # numbers; a chunk and its run fit a core's L2 cache
STEP = 32  # runs begin at multiples of this: 64 bytes of bf16
SAMPLES, SAMPLE = 256, 1024  # runs, and numbers in each, that the RMS of a larger matrix is taken of


class _Scratch(threading.local):
    def __init__(self) -> None:
        self.pools: dict[torch.dtype, Tensor] = {}
        self.part = torch.empty(CHUNK)


_scratch = _Scratch()


def least(dtype: torch.dtype) -> float:
    """The relative std below which rounding to `dtype` takes away most of the noise."""
    return torch.finfo(dtype).eps / 4


class Noise:
    """Copies of matrices, each with noise of its own.

    Args: relative: std over the matrix's root mean square; 0: exact copies. seed: any integer.
    """

    def __init__(self, relative: float, seed: int) -> None:
        self.relative, self.seed = relative, seed

    def copy(self, values: Tensor, copies: Mapping[str, Tensor], rms: float | None = None) -> None:
        """Fill `copies`, contiguous tensors of the shape of `values`, keyed by the names that draw their noise.

        The copies have one dtype. rms: to which the noise is relative; None: that of `values`. Raises UpcycleError
        where it is not finite.
        """
        flat = values.reshape(-1)
        outs = {name: copy.view(-1) for name, copy in copies.items()}
        if not self.relative:
            rms = 0.0
        elif rms is None:
            rms = root_mean_square(flat)
        if not math.isfinite(rms):
            raise UpcycleError(f"{next(iter(copies))}: its source holds numbers that are not finite")
        if rms == 0:
            for out in outs.values():
                out.copy_(flat)
            return
        dtype = next(iter(outs.values())).dtype
        work = dtype if dtype == flat.dtype == torch.bfloat16 else torch.promote_types(dtype, torch.float32)
        # In steps of a thousandth, so that the order in which the mean was summed leaves no trace.
        std = _rounded(self.relative * rms)
        scaled = self._scaled(std, work) if len(flat) * len(outs) >= POOL else None
        for number, start in enumerate(range(0, len(flat), CHUNK)):
            part = flat[start : start + CHUNK].to(work)
            for name, out in outs.items():
                first = self._first(name, number)
                run = slice(first, first + len(part))
                noise = scaled[run] if scaled is not None else (_pool(self.seed)[run] * std).to(work)
                into = out[start : start + CHUNK]
                if work == dtype:
                    torch.add(part, noise, out=into)
                else:
                    into.copy_(part + noise)

    def _first(self, name: str, number: int) -> int:
        key = hashlib.blake2b(f"{self.seed}/{name}/{number}".encode(), digest_size=8).digest()
        return int.from_bytes(key, "little") % ((POOL - CHUNK) // STEP + 1) * STEP

    def _scaled(self, std: float, dtype: torch.dtype) -> Tensor:
        """The pool times `std`. Not a factor of the addition: torch rounds that one differently at the ends of a range
        than in its middle, and where a range ends depends on the number of threads."""
        pools = _scratch.pools
        if dtype not in pools:
            pools[dtype] = torch.empty(POOL, dtype=dtype)
        for numbers, out in zip(_pool(self.seed).split(CHUNK), pools[dtype].split(CHUNK), strict=True):
            out.copy_(torch.mul(numbers, std, out=_scratch.part))
        return pools[dtype]


def root_mean_square(flat: Tensor) -> float:
    """Of a one-dimensional tensor; of SAMPLES evenly spaced runs where it has many more numbers than these."""
    if len(flat) > 2 * SAMPLES * SAMPLE:
        flat = flat.as_strided((SAMPLES, SAMPLE), (len(flat) // SAMPLES, 1)).reshape(-1)
    return math.sqrt(float(flat.double().square().mean())) if len(flat) else 0.0


def _rounded(value: float) -> float:
    mantissa, exponent = math.frexp(value)
    return math.ldexp(round(mantissa * 1024) / 1024, exponent)


@functools.lru_cache(maxsize=1)
def _pool(seed: int) -> Tensor:
    numbers = seeded_normal((POOL,), seed, "upcycle.noise").double()
    return ((numbers - numbers.mean()) / numbers.std()).float()
