"""A text model whose placeholder tokens are replaced by the embeddings of images and signals.

Legend: B sequences · S tokens of each · H hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from trainer.config.model import InternViTConfig, MultimodalConfig
from trainer.model.decoder import Decoder, DecoderOutput
from trainer.model.towers.intern_vit import InternViT
from trainer.model.towers.time_series import Signal, TimeSeriesTower
from trainer.model.towers.vision import Images, VisionTower


class Multimodal(nn.Module):
    """A `Decoder` and its towers. Build it as the decoder: under `torch.device("meta")`, then `to_empty`."""

    def __init__(self, cfg: MultimodalConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.text = Decoder(cfg.text)
        self.vision = InternViT(cfg.vision) if isinstance(cfg.vision, InternViTConfig) else VisionTower(cfg.vision)
        self.signals = TimeSeriesTower(cfg.signals) if cfg.signals else None

    def forward(
        self,
        ids: Tensor,
        positions: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        *,
        images: Images | Tensor | None = None,
        signals: Sequence[Signal] = (),
        expert_ids: Tensor | None = None,
    ) -> DecoderOutput:
        """Hidden states and router statistics, as `Decoder.forward`, of tokens and media.

        Args:
            ids: [B, S] int64, with one placeholder for each embedding of the media.
            positions, cu_seqlens, expert_ids: as of `Decoder.forward`.
            images: what the vision tower takes, in the order of the placeholders in the flattened ids: `Images`
                (Intern-S1-Pro) or tiles (Intern-S1); None without any.
            signals: as `prepare_signal` makes them, in the order of their placeholders.
        Raises: ValueError where placeholders and embeddings differ in number, or for signals without a tower.
        """
        assert self.text.embed is not None
        embeds = F.embedding(ids, self.text.embed)
        embeds = place(embeds, ids, self.cfg.image_token, None if images is None else self.vision(images), "image")
        if self.signals is not None:
            placeholder = self.cfg.signal_token
            assert placeholder is not None
            embeds = place(embeds, ids, placeholder, self.signals(signals) if signals else None, "signal")
        elif signals:
            raise ValueError("this model has no tower for signals")
        return self.text(positions=positions, cu_seqlens=cu_seqlens, embeds=embeds, expert_ids=expert_ids)


def place(embeds: Tensor, ids: Tensor, placeholder: int, media: Tensor | None, kind: str) -> Tensor:
    """Write the embeddings of media over those of their placeholder tokens.

    Args: embeds: [B, S, H]. ids: [B, S]. media: [n, H], in the order of the flattened ids; None for n = 0.
        kind: of the media, for the message.
    Returns: [B, S, H].
    Raises: ValueError unless `placeholder` is in ids n times.
    """
    at_BS1 = (ids == placeholder).unsqueeze(-1)
    found, given = int(at_BS1.sum()), 0 if media is None else len(media)
    if found != given:
        raise ValueError(
            f"the ids hold {found} {kind} placeholders ({placeholder}), but the {kind}s given have {given} embeddings; "
            "one placeholder is needed for each"
        )
    return embeds if media is None else embeds.masked_scatter(at_BS1, media.to(embeds.dtype))
