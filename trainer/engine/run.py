"""A step of the model for tokens of many requests, by the shortest way or through the modules of a run.

Legend: T tokens · N tokens whose successors are wanted · H hidden size · V vocabulary · L layers · K experts per token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from parallel.context.base import Documents
from trainer.data.batch import media_of
from trainer.data.windows import Prepared
from trainer.engine.cache import Cache, Layout
from trainer.engine.media import Medium
from trainer.model.decoder import Decoder, DecoderBlock
from trainer.model.exact.blocks import ROWS
from trainer.model.multimodal import Multimodal
from trainer.model.numerics import rms_norm
from trainer.model.towers.places import Places
from trainer.stages.forward import Forward

Media = tuple[Tensor, Tensor]  # numbers of tokens [n], and the embeddings [n, H] that they have instead of their own


class Run(Protocol):
    """Runs the model on the tokens of a step, and keeps keys, values, routes and what the LM head takes in the cache.

    blocks: of this rank, in their order.
    """

    blocks: Sequence[DecoderBlock]

    def __call__(
        self, ids: Tensor, layout: Layout, cache: Cache, wanted: Tensor, media: Media | None = None
    ) -> Tensor | None:
        """Logits [N, V] of what follows the wanted tokens, fp32 (fp64); None on a rank without the LM head.

        Args: ids: [T] int64, at the places of `layout`. wanted: [N] int64, numbers of tokens.
        """
        ...


class Direct:
    """Implements `Run` for a model whose weights, but for experts, are whole on this rank: the blocks of
    `Decoder.forward` without the routers' statistics."""

    def __init__(self, model: Decoder) -> None:
        self.model = model
        self.blocks: Sequence[DecoderBlock] = model.blocks

    @torch.inference_mode()
    def __call__(
        self, ids: Tensor, layout: Layout, cache: Cache, wanted: Tensor, media: Media | None = None
    ) -> Tensor | None:
        model = self.model
        assert model.embed is not None
        assert model.norm is not None
        tokens = len(ids)
        # Rows fill up the last block of products once, and not for each: they are computed and thrown away.
        more = 0 if cache.compiled else -tokens % ROWS
        padded = F.embedding(F.pad(ids, (0, more)), model.embed)
        if media is not None:
            padded.index_copy_(0, media[0], media[1].to(padded.dtype))
        padded = padded.to(model.activations)
        x = padded[:tokens]
        cos, sin = model.rotary(F.pad(layout.positions, (0, more)), x.dtype)
        routes = []
        for layer, block in enumerate(self.blocks):
            attention, moe = block.attention, block.moe
            q, k, v = attention.enter(rms_norm(padded, block.attention_norm, block.eps), cos, sin)
            x += attention.leave(cache.attend(layer, q[:tokens], k[:tokens], v[:tokens], layout))
            normed = rms_norm(padded, block.moe_norm, block.eps)
            experts, weights = moe.router.route(moe.router.logits(normed)[:tokens])
            x += moe.mix(normed[:tokens], experts, weights)
            routes.append(experts)
        cache.keep_routes(torch.stack(routes), layout)
        hidden = rms_norm(x, model.norm, model.cfg.norm_eps)
        cache.keep_hidden(hidden, layout)
        return model.logits(hidden.index_select(0, wanted))


class ThroughModules:
    """Implements `Run` for a model that is spread in any way, by its own forward pass: sharded weights are gathered and
    stages relay as in training. Attention reads the cache meanwhile. Collective, for text alone.

    stages: of this rank.
    """

    def __init__(self, forward: Forward, stages: Sequence[Decoder]) -> None:
        self.forward = forward
        self.blocks: Sequence[DecoderBlock] = [block for stage in stages for block in stage.blocks]
        # None of the tokens stands for a medium, whatever was drawn.
        towers = any(isinstance(stage, Multimodal) for stage in stages)
        none = Places(torch.empty(0, dtype=torch.int64, device=forward.device))
        self.media = {"image_places": none, "signal_places": none} if towers else {}

    @torch.no_grad()
    def __call__(
        self, ids: Tensor, layout: Layout, cache: Cache, wanted: Tensor, media: Media | None = None
    ) -> Tensor | None:
        assert media is None
        bounds = torch.tensor([0, len(ids)], dtype=torch.int32)
        inputs = {
            "ids": ids.unsqueeze(0),
            "positions": layout.positions.unsqueeze(0),
            "cu_seqlens": bounds,
            **self.media,
        }
        with self._cached(cache, layout) as routes:
            found = self.forward(inputs)
        if routes:
            cache.keep_routes(torch.stack(routes), layout)
        if found is None:
            return None
        cache.keep_hidden(found.hidden[0], layout)
        return found.model.logits(found.hidden[0].index_select(0, wanted))

    @contextmanager
    def _cached(self, cache: Cache, layout: Layout) -> Iterator[list[Tensor]]:
        """Attention reads the cache, and routes are collected, [T, K] of each block."""
        routes: list[Tensor] = []

        def collect(_module: Any, _inputs: Any, output: Any) -> None:
            routes.append(output[0])

        with ExitStack() as stack:
            for layer, block in enumerate(self.blocks):
                core, attention = block.attention.core, block.attention
                attention.core = _CachedCore(cache, layer, layout)
                stack.callback(setattr, attention, "core", core)
                stack.callback(block.moe.router.register_forward_hook(collect).remove)
            yield routes


class _CachedCore:
    """The attention core of a block that reads the cache: of a step's tokens, which are not one document."""

    ranks = 1

    def __init__(self, cache: Cache, layer: int, layout: Layout) -> None:
        self.cache, self.layer, self.layout = cache, layer, layout

    @torch.compiler.disable
    def __call__(self, q: Tensor, k: Tensor, v: Tensor, docs: Documents) -> Tensor:
        return self.cache.attend(self.layer, q, k, v, self.layout)


@torch.inference_mode()
def embed(model: Decoder, medium: Medium) -> Tensor:
    """Embeddings of an image or signal: [tokens, H]."""
    assert isinstance(model, Multimodal)
    prepared = media_of([Prepared(medium.kind, 0, 0, medium.tokens, medium.value)])
    assert prepared is not None
    media = prepared.to(next(model.parameters()).device)
    return model.embed_signals(media.signals) if media.images is None else model.embed_images(media.images)
