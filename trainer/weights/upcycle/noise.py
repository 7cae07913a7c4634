"""Noise that makes the copies of a matrix differ: Gaussian, seeded, cheaper than hashing the matrix.

    copy = w + std * z        std: `relative` times the root mean square of the matrix w; z standard normal

z comes from a pool of POOL numbers. Each run of rows of a copy takes a run of the pool whose start is keyed by (seed,
the copy's name, number of the run), so that its values depend on nothing else: not on order, workers or a resume. Two
copies take the same numbers for one run of rows in 50,000, and are uncorrelated otherwise.

The sum is taken in fp32 and rounded once. Rounding to bf16 keeps the noise's std if it is about half the distance of
two neighbouring numbers or more, that is a relative std of 2^-9 or more; `smallest_noise` gives it for a dtype.
"""

from __future__ import annotations

import functools
import hashlib
import math
import threading
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from trainer.model.initial import seeded_normal
from trainer.weights.upcycle.errors import UpcycleError

POOL, RUN = 1 << 21, 1 << 19  # numbers of the pool, and of the longest run: fewer calls, and still in a core's cache
STEP = 32  # runs start at multiples of this: 64 bytes of bf16
SAMPLES, SAMPLE = 256, 1024  # runs, and numbers in each, that the RMS of a larger matrix is computed from


class _Scratch(threading.local):
    """Memory that a thread reuses: allocating it anew costs about as much as the noise."""

    def __init__(self) -> None:
        self.pool: dict[torch.dtype, Tensor] = {}
        self.made: dict[torch.dtype, Tensor] = {}
        self.part = torch.empty(RUN)


_scratch = _Scratch()


def smallest_noise(dtype: torch.dtype) -> float:
    """The relative std below which rounding to `dtype` removes most of the noise."""
    return torch.finfo(dtype).eps / 4


class Noise:
    """Copies of matrices, each with noise of its own.

    Args: relative: std relative to the matrix's root mean square; 0 makes exact copies. seed: any integer.
    """

    def __init__(self, relative: float, seed: int) -> None:
        self.relative, self.seed = relative, seed
        if relative:
            _pool(seed)  # made here, it is shared by workers that are forked later

    def copies(
        self, values: Tensor, names: Sequence[str], dtype: torch.dtype, source: str, rms: float | None = None
    ) -> Iterator[Tensor]:
        """The copies of a matrix [R, C], one after another, in runs of rows, each valid until the next.

        Args: names: those of the copies, which key their noise. source: name of the tensor that the matrix comes from.
            rms: what the noise is relative to; None for the matrix's own root mean square.
        Raises: UpcycleError if the matrix is not finite.
        """
        rows = max(1, RUN // max(1, values.shape[1]))
        if not self.relative:
            rms = 0.0
        elif rms is None:
            rms = root_mean_square(values.reshape(-1))
        if not math.isfinite(rms):
            raise UpcycleError(
                f"{source} holds numbers that are not finite", where=source, value=rms, allowed="finite numbers"
            )
        work = dtype if dtype == values.dtype == torch.bfloat16 else torch.promote_types(dtype, torch.float32)
        std = _rounded(self.relative * rms)  # removes the effect of the order in which the mean was summed
        scaled = self._scaled(std, work) if std and values.numel() * len(names) >= POOL else None
        parts = [part.reshape(-1) for part in values.split(rows)]
        for name in names:
            for number, part in enumerate(parts):
                made = self._scratch_rows(dtype, len(part))
                if not std:
                    made.copy_(part)
                    yield made.view(-1, values.shape[1])
                    continue
                first = self._first(name, number)
                run = slice(first, first + len(part))
                noise = scaled[run] if scaled is not None else (_pool(self.seed)[run] * std).to(work)
                if part.dtype == work == dtype:
                    torch.add(part, noise, out=made)
                else:
                    made.copy_(part.to(work) + noise)
                yield made.view(-1, values.shape[1])

    def _scratch_rows(self, dtype: torch.dtype, count: int) -> Tensor:
        buffer = _scratch.made.get(dtype)
        if buffer is None or len(buffer) < count:
            buffer = _scratch.made[dtype] = torch.empty(max(count, RUN), dtype=dtype)
        return buffer[:count]

    def _first(self, name: str, number: int) -> int:
        key = hashlib.blake2b(f"{self.seed}/{name}/{number}".encode(), digest_size=8).digest()
        return int.from_bytes(key, "little") % ((POOL - RUN) // STEP + 1) * STEP

    def _scaled(self, std: float, dtype: torch.dtype) -> Tensor:
        """The pool times `std`. Not `alpha` of the addition: torch rounds that differently at the ends of a range than
        in its middle, and where a range ends depends on the number of threads."""
        if dtype not in _scratch.pool:
            _scratch.pool[dtype] = torch.empty(POOL, dtype=dtype)
        for numbers, out in zip(_pool(self.seed).split(RUN), _scratch.pool[dtype].split(RUN), strict=True):
            out.copy_(torch.mul(numbers, std, out=_scratch.part))
        return _scratch.pool[dtype]


def root_mean_square(flat: Tensor) -> float:
    """The RMS of a one-dimensional tensor; of SAMPLES evenly spaced runs if it is much longer."""
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
