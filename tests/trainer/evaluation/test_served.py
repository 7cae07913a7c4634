"""Servers: refusals because of the context, and log-probabilities that are none."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import pytest

from tests.servers import Handler, QuietServer, serving
from trainer.chat.server import ServerError
from trainer.evaluation.asked import Failure
from trainer.evaluation.contexts import exceeds_context
from trainer.evaluation.perplexity import Passage, PassageScore, is_log_prob
from trainer.evaluation.served import ServedModel

# as servers write them: octavo serve, OpenAI, vLLM, SGLang and LMDeploy
EXCEEDS = [
    {"error": {"message": "max_tokens=9 with a prompt of 5 tokens exceeds the context of 8; use 3 or fewer"}},
    {"error": {"message": "max_completion_tokens=9 with a prompt of 5 tokens exceeds the context of 8; use 3"}},
    {"error": {"message": "a prompt of 9 tokens leaves no room for an answer in the context of 8; use ..."}},
    {"error": {"message": "Too long.", "code": "context_length_exceeded", "param": "messages"}},
    {"error": {"message": "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens "
                          "(4000 in the messages, 1000 in the completion).", "type": "BadRequestError", "code": 400}},
    {"object": "error", "message": "This model's maximum context length is 4096 tokens. However, ...", "code": 400},
    {"error": {"message": "'max_tokens' or 'max_completion_tokens' is too large: 40. This model's maximum context "
                          "length is 32 tokens and your request has 30 input tokens (40 > 32 - 30).", "code": 400}},
    {"error": {"message": "The decoder prompt (length 5951) is longer than the maximum model length of 4096. Make"}},
    {"object": "error", "message": "The input (9 tokens) is longer than the model's context length (8 tokens)."},
    {"object": "error", "message": "Requested token count exceeds the model's maximum context length of 8 tokens. You"},
    {"message": "Input length (9) must be smaller than the model context length (8).", "code": 400},
    {"message": "The request exceeds the model context length.", "code": 400},
]  # fmt: skip
OTHERS = [
    {"error": {"message": "the chat template has no role context"}},
    {"error": {"message": "context is not a field of this request", "param": "context"}},
    {"error": {"message": "the context deadline was exceeded"}},
    {"error": {"message": None, "code": 400}},
    {"error": "This model's maximum context length is 8 tokens"},
    [{"message": "The request exceeds the model context length."}],
    "context",
]


@pytest.mark.parametrize("body", EXCEEDS)
def test_refusals_because_of_the_context_are_known(body: Any) -> None:
    reply = json.dumps(body).encode()
    assert exceeds_context(ServerError("", again=False, status=400, reply=reply))
    assert not exceeds_context(ServerError("", again=True, status=500, reply=reply))


@pytest.mark.parametrize("body", OTHERS)
def test_other_refusals_that_name_a_context_are_not(body: Any) -> None:
    assert not exceeds_context(ServerError("context", again=False, status=400, reply=json.dumps(body).encode()))


def test_a_reply_that_is_not_json_is_not_either() -> None:
    for reply in (b"", b"<html>context</html>", b'{"error": {"code": "context_length_exceeded"'):
        assert not exceeds_context(ServerError("context", again=False, status=400, reply=reply))


class Completions(Handler):
    """Replies with `reply` of the server to each completion."""

    def do_GET(self) -> None:
        self.send({"data": [{"id": "m"}]})

    def do_POST(self) -> None:
        self.body()
        status, reply = self.server.reply  # type: ignore[attr-defined]
        self.send(reply, status)


@pytest.fixture(scope="module")
def server() -> Iterator[QuietServer]:
    with serving(QuietServer(Completions)) as made:
        yield made


@pytest.fixture(scope="module")
def model(server: QuietServer) -> Iterator[ServedModel]:
    made = ServedModel(server.url, retries=0)
    yield made
    made.stop()
    made.close()


def scored(server: QuietServer, model: ServedModel, reply: Any, status: int = 200) -> PassageScore | Failure:
    server.reply = status, reply  # type: ignore[attr-defined]
    ((_, found),) = model.score([Passage("a/1", "a", "some text")])
    return found


def completion(log_probs: list[Any], text: str = "some text", tokens: int | None = None) -> dict[str, Any]:
    count = len(log_probs) if tokens is None else tokens
    return {"choices": [{"text": text, "logprobs": {"token_logprobs": log_probs, "tokens": ["t"] * count}}]}


def test_log_probabilities_of_a_text(server: QuietServer, model: ServedModel) -> None:
    assert scored(server, model, completion([None, -1.5, 0, -0.25])) == PassageScore(1.75, 3, 9)
    assert scored(server, model, completion([None])) == PassageScore(0, 0, 9)


@pytest.mark.parametrize(
    "reply",
    [
        completion([None, math.nan]), completion([None, -math.inf]), completion([None, 0.5]), completion([None, None]),
        completion([None, "-1"]), completion([None, True]), completion([None, -1], tokens=3), completion([]),
        completion([None, -1, -2], text="some text more"), completion([-1], text=" more"),
        completion([None, -1], text=""),
        {"choices": [{"text": "some text", "logprobs": None}]}, {"choices": []}, {},
    ],
)  # fmt: skip
def test_what_is_not_a_log_probability_of_the_text_is_a_failure(
    server: QuietServer, model: ServedModel, reply: Any
) -> None:
    found = scored(server, model, reply)
    assert isinstance(found, Failure)
    assert not found.final


def test_a_text_beyond_the_context_is_a_final_failure(server: QuietServer, model: ServedModel) -> None:
    found = scored(server, model, EXCEEDS[2], 400)
    assert isinstance(found, Failure)
    assert found.final
    other = scored(server, model, OTHERS[0], 400)
    assert isinstance(other, Failure)
    assert not other.final


def test_log_probabilities_are_numbers_up_to_0() -> None:
    assert all(map(is_log_prob, (0, -3, -0.5, 1e-7)))
    assert not any(map(is_log_prob, (0.5, math.nan, -math.inf, None, False, "-1")))


def test_fields_that_are_left_out_are_part_of_the_key(server: QuietServer) -> None:
    made = [ServedModel(server.url, omit=omit) for omit in ((), ("seed", "top_k"), ("top_k", "seed"), ("seed",))]
    for one in made:
        one.stop()
        one.close()
    plain, both, same, seed = (one.identity for one in made)
    assert both == same
    assert len({json.dumps(identity, sort_keys=True) for identity in (plain, both, seed)}) == 3
