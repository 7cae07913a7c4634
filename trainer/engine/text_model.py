"""A model, its tokenizer and an engine together, for a few lines of Python (`trainer.api.load`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, overload

import torch

from trainer.engine.engine import Engine
from trainer.engine.load import Source
from trainer.engine.request import Completion, Request, Sampling

LENGTH = 256  # of an answer, where none is asked for

Prompt = str | Sequence[int]


class TextModel:
    """Continues texts, and scores them.

    source: what was opened. engine: what serves the requests; its weights are those of the directory.
    """

    def __init__(self, source: Source, device: torch.device, *, cache_tokens: int = 32_768) -> None:
        decode = None if source.tokenizer is None else source.tokenizer.decode
        self.source = source
        self.engine = Engine(source.load(device), decode=decode, cache_tokens=cache_tokens)

    @overload
    def generate(self, prompts: str, max_tokens: int | None = None, *, stop: Sequence[str] = (), **how: Any) -> str: ...
    @overload
    def generate(
        self, prompts: Sequence[Prompt], max_tokens: int | None = None, *, stop: Sequence[str] = (), **how: Any
    ) -> list[str]: ...
    def generate(
        self,
        prompts: str | Sequence[Prompt],
        max_tokens: int | None = None,
        *,
        stop: Sequence[str] = (),
        **how: Any,
    ) -> str | list[str]:
        """The text that continues a prompt, or the texts of several.

        Args: as of `complete`.
        Raises: DataError for prompts that cannot be read, and without a tokenizer. RequestError for what cannot be
            served. Python's TypeError for a name in `how` that is not a field of `Sampling`.
        """
        one = isinstance(prompts, str)
        found = self.complete([prompts] if isinstance(prompts, str) else prompts, max_tokens, stop=stop, **how)
        self.source.require_tokenizer()
        texts = [answer.text or "" for answer in found]
        return texts[0] if one else texts

    def complete(
        self,
        prompts: Sequence[Prompt],
        max_tokens: int | None = None,
        *,
        stop: Sequence[str] = (),
        score_prompt: bool = False,
        alternatives: int = 0,
        **how: Any,
    ) -> list[Completion]:
        """Answers with tokens, log-probabilities and routes.

        Args:
            prompts: texts, or lists of token ids.
            max_tokens: the most tokens of an answer; None: 256, or what the context leaves.
            stop, score_prompt, alternatives: as of `Request`.
            how: fields of `Sampling`: temperature, top_k, top_p, min_p, seed. Prompts have consecutive seeds.
        """
        first = Sampling(**how)
        asked = []
        for number, prompt in enumerate(prompts):
            ids = self.source.prompt(prompt) if isinstance(prompt, str) else [*prompt]
            length = max(1, min(LENGTH, self.engine.context - len(ids))) if max_tokens is None else max_tokens
            sampling = replace(first, seed=first.seed + number)
            stop_ids = self.source.stop_ids
            asked.append(Request(ids, length, sampling, stop_ids, tuple(stop), score_prompt, alternatives))
        return self.engine.generate(asked)

    def score(self, text: Prompt) -> list[tuple[str, float]]:
        """Each token of a text behind the first, as text, with its log-probability given those before it."""
        (scored,) = self.complete([text], 0, score_prompt=True)
        assert scored.prompt_scores is not None
        decode = self.source.require_tokenizer().decode
        pairs = zip(scored.prompt[1:], scored.prompt_scores.log_probs.tolist(), strict=True)
        return [(decode([token]), log_prob) for token, log_prob in pairs]
