"""LMDeploy's /generate: token ids, log-probabilities and the experts of every token, for RL and for tests.

    {"text": "...", "output_ids": [...], "meta_info": {"prompt_tokens": 5, "completion_tokens": 3,
     "finish_reason": {"type": "stop"}, "output_token_logprobs": [[-0.1, 17], ...], "routed_experts": [T][layers][k]}}

T = prompt_tokens + completion_tokens - 1: the last token did not go through the model. With
include_stop_str_in_output=false the token that ended the answer is left out of all of these.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any

from launch.serving.http.bodies import Generate as Body
from launch.serving.http.errors import AbortedError, ApiError
from launch.serving.http.model import Served
from launch.serving.http.worker import Answers
from trainer.engine.request import Completion, Request, Token

LENGTH = 128  # of an answer, where max_tokens is not given


@dataclass(frozen=True)
class Asked:
    """A request that was checked."""

    served: Served
    body: Body
    requests: Sequence[Request]

    async def whole(self, answers: Answers) -> dict[str, Any]:
        try:
            (done,) = await answers.finished()
        except AbortedError:
            return self._aborted(answers)
        ids = self._ids(done)
        text = self._text(done)
        log_probs = done.log_probs.tolist()[: len(ids)]
        return self._shape(text, ids, log_probs, len(ids), done)

    async def stream(self, answers: Answers) -> AsyncGenerator[dict[str, Any]]:
        """A chunk for each token; the experts come with the last."""
        sent = ""
        try:
            async for _, token, done in answers:
                assert token is not None
                if done is None:
                    sent += token.text or ""
                    yield self._shape(token.text or "", [token.id], [token.log_prob], len(answers.tokens[0]), None)
                else:
                    last = self._ids(done)[len(done.ids) - 1 :]
                    log_probs = [token.log_prob][: len(last)]
                    yield self._shape(self._text(done)[len(sent) :], last, log_probs, len(self._ids(done)), done)
        except AbortedError:
            found = self._aborted(answers)
            yield {**found, "text": "", "output_ids": []}

    def _ids(self, done: Completion) -> list[int]:
        """The ids of an answer, with the token that ended it or without."""
        ended = done.finish == "stop" and done.ids[-1] in self.requests[0].stop_ids
        return [*done.ids[:-1]] if ended and not self.body.include_stop_str_in_output else [*done.ids]

    def _text(self, done: Completion) -> str:
        text = done.text or ""
        if self.body.include_stop_str_in_output and done.finish == "stop":
            rest = self.served.decode([*done.ids])[len(text) :]
            text += next((stop for stop in self.body.stop or () if rest.startswith(stop)), "")
        return text

    def _shape(
        self, text: str, ids: Sequence[int], log_probs: Sequence[float], generated: int, done: Completion | None
    ) -> dict[str, Any]:
        routes = None
        if done is not None and self.body.return_routed_experts:
            routes = done.routes[: len(done.prompt) + generated - 1].tolist()
        return {
            "text": text,
            "output_ids": [*ids],
            "meta_info": {
                "prompt_tokens": len(self.requests[0].prompt),
                "completion_tokens": generated,
                "finish_reason": None if done is None else {"type": done.finish},
                "output_token_logprobs": self._pairs(ids, log_probs),
                "routed_experts": routes,
            },
        }

    def _pairs(self, ids: Sequence[int], log_probs: Sequence[float]) -> list[list[float]] | None:
        if not self.body.return_logprob:
            return None
        return [[log_prob, token] for token, log_prob in zip(ids, log_probs, strict=True)]

    def _aborted(self, answers: Answers) -> dict[str, Any]:
        tokens: Sequence[Token] = answers.tokens[0]
        ids, text = [token.id for token in tokens], "".join(token.text or "" for token in tokens)
        found = self._shape(text, ids, [token.log_prob for token in tokens], len(ids), None)
        found["meta_info"]["finish_reason"] = {"type": "abort"}
        return found


def ask(served: Served, body: Body) -> Asked:
    """Raises ApiError."""
    if (body.prompt is None) == (body.input_ids is None):
        param = "prompt" if body.prompt is None else "input_ids"
        raise ApiError(400, "give one of prompt and input_ids", param=param)
    prompt = body.input_ids if body.prompt is None else body.prompt
    if not prompt:
        param = "prompt" if body.input_ids is None else "input_ids"
        raise ApiError(400, f"{param} is empty; give at least one token", param=param)
    names = {"prompt": "input_ids"} if body.prompt is None else {}
    wanted = LENGTH if body.max_tokens is None else body.max_tokens
    return Asked(served, body, [served.request(served.ids_of(prompt), body, max_tokens=wanted, names=names)])
