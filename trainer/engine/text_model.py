"""A model, its tokenizer and an engine together, for a few lines of Python (`trainer.api.load`)."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, overload

from parallel.world import World
from trainer.chat.errors import ChatError
from trainer.chat.template import ChatTemplate, Message
from trainer.data.media.readers.recording import Recording
from trainer.engine.engine import Engine
from trainer.engine.load import Source
from trainer.engine.media import Medium
from trainer.engine.ranks import ALONE, Apart
from trainer.engine.request import Completion, Request, Sampling
from trainer.model.exact.check import dependence_warning

LENGTH = 256  # of an answer, where none is asked for

Prompt = str | Sequence[int]


class TextModel:
    """Continues texts, and scores them.

    source: what was opened. engine: what serves the requests; its weights are those of the directory, its towers too.
    world: the ranks that share the experts. With several, every method that generates or scores is collective: each
    rank gives prompts of its own, or none (`complete([])`), and gets their answers.
    """

    def __init__(self, source: Source, world: World, *, cache_tokens: int = 32_768) -> None:
        decode = None if source.tokenizer is None else source.tokenizer.decode
        self.source, self.world = source, world
        model = source.load(world.device, towers=True, ranks=world.size)
        if world.rank == 0 and (dependent := dependence_warning(model)):
            warnings.warn(dependent, stacklevel=3)  # at the call of `trainer.api.load`'s caller
        ranks = Apart(world) if world.size > 1 else ALONE
        self.engine = Engine(model, decode=decode, cache_tokens=cache_tokens, ranks=ranks)

    @overload
    def generate(
        self, prompts: str, max_tokens: int | None = None, *, media: Sequence[Medium] = (), **how: Any
    ) -> str: ...
    @overload
    def generate(
        self,
        prompts: Sequence[Prompt],
        max_tokens: int | None = None,
        *,
        media: Sequence[Sequence[Medium]] = (),
        **how: Any,
    ) -> list[str]: ...
    def generate(
        self, prompts: str | Sequence[Prompt], max_tokens: int | None = None, *, media: Any = (), **how: Any
    ) -> str | list[str]:
        """The text that continues a prompt, or the texts of several.

        Args: as of `complete`; media of one prompt are one list.
        Raises: DataError for prompts that cannot be read, and without a tokenizer. RequestError for what cannot be
            served. Python's TypeError for a name in `how` that is not a field of `Sampling`.
        """
        self.source.require_tokenizer()
        several, of_each = ([prompts], [media]) if isinstance(prompts, str) else (prompts, media)
        found = self.complete(several, max_tokens, media=of_each, **how)
        texts = [answer.text or "" for answer in found]
        return texts[0] if isinstance(prompts, str) else texts

    def complete(
        self,
        prompts: Sequence[Prompt],
        max_tokens: int | None = None,
        *,
        media: Sequence[Sequence[Medium]] = (),
        stop: Sequence[str] = (),
        stop_ids: Collection[int] = (),
        score_prompt: bool = False,
        alternatives: int = 0,
        **how: Any,
    ) -> list[Completion]:
        """Answers with tokens, log-probabilities and routes.

        Args:
            prompts: texts, or lists of token ids.
            max_tokens: the most tokens of an answer; None: 256, or what the context leaves.
            media: of each prompt, from `image` and `signal`; empty: none of them has any. A list of token ids has their
                placeholders already.
            stop, score_prompt, alternatives: as of `Request`. stop_ids: beside those of the directory.
            how: fields of `Sampling`: temperature, top_k, top_p, min_p, seed. Prompts have consecutive seeds.
        """
        first, asked, ends = Sampling(**how), [], self.source.stop_ids.union(stop_ids)
        for number, (prompt, some) in enumerate(zip(prompts, media or [()] * len(prompts), strict=True)):
            ids = self.source.prompt(prompt, some) if isinstance(prompt, str) else [*prompt]
            length = max(1, min(LENGTH, self.engine.context - len(ids))) if max_tokens is None else max_tokens
            sampling = replace(first, seed=first.seed + number)
            asked.append(Request(ids, length, sampling, ends, tuple(stop), score_prompt, alternatives, some))
        return self.engine.generate(asked)

    @cached_property
    def template(self) -> ChatTemplate:
        """The directory's own chat template. Raises ChatError where it has none."""
        return ChatTemplate.load(self.source.path)

    def chat(
        self,
        messages: Sequence[Message],
        max_tokens: int | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        media: Sequence[Medium] = (),
        values: Mapping[str, Any] = MappingProxyType({}),
        **how: Any,
    ) -> str:
        """The assistant's next message in a conversation, as the model writes it: thinking and calls of tools too.

        Args:
            messages: OpenAI messages, such as {"role": "user", "content": "..."}. tools: JSON schemas of functions.
            media: of the parts of messages for which the template writes placeholders, in their order.
            values: further names that the template reads, such as enable_thinking.
            max_tokens, how: as of `complete`.
        Raises: ChatError for a directory without a template, and for messages that it refuses; else as `generate`.
        """
        text = self.template.render(messages, tools, add_generation_prompt=True, **values)
        ids = self.source.prompt(text, media, opening=False)  # the template writes what opens a conversation
        ends = self._ends
        (answer,) = self.complete([ids], max_tokens, media=[media], stop_ids=ends, **how)
        if answer.ids and answer.ids[-1] in ends:  # a mark of the template, which need not be hidden in texts
            return self.source.require_tokenizer().decode([*answer.ids[:-1]])
        return answer.text or ""

    @cached_property
    def _ends(self) -> frozenset[int]:
        """The token that the template writes behind an assistant's message, where it is a mark of its own."""
        tokenizer, answer = self.source.require_tokenizer(), "ANSWER"
        try:
            asked = [{"role": "user", "content": "QUESTION"}, {"role": "assistant", "content": answer}]
            behind = self.template.render(asked).rpartition(answer)[2].lstrip()
        except ChatError:
            return frozenset()
        ids = tokenizer.encode(behind)[len(tokenizer.before) :]
        return frozenset(token for token in ids[:1] if tokenizer.token(token) in tokenizer.added)

    def image(self, given: str | Path | bytes) -> Medium:
        """An image for a prompt, from a file or its bytes. Raises DataError."""
        return self.source.medium("image", Path(given) if isinstance(given, str) else given)

    def signal(self, given: str | Path | bytes | Recording) -> Medium:
        """A signal for a prompt, from a file, its bytes, or a recording. Raises DataError."""
        return self.source.medium("signal", Path(given) if isinstance(given, str) else given)

    def score(self, text: Prompt) -> list[tuple[str, float]]:
        """Each token of a text behind the first, as text, with its log-probability given those before it."""
        (scored,) = self.complete([text], 0, score_prompt=True)
        assert scored.prompt_scores is not None
        decode = self.source.require_tokenizer().decode
        pairs = zip(scored.prompt[1:], scored.prompt_scores.log_probs.tolist(), strict=True)
        return [(decode([token]), log_prob) for token, log_prob in pairs]
