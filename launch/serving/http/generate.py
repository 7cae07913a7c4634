"""LMDeploy's /generate: token ids, log-probabilities and the experts of every token, for RL and for tests.

    {"text": "...", "output_ids": [...], "meta_info": {"prompt_tokens": 5, "completion_tokens": 3,
     "finish_reason": {"type": "stop"}, "output_token_logprobs": [[-0.1, 17], ...], "routed_experts": [T][layers][k]}}

`input_token_logprobs`, of the prompt behind its first logprob_start_len + 1 tokens, come with max_tokens=0;
`output_top_logprobs` and `input_top_logprobs` are the top_logprobs_num likeliest pairs at each place.

T = prompt_tokens + completion_tokens - 1: the last token did not go through the model. With
include_stop_str_in_output=false the token that ended the answer is left out of all of these.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any

from launch.serving.http import logprobs
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
        places = logprobs.places_of(done.ids, done.scores)[: len(ids)]
        return self._shape(self._text(done), places, len(ids), done)

    async def stream(self, answers: Answers) -> AsyncGenerator[dict[str, Any]]:
        """A chunk for each token; the experts come with the last."""
        sent = ""
        try:
            async for _, token, done in answers:
                places = [] if token is None else [logprobs.place_of(token)]
                if done is None:
                    text = (token.text or "") if token is not None else ""
                    sent += text
                    yield self._shape(text, places, len(answers.tokens[0]), None)
                else:
                    ids = self._ids(done)
                    places = places[: len(ids) + 1 - len(done.ids)]
                    yield self._shape(self._text(done)[len(sent) :], places, len(ids), done)
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
        self, text: str, places: Sequence[logprobs.Place], generated: int, done: Completion | None
    ) -> dict[str, Any]:
        routes, scored = None, list[logprobs.Place]()
        if done is not None and self.body.return_routed_experts:
            routes = done.routes[: len(done.prompt) + generated - 1].tolist()
        if done is not None and done.prompt_scores is not None:
            scored = logprobs.places_of(done.prompt[1:], done.prompt_scores)[self.body.logprob_start_len or 0 :]
        return {
            "text": text,
            "output_ids": [token for token, _, _ in places],
            "meta_info": {
                "prompt_tokens": len(self.requests[0].prompt),
                "completion_tokens": generated,
                "finish_reason": None if done is None else {"type": done.finish},
                "output_token_logprobs": self._pairs(places),
                "output_top_logprobs": self._top(places),
                "input_token_logprobs": self._pairs(scored) or None,
                "input_top_logprobs": self._top(scored) or None,
                "routed_experts": routes,
            },
        }

    def _pairs(self, places: Sequence[logprobs.Place]) -> list[tuple[float | None, int]] | None:
        if not self.body.return_logprob:
            return None
        return [(log_prob, token) for token, log_prob, _ in places]

    def _top(self, places: Sequence[logprobs.Place]) -> list[list[tuple[float, int]]] | None:
        """The likeliest tokens at each place, the likeliest first."""
        if not self.body.top_logprobs_num:
            return None
        return [[(log_prob, token) for token, log_prob in likely] for _, _, likely in places]

    def _aborted(self, answers: Answers) -> dict[str, Any]:
        tokens: Sequence[Token] = answers.tokens[0]
        text = "".join(token.text or "" for token in tokens)
        found = self._shape(text, [logprobs.place_of(token) for token in tokens], len(tokens), None)
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
    scores = body.logprob_start_len not in (None, -1)
    for param, given in (("top_logprobs_num", body.top_logprobs_num), ("logprob_start_len", scores)):
        if given and not body.return_logprob:
            raise ApiError(400, f"{param} needs return_logprob=true", param=param)
    if scores != (body.max_tokens == 0):
        param = "logprob_start_len" if scores else "max_tokens"
        text = "log-probabilities of the prompt are found with logprob_start_len of 0 or more and max_tokens=0"
        raise ApiError(400, text, param=param)
    ids = served.ids_of(prompt)
    if scores and (body.logprob_start_len or 0) >= len(ids):
        text = f"logprob_start_len={body.logprob_start_len}: the prompt has {len(ids)} tokens; use a smaller one"
        raise ApiError(400, text, param="logprob_start_len")
    names = {"alternatives": "top_logprobs_num", **({"prompt": "input_ids"} if body.prompt is None else {})}
    request = served.request(
        ids,
        body,
        max_tokens=LENGTH if body.max_tokens is None else body.max_tokens,
        score_prompt=scores,
        alternatives=body.top_logprobs_num or 0,
        names=names,
    )
    return Asked(served, body, [request])
