"""Sample texts, so that a person sees what was learned. Small and slow: every token runs the whole window again.

Legend: T tokens of all texts, packed · N texts that go on · V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from parallel.world import World
from trainer.model.decoder import Decoder

TEMPERATURE = 0.7


@torch.no_grad()
def generate(
    model: Decoder,
    prompts: Sequence[list[int]],
    *,
    tokens: int,
    window: int,
    eos_id: int,
    seed: int,
    world: World | None = None,
) -> list[list[int]]:
    """Continue each prompt by up to `tokens` tokens, or until `eos_id`, which is not returned.

    The texts run side by side as documents of one packed sequence; each sees its last `window` tokens. Sampling draws
    from a generator of its own on the CPU, so that the same weights and seed give the same text wherever they lie, and
    training's generators stand still. With a `world` all its ranks take part, and rank 0 chooses for all: logits may
    differ from rank to rank in their last bit, and texts of unequal length would part them. Returns the continuations.
    """
    generator = torch.Generator().manual_seed(seed)
    texts = [list(prompt) or [eos_id] for prompt in prompts]
    lengths = [len(text) for text in texts]
    going = list(range(len(texts)))
    for _ in range(tokens):
        logits_NV = _next_logits(model, [texts[n][-window:] for n in going])
        chosen = (
            torch.multinomial(torch.softmax(logits_NV / TEMPERATURE, -1), 1, generator=generator).flatten().tolist()
        )
        if world is not None:
            chosen = world.broadcast(chosen)
        for n, token in zip(list(going), chosen, strict=True):
            if token == eos_id:
                going.remove(n)
            else:
                texts[n].append(token)
        if not going:
            break
    return [text[length:] for text, length in zip(texts, lengths, strict=True)]


def _next_logits(model: Decoder, texts: list[list[int]]) -> Tensor:
    """Logits [N, V] (fp32, CPU) of the token after each text."""
    device = model.embed.device
    lengths_N = torch.tensor([len(text) for text in texts])
    ids_T = torch.tensor([token for text in texts for token in text], device=device)
    positions_T = torch.cat([torch.arange(len(text)) for text in texts]).to(device)
    ends_N = lengths_N.cumsum(0)
    cu_seqlens = F.pad(ends_N, (1, 0)).to(torch.int32)
    hidden_TH = model(ids_T.unsqueeze(0), positions_T.unsqueeze(0), cu_seqlens).hidden[0]
    return model.logits(hidden_TH[(ends_N - 1).to(device)]).float().cpu()
