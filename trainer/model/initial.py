"""Initial values of a model, drawn tensor by tensor, so that they depend neither on the device nor on the layout."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def seeded_normal(shape: Sequence[int], seed: int, name: str) -> Tensor:
    """Standard normal values, drawn on the CPU in fp32; keyed by (seed, name)."""
    key = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
    generator = torch.Generator("cpu").manual_seed(int.from_bytes(key, "little") >> 1)
    return torch.randn(tuple(shape), generator=generator, dtype=torch.float32)


def fope_matrix(heads: int, kept: int, gain: float, seed: int, name: str) -> Tensor:
    """FoPE's mixing matrices of one table [heads, kept, kept], fp32: I + Xavier's normal; exactly I with gain 0.

    Xavier's fans of a 3-D tensor are counted as torch does: fan_in = kept * kept, fan_out = heads * kept.
    """
    std = gain * (2.0 / (kept * kept + heads * kept)) ** 0.5
    return seeded_normal((heads, kept, kept), seed, name) * std + torch.eye(kept)
