"""The contract of attention cores: causal attention inside packed documents, over tokens that ranks may share.

An attention block owns a core; its mathematics does not depend on which one it is. A core for one rank has all tokens;
`ulysses` and `ring` are for ranks that hold slices of one sequence (`slices`).

Legend: T tokens on this rank · h query heads · n kv heads · d head dimension.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Protocol

import torch
from torch import Tensor


@dataclass(eq=False)
class Documents:
    """Bounds of the documents in packed tokens, on the host (lengths) and on the device (cu_seqlens).

    Where ranks share a sequence these are the bounds in the whole of it, on every rank.
    """

    lengths: list[int]
    cu_seqlens: Tensor  # [documents + 1] int32, on the device of the activations

    @property
    def bounds(self) -> list[int]:
        """cu_seqlens on the host."""
        return [0, *accumulate(self.lengths)]

    @staticmethod
    def from_cu_seqlens(cu_seqlens: Tensor, tokens: int, device: torch.device) -> Documents:
        """cu_seqlens: [documents + 1] int32 on the CPU, increasing from 0 to `tokens`; raises ValueError otherwise."""
        bounds = cu_seqlens.tolist()
        lengths = [end - start for start, end in pairwise(bounds)]
        if not lengths or bounds[0] != 0 or bounds[-1] != tokens or min(lengths) < 1:
            raise ValueError(
                f"cu_seqlens must increase from 0 to the {tokens} tokens, but are {bounds[:4]}...{bounds[-1:]}"
            )
        return Documents(lengths, cu_seqlens.to(device, non_blocking=True))

    @staticmethod
    def of_lengths(lengths: list[int], device: torch.device) -> Documents:
        """Documents of these lengths in tokens, one after another."""
        bounds = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
        return Documents(lengths, bounds.to(device, non_blocking=True))

    @staticmethod
    def rows(batch: int, seq_len: int, device: torch.device) -> Documents:
        """`batch` documents of `seq_len` tokens each."""
        bounds = torch.arange(0, (batch + 1) * seq_len, seq_len, dtype=torch.int32, device=device)
        return Documents([seq_len] * batch, bounds)


class AttentionCore(Protocol):
    """The interface that an attention block calls; it holds no parameters.

    ranks: how many ranks share a sequence; each has `slices` of it.
    """

    @property
    def ranks(self) -> int: ...

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, docs: Documents) -> Tensor:
        """Causal attention of this rank's queries inside each document of the whole sequence.

        Args: q: [T, h, d]; k, v: [T, n, d] with n dividing h; query head i reads kv head i // (h/n).
            docs: of the tokens of all ranks.
        Returns: [T, h, d].
        """
        ...
