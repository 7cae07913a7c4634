"""Limits of what captions may cost, kept before a request is sent."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from math import inf

from trainer.corpora.captions.describe.captioner import Endpoint


@dataclass(frozen=True)
class Cost:
    requests: int = 0
    tokens: int = 0
    money: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.requests + other.requests, self.tokens + other.tokens, self.money + other.money)

    def __sub__(self, other: Cost) -> Cost:
        return Cost(self.requests - other.requests, self.tokens - other.tokens, self.money - other.money)


def cost_of(endpoint: Endpoint, tokens_in: int | None, tokens_out: int | None) -> Cost:
    """The cost of one answered request. An answer whose tokens the server does not count costs `max_tokens`."""
    tokens_in, tokens_out = tokens_in or 0, endpoint.max_tokens if tokens_out is None else tokens_out
    money = (tokens_in * endpoint.price_in + tokens_out * endpoint.price_out) / 1e6
    return Cost(1, tokens_in + tokens_out, money)


@dataclass
class Budget:
    """The most that all starts of a corpus may ask for: requests that were answered, tokens of prompts and answers, and
    money by the endpoints' prices; and the seconds of this start.

    A request is reserved at the cost of the longest answer and of the longest prompt so far, so the limits hold but for
    the prompts of the first requests side by side. `spent` starts with what the ledgers have.
    """

    requests: float = inf
    tokens: float = inf
    money: float = inf
    seconds: float = inf
    spent: Cost = field(default_factory=Cost)
    reserved: Cost = field(default_factory=Cost)
    _longest_prompt: int = 0
    _started: float = field(default_factory=time.monotonic)

    def late(self) -> bool:
        return time.monotonic() - self._started >= self.seconds

    def reserve(self, endpoint: Endpoint) -> Cost | None:
        """Reserve one request, and return its cost; None where a limit does not allow for it."""
        cost = cost_of(endpoint, self._longest_prompt, endpoint.max_tokens)
        total = self.spent + self.reserved + cost
        if total.requests > self.requests or total.tokens > self.tokens or total.money > self.money:
            return None
        self.reserved += cost
        return cost

    def settle(self, reserved: Cost, spent: Cost, tokens_in: int | None) -> None:
        """Replace a reservation by what the request has cost."""
        self.reserved -= reserved
        self.spent += spent
        self._longest_prompt = max(self._longest_prompt, tokens_in or 0)
