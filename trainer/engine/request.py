"""The engine's requests, their limits and its answers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from parallel.errors import Fault, UserError
from trainer.engine.media import Medium

Finish = Literal["stop", "length", "abort"]
MOST_ALTERNATIVES: Final = 20
MOST_PENALTY, MOST_BIAS = 2.0, 100.0  # as OpenAI limits them


class RequestError(UserError, ValueError):
    """A request that the engine cannot serve. `where` is the field of `Request` or `Sampling`."""


@dataclass(frozen=True)
class Sampling:
    """The way tokens are drawn: penalties and biases, temperature, then top_k, then top_p of what that leaves, then
    min_p. None of it changes log-probabilities."""

    temperature: float = 1.0  # logits are divided by it; 0: the most likely token, the lowest id where several are
    top_k: int = 0  # draw from the k most likely tokens; 0: from all
    top_p: float = 1.0  # draw from the fewest most likely tokens whose probabilities reach this sum
    min_p: float = 0.0  # draw from tokens at least this fraction as likely as the most likely one
    seed: int = 0  # a draw depends on it and on the position alone
    repetition_penalty: float = (
        1.0  # logits of tokens in the prompt or the answer: divided by it above 0, else times it
    )
    presence_penalty: float = 0.0  # subtracted from the logits of tokens in the answer
    frequency_penalty: float = 0.0  # the same, for each time that the token is in the answer
    logit_bias: tuple[tuple[int, float], ...] = ()  # token, what is added to its logit

    @property
    def bends(self) -> bool:
        """Logits are changed before a token is drawn."""
        return bool(self.repetition_penalty != 1 or self.presence_penalty or self.frequency_penalty or self.logit_bias)


@dataclass(frozen=True)
class Request:
    """prompt: token ids, at least one, with a placeholder for each embedding of its media. media: of each kind in the
    order of their placeholders. stop_ids: tokens that end the answer and belong to it. stop: texts that end the
    answer and do not belong to its text. score_prompt: find the log-probabilities of the prompt's tokens too;
    max_tokens may then be 0. alternatives: number of most likely tokens to list at each place, 0 to 20."""

    prompt: Sequence[int]
    max_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    stop_ids: frozenset[int] = frozenset()
    stop: tuple[str, ...] = ()
    score_prompt: bool = False
    alternatives: int = 0
    media: Sequence[Medium] = ()


@dataclass(frozen=True)
class Scores:
    """Log-probabilities at n places, all of the distribution before temperature.

    log_probs: [n] fp32, of the tokens at the places. ids, of_ids: [n, N], the N most likely tokens at each place, the
    most likely first (int64), and their log-probabilities (fp32).
    """

    log_probs: npt.NDArray[np.float32]
    ids: npt.NDArray[np.int64]
    of_ids: npt.NDArray[np.float32]

    def of(self, place: int, alternatives: int) -> Scores:
        """One place, with as many alternatives."""
        at = slice(place, place + 1)
        return Scores(self.log_probs[at], self.ids[at, :alternatives], self.of_ids[at, :alternatives])

    @staticmethod
    def alone(log_probs: Sequence[float]) -> Scores:
        """Log-probabilities without alternatives."""
        places = len(log_probs)
        return Scores(
            np.array(log_probs, np.float32), np.zeros((places, 0), np.int64), np.zeros((places, 0), np.float32)
        )

    @staticmethod
    def join(parts: Sequence[Scores], alternatives: int) -> Scores:
        """One after another. alternatives: N."""
        none = Scores(
            np.zeros(0, np.float32), np.zeros((0, alternatives), np.int64), np.zeros((0, alternatives), np.float32)
        )
        parts = [none, *parts]
        return Scores(
            *(np.concatenate([getattr(part, name) for part in parts]) for name in ("log_probs", "ids", "of_ids"))
        )


class Token(NamedTuple):
    """One token of an answer. log_prob: of the distribution before temperature. text: what can be shown by now, None
    for an engine without a tokenizer. finish: None while the answer continues. alternatives: the most likely tokens at
    its place with their log-probabilities, as many as the request asks for."""

    number: int
    id: int
    log_prob: float
    text: str | None
    finish: Finish | None
    alternatives: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Completion:
    """An answer of G tokens to a prompt of P.

    ids: G token ids, the stop token included. scores: of these tokens, G places. prompt_scores: of the prompt's tokens
    behind the first, P - 1 places; None where the request does not ask for it. routes: [P + G - 1, L, K] uint16, the
    experts of every token that went through the model, in the order of their slots. text: without the stop string; None
    for an engine without a tokenizer. finish: "abort": it was interrupted. reused: tokens of the prompt that were
    cached.
    """

    prompt: tuple[int, ...]
    ids: tuple[int, ...]
    scores: Scores
    prompt_scores: Scores | None
    routes: npt.NDArray[np.uint16]
    text: str | None
    finish: Finish
    reused: int

    @property
    def log_probs(self) -> npt.NDArray[np.float32]:
        """[G] fp32, of the answer's tokens under the distribution before temperature."""
        return self.scores.log_probs


def check(
    request: Request,
    *,
    vocab_size: int,
    context: int,
    cache_tokens: int,
    has_text: bool,
    placeholders: Mapping[str, int] = MappingProxyType({}),
) -> None:
    """Raise RequestError with all faults of a request.

    context: the most tokens of prompt and answer. cache_tokens: that the cache holds. has_text: the engine has a
    tokenizer. placeholders: of each kind of media that the model has a tower for.
    """
    faults = [
        *_faults(request, vocab_size, context, cache_tokens, has_text),
        *_media_faults(request, placeholders),
        *_sampling_faults(request.sampling, vocab_size),
    ]
    if faults:
        raise RequestError(faults)


def _faults(request: Request, vocab_size: int, context: int, cache_tokens: int, has_text: bool) -> Iterator[Fault]:
    prompt, wanted = len(request.prompt), request.max_tokens
    if not prompt:
        yield Fault("the prompt is empty; give at least one token", "prompt", 0, "at least one token")
    unknown = next((token for token in request.prompt if not 0 <= token < vocab_size), None)
    if unknown is not None:
        allowed = f"0 to {vocab_size - 1}"
        yield Fault(f"the prompt has token {unknown}; the model's are {allowed}", "prompt", unknown, allowed)
    least = 0 if request.score_prompt else 1
    if wanted < least:
        remedy = "0 or more" if request.score_prompt else "1 or more, or 0 with score_prompt"
        yield Fault(f"max_tokens={wanted}: use {remedy}", "max_tokens", wanted, remedy)
    elif prompt + wanted > context:
        if (room := context - prompt) > 0:
            remedy = f"{room} or fewer"
            text = f"max_tokens={wanted} with a prompt of {prompt} tokens exceeds the context of {context}"
            yield Fault(f"{text}; use {remedy}", "max_tokens", wanted, remedy)
        else:
            remedy = f"a prompt of at most {context - least} tokens"
            text = f"a prompt of {prompt} tokens leaves no room for an answer in the context of {context}; use {remedy}"
            yield Fault(text, "prompt", prompt, remedy)
    elif prompt + wanted > cache_tokens:
        text = f"{prompt + wanted} tokens do not fit into the cache of {cache_tokens}; raise cache_tokens"
        yield Fault(text, "cache_tokens", cache_tokens, f"{prompt + wanted} or more")
    most = min(MOST_ALTERNATIVES, vocab_size)
    if not 0 <= request.alternatives <= most:
        remedy = f"0 to {most}"
        text = f"alternatives={request.alternatives}: use {remedy}"
        yield Fault(text, "alternatives", request.alternatives, remedy)
    if request.stop and not has_text:
        yield Fault("stop texts need an engine with a tokenizer; use stop_ids", "stop", request.stop, "stop_ids")
    if "" in request.stop:
        yield Fault("an empty stop text ends every answer; leave it out", "stop", "", "texts of one character or more")


def _media_faults(request: Request, placeholders: Mapping[str, int]) -> Iterator[Fault]:
    for kind in {medium.kind: None for medium in request.media if medium.kind not in placeholders}:
        allowed = tuple(placeholders) or "text alone"
        text = f"the request has a medium of the kind {kind}, and this model no tower for it; use {allowed}"
        yield Fault(text, "media", kind, allowed)
    for kind, token in placeholders.items():
        count = sum(one == token for one in request.prompt)
        tokens = sum(medium.tokens for medium in request.media if medium.kind == kind)
        if count != tokens:
            text = f"the prompt has {count} placeholders ({token}) of {kind}s, whose embeddings are {tokens}"
            yield Fault(f"{text}; use {tokens}", "media", count, tokens)


def _sampling_faults(sampling: Sampling, vocab_size: int) -> Iterator[Fault]:
    biases = all(0 <= token < vocab_size and -MOST_BIAS <= bias <= MOST_BIAS for token, bias in sampling.logit_bias)
    penalties = "a number from -2 to 2"
    for name, fits, allowed in (
        ("temperature", 0 <= sampling.temperature < math.inf, "a number of 0 or more"),
        ("top_k", sampling.top_k >= 0, "a whole number of 0 or more"),
        ("top_p", 0 < sampling.top_p <= 1, "a number above 0 and at most 1"),
        ("min_p", 0 <= sampling.min_p <= 1, "a number from 0 to 1"),
        ("repetition_penalty", 0 < sampling.repetition_penalty < math.inf, "a number above 0"),
        ("presence_penalty", -MOST_PENALTY <= sampling.presence_penalty <= MOST_PENALTY, penalties),
        ("frequency_penalty", -MOST_PENALTY <= sampling.frequency_penalty <= MOST_PENALTY, penalties),
        ("logit_bias", biases, f"tokens from 0 to {vocab_size - 1} with numbers from -100 to 100"),
        ("seed", -(2**63) <= sampling.seed < 2**63, "a whole number of 64 bits"),
    ):
        if not fits:
            value: Any = getattr(sampling, name)
            yield Fault(f"{name}={value}: use {allowed}", name, value, allowed)
