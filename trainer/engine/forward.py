"""One step of the model for tokens of many requests.

Legend: T tokens · N tokens whose successors are wanted · H hidden size · V vocabulary · L layers · K experts per token.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.data.batch import media_of
from trainer.data.windows import Prepared
from trainer.engine.cache import Cache, Layout
from trainer.engine.media import Medium
from trainer.model.decoder import Decoder
from trainer.model.multimodal import Multimodal
from trainer.model.numerics import rms_norm


@torch.inference_mode()
def forward(
    model: Decoder,
    ids: Tensor,
    layout: Layout,
    cache: Cache,
    wanted: Tensor,
    media: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """The blocks of `Decoder.forward` with cached keys, and without the routers' statistics.

    Keeps what the LM head takes, and the routes, of all tokens in the cache.

    Args: ids: [T] int64, at the places of `layout`. wanted: [N] int64, numbers of tokens.
        media: numbers of tokens [n] and the embeddings [n, H] that they have instead of their own.
    Returns: logits [N, V] of what follows the wanted tokens, fp32 (fp64).
    """
    assert model.embed is not None
    assert model.norm is not None
    x = F.embedding(ids, model.embed)
    if media is not None:
        x.index_copy_(0, media[0], media[1].to(x.dtype))
    x = x.to(model.activations)
    cos, sin = model.rotary(layout.positions, x.dtype)
    routes = []
    for layer, block in enumerate(model.blocks):
        attention, moe = block.attention, block.moe
        q, k, v = attention.enter(rms_norm(x, block.attention_norm, block.eps), cos, sin)
        x = x + attention.leave(cache.attend(layer, q, k, v, layout))
        normed = rms_norm(x, block.moe_norm, block.eps)
        experts, weights = moe.router.route(moe.router.logits(normed))
        x = x + moe.mix(normed, experts, weights)
        routes.append(experts)
    cache.keep_routes(torch.stack(routes), layout)
    hidden = rms_norm(x, model.norm, model.cfg.norm_eps)
    cache.keep_hidden(hidden, layout)
    return model.logits(hidden.index_select(0, wanted))


@torch.inference_mode()
def embed(model: Decoder, medium: Medium) -> Tensor:
    """Embeddings of an image or signal: [tokens, H]."""
    assert isinstance(model, Multimodal)
    prepared = media_of([Prepared(medium.kind, 0, 0, medium.tokens, medium.value)])
    assert prepared is not None
    media = prepared.to(next(model.parameters()).device)
    return model.embed_signals(media.signals) if media.images is None else model.embed_images(media.images)
