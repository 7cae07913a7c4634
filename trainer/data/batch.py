"""What the model is fed: windows of tokens with their labels and document boundaries.

Shape legend: B windows of a micro-batch · S positions of a window · L = S + 1 tokens read for it · D documents.
"""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

IGNORE = -100  # the label that the loss skips, torch's default ignore_index


@dataclass
class Batch:
    """One micro-batch of B windows of S tokens."""

    input_ids: Tensor  # [B, S] int64
    labels: Tensor  # [B, S] int64: the next token of the same document, IGNORE elsewhere
    position_ids: Tensor  # [B, S] int64, counted from the start of the document or, where it began earlier, the window
    cu_seqlens: Tensor  # [D + 1] int32, always on the CPU: document boundaries in the flattened B * S tokens
    num_tokens: int  # supervised tokens (labels != IGNORE), counted on the host
    samples: list[int]  # global sample numbers
    faults: tuple[str, ...] = ()  # what was found unreadable and replaced by other windows, a line each

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch with its token tensors on `device`; `cu_seqlens` stays on the CPU."""
        tokens = (self.input_ids, self.labels, self.position_ids)
        if torch.device(device).type == "cuda":  # only from pinned memory does the copy run beside the host
            tokens = (tokens[0].pin_memory(), tokens[1].pin_memory(), tokens[2].pin_memory())
        input_ids, labels, position_ids = (t.to(device, non_blocking=True) for t in tokens)
        return replace(self, input_ids=input_ids, labels=labels, position_ids=position_ids)


def make_batch(
    tokens_BL: npt.NDArray[np.int64],
    starts_BL: npt.NDArray[np.bool_],
    samples: list[int],
    untrained_BL: npt.NDArray[np.bool_] | None = None,
) -> Batch:
    """Label and delimit windows of S + 1 tokens.

    tokens_BL: [B, S + 1] token ids; starts_BL: [B, S + 1], true where a token is the first of its document.
    untrained_BL: [B, S + 1], true on tokens that are read and never asked for, such as those of a system prefix.
    The label of position p is token p + 1, so windows that overlap by one token leave no token of a document without
    a label; it is IGNORE where token p + 1 begins another document or is not trained on. Every window start is a
    boundary.
    """
    B, S = tokens_BL.shape[0], tokens_BL.shape[1] - 1
    supervised_BS = ~starts_BL[:, 1:]
    if untrained_BL is not None:
        supervised_BS &= ~untrained_BL[:, 1:]
    labels_BS = np.where(supervised_BS, tokens_BL[:, 1:], IGNORE)
    first_BS = starts_BL[:, :S].copy()
    first_BS[:, 0] = True
    column_S = np.arange(S)
    positions_BS = column_S - np.maximum.accumulate(np.where(first_BS, column_S, 0), axis=1)
    boundaries = np.append(np.flatnonzero(first_BS), B * S).astype(np.int32)
    return Batch(
        input_ids=torch.from_numpy(np.ascontiguousarray(tokens_BL[:, :S])),
        labels=torch.from_numpy(labels_BS),
        position_ids=torch.from_numpy(positions_BS),
        cu_seqlens=torch.from_numpy(boundaries),
        num_tokens=int(np.count_nonzero(supervised_BS)),
        samples=samples,
    )
