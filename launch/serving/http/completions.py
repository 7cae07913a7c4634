"""OpenAI's /v1/completions."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Any

from launch.serving.http import logprobs
from launch.serving.http.bodies import Completion as Body
from launch.serving.http.errors import ApiError
from launch.serving.http.model import Served
from launch.serving.http.worker import Answers
from trainer.engine.request import Completion, Request

LENGTH = 16  # of an answer, where max_tokens is not given, as OpenAI has it
NAMES = {"alternatives": "logprobs"}


@dataclass(frozen=True)
class Asked:
    """A request that was checked. places of `requests`: the answers to the first prompt, then those to the next.
    texts: of the prompts."""

    served: Served
    body: Body
    requests: Sequence[Request]
    texts: Sequence[str]
    id: str = field(default_factory=lambda: f"cmpl-{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))

    def head(self) -> dict[str, Any]:
        return {"id": self.id, "object": "text_completion", "created": self.created, "model": self.served.name}

    def usage(self, done: Sequence[Completion]) -> dict[str, Any]:
        return usage(done, self.body.answers)

    async def whole(self, answers: Answers) -> dict[str, Any]:
        done = await answers.finished()
        choices = [self._choice(place, one) for place, one in enumerate(done)]
        return {**self.head(), "choices": choices, "usage": self.usage(done)}

    def _choice(self, place: int, done: Completion) -> dict[str, Any]:
        body, tokenizer = self.body, self.served.tokenizer
        before = self.texts[place // body.answers] if body.echo else ""
        found = None
        if body.logprobs is not None:
            places = logprobs.places_of(done.ids, done.scores)
            found = logprobs.OfCompletion(tokenizer).take([*self._prompt_places(done), *places])
        return {"index": place, "text": before + (done.text or ""), "logprobs": found, "finish_reason": done.finish}

    def _prompt_places(self, done: Completion) -> list[logprobs.Place]:
        return logprobs.places_of_prompt(done) if self.body.echo else []

    async def stream(self, answers: Answers) -> AsyncGenerator[dict[str, Any]]:
        """Chunks. With `echo` the prompt is the first of each answer."""
        body, tokenizer = self.body, self.served.tokenizer
        done: dict[int, Completion] = {}
        scores = [logprobs.OfCompletion(tokenizer) for _ in self.requests]
        if body.echo and body.logprobs is None:
            for place in range(len(self.requests)):
                yield self._chunk(place, self.texts[place // body.answers])
        async for place, token, finished in answers:
            text, places = "" if token is None else token.text or "", []
            if token is not None and body.logprobs is not None:
                places = [logprobs.place_of(token)]
            if finished is not None:
                done[place] = finished
            found = None if body.logprobs is None else scores[place].take(places)
            finish = None if finished is None else finished.finish
            if text or places or finish:
                yield self._chunk(place, text, found, finish)
        if body.with_usage:
            yield {**self.head(), "choices": [], "usage": self.usage([done[place] for place in sorted(done)])}

    def _chunk(
        self, place: int, text: str, found: dict[str, Any] | None = None, finish: str | None = None
    ) -> dict[str, Any]:
        return {
            **self.head(),
            "choices": [{"index": place, "text": text, "logprobs": found, "finish_reason": finish}],
        }


def usage(done: Sequence[Completion], answers: int) -> dict[str, Any]:
    """done: `answers` of them to each prompt, which is counted once."""
    prompts = done[::answers]
    prompt, generated = sum(len(one.prompt) for one in prompts), sum(len(one.ids) for one in done)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": generated,
        "total_tokens": prompt + generated,
        "prompt_tokens_details": {"cached_tokens": sum(one.reused for one in prompts)},
    }


def ask(served: Served, body: Body) -> Asked:
    """Raises ApiError."""
    served.require(body.model)
    if body.best_of not in (None, body.answers):
        text = f"best_of={body.best_of}: answers are not ranked here; leave it out, or use n={body.answers}"
        raise ApiError(400, text, param="best_of")
    if body.stream and body.echo and body.logprobs is not None:
        text = "echo with logprobs cannot be streamed: the probabilities of a prompt come with its answer"
        raise ApiError(400, f"{text}; leave out stream", param="stream")
    if body.max_tokens == 0 and not body.echo:
        raise ApiError(400, "max_tokens=0: use 1 or more, or 0 with echo", param="max_tokens")
    prompts = body.prompts
    if len(prompts) * body.answers > served.worker.most:
        text = f"{len(prompts)} prompts with {body.answers} answers each; ask for at most {served.worker.most} in all"
        raise ApiError(400, text, param="prompt")
    # The distribution before a text alone is asked for with max_tokens=0, and with echo the text itself.
    score = bool(body.echo) and (body.logprobs is not None or body.max_tokens == 0)
    requests, texts = [], []
    for prompt in prompts:
        ids = served.ids_of(prompt)
        if body.echo:
            texts.append(prompt if isinstance(prompt, str) else served.tokenizer.decode(ids))
        for number in range(body.answers):
            requests.append(
                served.request(
                    ids,
                    body,
                    max_tokens=LENGTH if body.max_tokens is None else body.max_tokens,
                    number=number,
                    score_prompt=score,
                    alternatives=body.logprobs or 0,
                    names=NAMES,
                )
            )
    return Asked(served, body, requests, texts)
