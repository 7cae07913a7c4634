"""Sample texts, for a person to see what was learned. Small and slow: every token runs the whole window again.

Legend: T tokens of all texts, packed · N unfinished texts · V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from parallel.world import World
from trainer.data.protocols import TextSplits
from trainer.data.text import prompts
from trainer.stages.forward import Forward

TEMPERATURE = 0.7


def sample_texts(
    forward: Forward, text: TextSplits, world: World, *, tokens: int, window: int, seed: int
) -> dict[str, str]:
    """Each source's prompt with a continuation of up to `tokens` tokens, by source. Collective."""
    tokenizer, starts = text.tokenizer, prompts(text)
    encoded = [tokenizer.encode(start) for start in starts.values()]
    added = generate(forward, encoded, tokens=tokens, window=window, eos_id=tokenizer.eos_id, seed=seed, world=world)
    return {
        source: tokenizer.decode(prompt + more) for source, prompt, more in zip(starts, encoded, added, strict=True)
    }


@torch.no_grad()
def generate(
    forward: Forward,
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
    from a CPU generator of its own: the same weights and seed give the same text on every device, and training's
    generators keep their state. With a `world` the call is collective and the first rank with the LM head chooses the
    tokens for all: logits may differ between ranks in the last bit, and texts of unequal length would make the ranks
    diverge.
    Returns the continuations.
    """
    generator = torch.Generator().manual_seed(seed)
    texts = [list(prompt) or [eos_id] for prompt in prompts]
    lengths = [len(text) for text in texts]
    unfinished = list(range(len(texts)))
    for _ in range(tokens):
        logits_NV, chosen = _next_logits(forward, [texts[n][-window:] for n in unfinished]), []
        if logits_NV is not None:
            probabilities_NV = torch.softmax(logits_NV / TEMPERATURE, -1)
            chosen = torch.multinomial(probabilities_NV, 1, generator=generator).flatten().tolist()
        if world is not None:
            chosen = next(of_rank for of_rank in world.gather(chosen) if of_rank)
        for n, token in zip(list(unfinished), chosen, strict=True):
            if token == eos_id:
                unfinished.remove(n)
            else:
                texts[n].append(token)
        if not unfinished:
            break
    return [text[length:] for text, length in zip(texts, lengths, strict=True)]


def _next_logits(forward: Forward, texts: list[list[int]]) -> Tensor | None:
    """Logits [N, V] (fp32, CPU) of the token after each text, on the ranks with the LM head."""
    device, share = forward.device, forward.share
    filler = -sum(map(len, texts)) % share.ranks  # ranks that share the sequence must have equally many tokens
    packed = [*texts, [0] * filler] if filler else texts
    ids_T = torch.tensor([token for text in packed for token in text])
    positions_T = torch.cat([torch.arange(len(text)) for text in packed])
    bounds = [0, *accumulate(map(len, packed))]
    inputs = {
        "ids": share.take(ids_T).unsqueeze(0).to(device),
        "positions": share.take(positions_T).unsqueeze(0).to(device),
        "cu_seqlens": torch.tensor(bounds, dtype=torch.int32),
    }
    found = forward(inputs)
    if found is None:
        return None
    last = [end - 1 for end in bounds[1 : len(texts) + 1]]
    return found.model.logits(share.pick(found.hidden[0], last, bounds[-1])).float().cpu()
