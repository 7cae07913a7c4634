"""Images and texts embedded in one space, for contrastive learning (CLIP: Radford et al. 2021, arXiv:2103.00020).

Legend: P pairs · L tokens of all texts · H hidden size · D width of an embedding.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from parallel.balance.moves import Moves
from trainer.config.model import ModelConfig
from trainer.model.decoder import Decoder, DecoderOutput, Span
from trainer.model.experts.base import Backend
from trainer.model.multimodal import Multimodal
from trainer.model.numerics import wide
from trainer.model.ops import TORCH, Ops
from trainer.model.pooling import means
from trainer.model.towers.vision import Images

MAX_SCALE = 100.0  # as CLIP limits it


class DualEncoder(Multimodal):
    """The decoder's blocks as text tower beside the vision tower. A text is the mean of its hidden states, an image
    that of its tokens; each has a projection to D. Build it as the decoder."""

    def __init__(
        self,
        cfg: ModelConfig,
        compute_dtype: torch.dtype | None = None,
        ops: Ops = TORCH,
        make_backend: Callable[[], Backend] | None = None,
        span: Span | None = None,
    ) -> None:
        super().__init__(cfg, compute_dtype, ops, make_backend, span)
        assert cfg.embedding is not None
        shape = cfg.embedding.width, cfg.hidden_size
        self.image_projection = nn.Parameter(torch.empty(shape))
        self.text_projection = nn.Parameter(torch.empty(shape))
        self.log_scale = nn.Parameter(torch.empty(1))  # FSDP takes no 0-dim parameters
        self.bias = nn.Parameter(torch.empty(1))

    def forward(  # type: ignore[override]
        self,
        ids: Tensor,
        positions: Tensor,
        cu_seqlens: Tensor,
        *,
        images: Images,
        image_moves: Moves | None = None,
    ) -> DecoderOutput:
        """Embeddings [2, P, D] in fp32 (fp64 for fp64), of images and of texts, not normalised; router statistics.

        Args: ids, positions: [1, L]. cu_seqlens: [P + 1] int32 on the CPU, bounds of the texts. images: P of them.
        image_moves: as of `Multimodal.forward`.
        """
        assert self.cfg.vision is not None
        assert self.cfg.vision.kind == "native"
        tokens = self.embed_images(images, image_moves)
        hidden, routing = Decoder.forward(self, ids, positions, cu_seqlens)
        block = self.cfg.vision.merge**2
        bounds = torch.tensor([0, *accumulate(rows * columns // block for rows, columns in images.grids)])
        both = []
        for x, of_each, projection in (
            (tokens, bounds, self.image_projection),
            (hidden.flatten(0, 1), cu_seqlens, self.text_projection),
        ):
            mean_PH = means(x.to(wide(x.dtype)), of_each)
            both.append(mean_PH @ projection.to(mean_PH.dtype).t())
        return DecoderOutput(torch.stack(both), routing)

    @property
    def scale(self) -> Tensor:
        """The factor on cosine similarities, [1]."""
        limited: Tensor = _AtMost.apply(self.log_scale, math.log(MAX_SCALE))
        return limited.exp()

    def _initial(self, name: str, weight: Tensor) -> float | None:
        assert self.cfg.embedding is not None
        if name == "log_scale":
            return -math.log(self.cfg.embedding.temperature)
        return self.cfg.embedding.bias if name == "bias" else super()._initial(name, weight)


class _AtMost(torch.autograd.Function):
    """The smaller of x and a limit. Above the limit the gradient passes where the update will lower x, so that x is
    never stuck there."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, limit: float) -> Tensor:
        ctx.save_for_backward(x < limit)
        return x.clamp_max(limit)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (below,) = ctx.saved_tensors
        return torch.where(below | (grads[0] > 0), grads[0], 0.0), None


def make_decoder(
    cfg: ModelConfig,
    compute_dtype: torch.dtype | None = None,
    ops: Ops = TORCH,
    make_backend: Callable[[], Backend] | None = None,
    span: Span | None = None,
) -> Decoder:
    """The model of `cfg`, or the span of it that a pipeline stage holds; the arguments as for `Decoder`. The stage with
    the embedding has the towers."""
    towers = cfg.vision is not None or cfg.signals is not None
    kind = Multimodal if towers and (span is None or span.embeds) else Decoder
    kind = DualEncoder if cfg.embedding is not None else kind
    return kind(cfg, compute_dtype, ops, make_backend, span)
