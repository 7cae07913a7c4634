"""A rollout engine that says what a test wrote, and a tokenizer of single characters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from trainer.engine.request import Request
from trainer.rl.rollout.protocol import Rollout

ALPHABET = "0123456789+-*/=[]|. abcdefghijklmnopqrstuvwxyz:"


@dataclass(frozen=True)
class Characters:
    """eos_id is <end> but at the end of a text; ids beyond the alphabet have characters of it."""

    before: tuple[int, ...] = ()
    eos_id: int = len(ALPHABET)

    def encode(self, text: str) -> list[int]:
        return [*self.before, *map(ALPHABET.index, text)]

    def answer_text(self, ids: Sequence[int]) -> str:
        kept = ids[:-1] if ids and ids[-1] == self.eos_id else ids
        return "".join("<end>" if token == self.eos_id else ALPHABET[token % len(ALPHABET)] for token in kept)


@dataclass
class Scripted:
    """say: ids of the answer to a prompt. Routes number the rows of the call that made them, so that a test sees whose
    they are; log-probabilities are minus the token's id."""

    say: Callable[[tuple[int, ...]], Sequence[int]]
    version: int = 3
    asked: list[list[Request]] = field(default_factory=list)
    abort: bool = False

    def generate(self, requests: Sequence[Request], *, deadline_s: float) -> list[Rollout]:
        self.asked.append([*requests])
        return [self._one(request) for request in requests]

    def _one(self, request: Request) -> Rollout:
        prompt = tuple(request.prompt)
        said = [*self.say(prompt)]
        ids = tuple(said[: request.max_tokens])
        rows, turn = len(prompt) + len(ids) - 1, len(self.asked)
        stopped = bool(ids) and ids[-1] in request.stop_ids
        return Rollout(
            prompt,
            ids,
            np.float32([-token for token in ids]),
            np.full((rows, 2, 2), turn, np.uint16),
            np.full(len(ids), self.version + turn, np.int64),
            "abort" if self.abort else "stop" if stopped else "length",
        )
