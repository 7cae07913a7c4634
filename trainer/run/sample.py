"""Sample texts, for a person to see what was learned, by the engine through the run's own modules."""

from __future__ import annotations

from collections.abc import Sequence

from parallel.world import World
from trainer.data.protocols import TextSplits
from trainer.data.text import prompts
from trainer.engine.engine import Engine
from trainer.engine.ranks import ALONE, Together
from trainer.engine.request import Request, Sampling
from trainer.engine.run import ThroughModules
from trainer.model.decoder import Decoder
from trainer.model.exact.blocks import KEYS
from trainer.stages.forward import Forward

TEMPERATURE = 0.7
CHUNK = 512  # the most tokens of a step


def sample_texts(
    forward: Forward, stages: Sequence[Decoder], text: TextSplits, world: World, *, tokens: int, seed: int
) -> dict[str, str]:
    """Each source's prompt with a continuation of up to `tokens` tokens, by source. Collective."""
    tokenizer, starts = text.tokenizer, prompts(text)
    encoded = [tokenizer.encode(start) for start in starts.values()]
    added = generate(forward, stages, encoded, tokens=tokens, eos_id=tokenizer.eos_id, seed=seed, world=world)
    return {
        source: tokenizer.decode(prompt + more) for source, prompt, more in zip(starts, encoded, added, strict=True)
    }


def generate(
    forward: Forward,
    stages: Sequence[Decoder],
    prompts: Sequence[list[int]],
    *,
    tokens: int,
    eos_id: int,
    seed: int,
    world: World | None = None,
) -> list[list[int]]:
    """Continue each prompt by up to `tokens` tokens, or until `eos_id`, which is not returned.

    A text ends where the model's longest document does. Draws depend on weights, seed and position alone, and torch's
    generators keep their state. With a `world` the call is collective and the first rank with the LM head draws for
    all. stages: of this rank.
    Returns the continuations.
    """
    context = forward.cfg.max_position
    asked = []
    for number, prompt in enumerate(prompts):
        start = (prompt or [eos_id])[-(context - 1) :]
        length = min(tokens, context - len(start))
        asked.append(Request(start, length, Sampling(TEMPERATURE, seed=seed + number), frozenset({eos_id})))
    engine = Engine(
        stages[0],
        cache_tokens=sum(-(-(len(one.prompt) + one.max_tokens) // KEYS) for one in asked) * KEYS,
        batch=len(asked),
        chunk=max(len(asked), CHUNK),
        run=ThroughModules(forward, stages),
        ranks=ALONE if world is None or world.size == 1 else Together(world),
    )
    return [[token for token in answer.ids if token != eos_id] for answer in engine.generate(asked)]
