"""A decoder whose placeholder tokens are replaced by the embeddings of images and signals.

Legend: B sequences · S tokens of each · H hidden size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from parallel.balance.moves import Moves
from parallel.sharding.local import local_part
from trainer.config.model import InternViTConfig, ModelConfig
from trainer.model.decoder import Decoder, DecoderOutput, Span
from trainer.model.experts.base import Backend
from trainer.model.ops import TORCH, Ops
from trainer.model.replay import Replay
from trainer.model.towers.intern_vit import InternViT
from trainer.model.towers.places import Places
from trainer.model.towers.run_images import RunImages, RunSignals, run_here, run_together
from trainer.model.towers.time_series import Signal, TimeSeriesTower
from trainer.model.towers.vision import Images, VisionTower

LAYER_SCALE = 0.1  # that InternViT starts with, as published code does


class Towers(TypedDict):
    """The towers of a model, None where it has none."""

    vision: InternViT | VisionTower | None
    signals: TimeSeriesTower | None


def make_towers(cfg: ModelConfig) -> Towers:
    """The towers of `cfg`, without values."""
    vision: InternViT | VisionTower | None = None
    if cfg.vision is not None:
        vision = InternViT(cfg.vision) if isinstance(cfg.vision, InternViTConfig) else VisionTower(cfg.vision)
    return {"vision": vision, "signals": TimeSeriesTower(cfg.signals) if cfg.signals is not None else None}


class Multimodal(Decoder):
    """A `Decoder` with the embedding, and its towers, whose matrices compute in `compute_dtype` too. Build it as the
    decoder."""

    def __init__(
        self,
        cfg: ModelConfig,
        compute_dtype: torch.dtype | None = None,
        ops: Ops = TORCH,
        make_backend: Callable[[], Backend] | None = None,
        span: Span | None = None,
    ) -> None:
        super().__init__(cfg, compute_dtype, ops, make_backend, span)
        towers = make_towers(cfg)
        self.vision: InternViT | VisionTower | None = towers["vision"]
        self.signals: TimeSeriesTower | None = towers["signals"]
        self.run_images: RunImages = run_here
        self.run_signals: RunSignals = run_together

    @property
    def tower_layers(self) -> list[list[nn.Module]]:
        """The layers of each tower, in their order: forward(x [.., W], ...)."""
        layers: list[list[nn.Module]] = []
        if self.vision is not None:
            layers.append([*(self.vision.layers if isinstance(self.vision, InternViT) else self.vision.blocks)])
        if self.signals is not None:
            layers.append([*self.signals.layers])
        return layers

    @property
    def tower_blocks(self) -> list[nn.Module]:
        """The layers of the towers, and the encoder of a signal's patches."""
        blocks = [layer for layers in self.tower_layers for layer in layers]
        return blocks if self.signals is None else [*blocks, self.signals.patches]

    @property
    def tower_units(self) -> list[nn.Module]:
        """The modules whose weights are gathered together: each layer of the towers, then each tower with the rest."""
        return [*self.tower_blocks, *(tower for tower in (self.vision, self.signals) if tower is not None)]

    def forward(
        self,
        ids: Tensor | None = None,
        positions: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        *,
        embeds: Tensor | None = None,
        images: Images | Tensor | None = None,
        signals: Sequence[Signal] = (),
        image_places: Places | None = None,
        signal_places: Places | None = None,
        image_moves: Moves | None = None,
        expert_ids: Tensor | Replay | None = None,
    ) -> DecoderOutput:
        """Hidden states and router statistics, as `Decoder.forward`, of tokens and media.

        Args:
            ids: [B, S] int64, with one placeholder for each embedding of the media.
            positions, cu_seqlens, embeds, expert_ids: as of `Decoder.forward`; no media with embeds.
            images: what the vision tower takes, in the order of the placeholders in the flattened ids: `Images`
                (Intern-S1-Pro) or tiles (Intern-S1); None without any.
            signals: as `prepare_signal` makes them, in the order of their placeholders.
            image_places, signal_places: of their embeddings; None looks for the placeholders, which waits for the
                device.
            image_moves: of images that other ranks run; None without any.
        Raises: ValueError where placeholders and embeddings differ in number, or for media without a tower.
        """
        if ids is not None and embeds is None and self.embed is not None:
            embeds, looked_up = F.embedding(ids, self.embed), ids
            image_token, signal_token = self.cfg.image_token, self.cfg.signal_token
            found = None if images is None else self.embed_images(images, image_moves)
            embeds = _place(embeds, looked_up, image_token, found, image_places, "image")
            found = self.embed_signals(signals) if signals else None
            embeds = _place(embeds, looked_up, signal_token, found, signal_places, "signal")
            ids = None
        elif images is not None or signals:
            raise ValueError("images and signals need ids, whose placeholders they replace")
        return super().forward(ids, positions, cu_seqlens, embeds=embeds, expert_ids=expert_ids)

    def embed_images(self, images: Images | Tensor, moves: Moves | None = None) -> Tensor:
        """Embeddings of images, one after another: [n, H]. Raises ValueError without a tower."""
        if self.vision is None:
            raise ValueError("this model has no tower for images")
        with self._arithmetic():
            return self.run_images(self.vision, images, moves)

    def embed_signals(self, signals: Sequence[Signal]) -> Tensor:
        """Embeddings of signals, one after another: [n, H]. Raises ValueError without a tower."""
        if self.signals is None:
            raise ValueError("this model has no tower for signals")
        with self._arithmetic():
            return self.run_signals(self.signals, signals)

    def _arithmetic(self) -> AbstractContextManager[Any]:
        assert self.embed is not None
        if self.compute_dtype in (None, self.embed.dtype):
            return nullcontext()
        # Without a cache: it would keep a second copy of all weights until the towers are through.
        return torch.autocast(self.embed.device.type, self.compute_dtype, cache_enabled=False)

    def _initial(self, name: str, weight: Tensor) -> float | None:
        if not name.startswith(("vision.", "signals.")) or weight.ndim > 1:
            return super()._initial(name, weight)
        if name.endswith("_scale"):
            return LAYER_SCALE
        return 0.0 if name.endswith("bias") else 1.0

    def _initial_std(self, name: str, weight: Tensor) -> float:
        if not name.startswith("signals.") or name == "signals.positions":
            return super()._initial_std(name, weight)
        return 1 / math.sqrt(math.prod(weight.shape[1:]))

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """As `Decoder.init_weights`; biases are 0, InternViT's layer scales 0.1, and the patch encoder's positions are
        sines and cosines.

        Matrices and convolutions of the time-series tower have a standard deviation of 1 / sqrt(inputs), which keeps
        the variance of what passes through them (LeCun et al. 1998, "Efficient BackProp", section 4.6). With 0.02 the
        first convolution turns the five z-scores that it sees into 0.04, beside sines and cosines of 0.7, and the tower
        learns nothing from a signal for hundreds of steps. How the published weights were drawn is not known.
        """
        super().init_weights(seed)
        if self.signals is not None:
            table = local_part(self.signals.patches.positions)
            table.copy_(sines(*table.shape[::2]).unsqueeze(1))


def sines(rows: int, width: int) -> Tensor:
    """A table of sines and cosines of positions (Vaswani et al. 2017, section 3.5), fp32: [rows, width]."""
    frequencies = torch.exp(torch.arange(0, width, 2) * (-math.log(10_000.0) / width))
    angles = torch.arange(rows).unsqueeze(1) * frequencies
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)


def _place(
    embeds: Tensor, ids: Tensor, placeholder: int | None, media: Tensor | None, places: Places | None, kind: str
) -> Tensor:
    """Write the embeddings of media over those of their placeholder tokens.

    Args: embeds: [B, S, H]. ids: [B, S]. media: [n, H], in the order of the flattened ids; None for n = 0. places: of
        the placeholders; None searches the ids. kind: of the media, for the message.
    Returns: [B, S, H].
    Raises: ValueError unless `placeholder` is in ids n times; not checked where the places are given.
    """
    if places is None:
        if placeholder is None:
            return embeds
        at = (ids.flatten() == placeholder).nonzero().flatten()
        found, given = len(at), 0 if media is None else len(media)
        if found != given:
            raise ValueError(
                f"the ids hold {found} {kind} placeholders ({placeholder}), but the {kind}s given have {given} "
                "embeddings; one placeholder is needed for each"
            )
        places = Places(at)
    if media is None:
        return embeds
    rows = media if places.rows is None else media.index_select(0, places.rows)
    # With no row at all this still connects the tower to the loss: its backward pass then meets the other ranks'.
    return embeds.flatten(0, 1).index_copy(0, places.at, rows.to(embeds.dtype)).view(embeds.shape)
