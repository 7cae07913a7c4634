"""The engine's requests, their limits and its answers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from parallel.errors import Fault, UserError

Finish = Literal["stop", "length"]


class RequestError(UserError, ValueError):
    """A request that the engine cannot serve. `where` is the field of `Request` or `Sampling`."""


@dataclass(frozen=True)
class Sampling:
    """The way tokens are drawn: temperature, then top_k, then top_p of what that leaves, then min_p."""

    temperature: float = 1.0  # logits are divided by it; 0: the most likely token, the lowest id where several are
    top_k: int = 0  # draw from the k most likely tokens; 0: from all
    top_p: float = 1.0  # draw from the fewest most likely tokens whose probabilities reach this sum
    min_p: float = 0.0  # draw from tokens at least this fraction as likely as the most likely one
    seed: int = 0  # a draw depends on it and on the position alone


@dataclass(frozen=True)
class Request:
    """prompt: token ids, at least one. stop_ids: tokens that end the answer and belong to it. stop: texts that end the
    answer and do not belong to its text."""

    prompt: Sequence[int]
    max_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    stop_ids: frozenset[int] = frozenset()
    stop: tuple[str, ...] = ()


class Token(NamedTuple):
    """One token of an answer. log_prob: of the distribution before temperature. text: what can be shown by now, None
    for an engine without a tokenizer. finish: None while the answer continues."""

    number: int
    id: int
    log_prob: float
    text: str | None
    finish: Finish | None


@dataclass(frozen=True)
class Completion:
    """An answer of G tokens to a prompt of P.

    ids: G token ids, the stop token included. log_probs: [G] fp32, of the distribution before temperature. routes:
    [P + G - 1, L, K] uint16, the experts of every token that went through the model, in the order of their slots. text:
    without the stop string; None for an engine without a tokenizer. reused: tokens of the prompt that were cached.
    """

    prompt: tuple[int, ...]
    ids: tuple[int, ...]
    log_probs: npt.NDArray[np.float32]
    routes: npt.NDArray[np.uint16]
    text: str | None
    finish: Finish
    reused: int


def check(request: Request, *, vocab_size: int, context: int, cache_tokens: int, has_text: bool) -> None:
    """Raise RequestError with all faults of a request.

    context: the most tokens of prompt and answer. cache_tokens: that the cache holds. has_text: the engine has a
    tokenizer.
    """
    if faults := [*_faults(request, vocab_size, context, cache_tokens, has_text), *_sampling_faults(request.sampling)]:
        raise RequestError(faults)


def _faults(request: Request, vocab_size: int, context: int, cache_tokens: int, has_text: bool) -> Iterator[Fault]:
    prompt, wanted = len(request.prompt), request.max_tokens
    if not prompt:
        yield Fault("the prompt is empty; give at least one token", "prompt", 0, "at least one token")
    unknown = next((token for token in request.prompt if not 0 <= token < vocab_size), None)
    if unknown is not None:
        allowed = f"0 to {vocab_size - 1}"
        yield Fault(f"the prompt has token {unknown}; the model's are {allowed}", "prompt", unknown, allowed)
    if wanted < 1:
        yield Fault(f"max_tokens={wanted}: use 1 or more", "max_tokens", wanted, "1 or more")
    elif prompt + wanted > context:
        if (room := context - prompt) > 0:
            remedy = f"{room} or fewer"
            text = f"max_tokens={wanted} with a prompt of {prompt} tokens exceeds the context of {context}"
            yield Fault(f"{text}; use {remedy}", "max_tokens", wanted, remedy)
        else:
            remedy = f"a prompt of at most {context - 1} tokens"
            text = f"a prompt of {prompt} tokens leaves no room for an answer in the context of {context}; use {remedy}"
            yield Fault(text, "prompt", prompt, remedy)
    elif prompt + wanted > cache_tokens:
        text = f"{prompt + wanted} tokens do not fit into the cache of {cache_tokens}; raise cache_tokens"
        yield Fault(text, "cache_tokens", cache_tokens, f"{prompt + wanted} or more")
    if request.stop and not has_text:
        yield Fault("stop texts need an engine with a tokenizer; use stop_ids", "stop", request.stop, "stop_ids")
    if "" in request.stop:
        yield Fault("an empty stop text ends every answer; leave it out", "stop", "", "texts of one character or more")


def _sampling_faults(sampling: Sampling) -> Iterator[Fault]:
    def fault(name: str, fits: bool, allowed: str) -> Iterator[Fault]:
        value: Any = getattr(sampling, name)
        if not fits:
            yield Fault(f"{name}={value}: use {allowed}", name, value, allowed)

    yield from fault("temperature", 0 <= sampling.temperature < math.inf, "a number of 0 or more")
    yield from fault("top_k", sampling.top_k >= 0, "a whole number of 0 or more")
    yield from fault("top_p", 0 < sampling.top_p <= 1, "a number above 0 and at most 1")
    yield from fault("min_p", 0 <= sampling.min_p <= 1, "a number from 0 to 1")
    yield from fault("seed", -(2**63) <= sampling.seed < 2**63, "a whole number of 64 bits")
