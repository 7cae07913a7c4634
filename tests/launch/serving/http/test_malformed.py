"""Malformed and oversized requests: each gets 4xx with a reason in OpenAI's shape, and changes nothing.

The table is made from what each kind of request takes: wrong types and ranges for every field, bodies that are not
JSON, wrong headers, and more than the limits allow.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
from starlette.requests import Request
from starlette.testclient import TestClient

from launch.serving.http import bodies
from launch.serving.http.errors import ApiError
from launch.serving.http.model import Limits
from tests.launch.serving import tiny_server
from tests.launch.serving.tiny_server import CONTEXT, NAME, VOCABULARY
from tests.trainer.chat.templates import FAMILIES

COMPLETIONS, CHAT, GENERATE, ABORT = "/v1/completions", "/v1/chat/completions", "/generate", "/abort_request"
QUESTION = [{"role": "user", "content": "kalo"}]
GOOD: dict[str, dict[str, Any]] = {
    COMPLETIONS: {"prompt": "kalo"}, CHAT: {"messages": QUESTION}, GENERATE: {"prompt": "kalo"},
    ABORT: {"abort_all": False, "session_id": 3},
}  # fmt: skip
BODY = 20_000


class Case(NamedTuple):
    """param: the field that the error names; None where it is not checked."""

    path: str
    body: Any
    param: str | None = None
    status: int = 400
    headers: Mapping[str, str] = MappingProxyType({})
    method: str = "POST"

    @property
    def label(self) -> str:
        return f"{self.path} {str(self.body)[:80]} {dict(self.headers) or ''}"


NOT_A_NUMBER: list[Any] = ["1", [], {}, True]
NOT_WHOLE: list[Any] = [*NOT_A_NUMBER, 1.5]
NOT_A_FLAG: list[Any] = [1, "true", []]
NOT_A_TEXT: list[Any] = [1, ["a"], {}]
# field -> values that no kind of request takes
EVERYWHERE: dict[str, list[Any]] = {
    "temperature": [*NOT_A_NUMBER, -0.1], "top_p": [*NOT_A_NUMBER, 0, 1.1, -1], "top_k": NOT_WHOLE,
    "min_p": [*NOT_A_NUMBER, -0.1, 1.5], "seed": [*NOT_WHOLE, 2**63, -(2**63) - 1],
    "stop": [1, [""], "", [1], {}, ["a"] * 17], "stop_token_ids": [1, ["a"], [1.5]], "stream": NOT_A_FLAG,
    "ignore_eos": NOT_A_FLAG, "max_tokens": [*NOT_WHOLE, -1, CONTEXT, 10**9], "repetition_penalty": [0, -1, "1"],
    "no_such_field": [1],
}  # fmt: skip
OPENAI: dict[str, list[Any]] = {
    "n": [*NOT_WHOLE, 0, -1, bodies.MOST_ANSWERS + 1, 10**6], "presence_penalty": [2.5, "0"],
    "frequency_penalty": [-2.1, []], "model": NOT_A_TEXT,
    "logit_bias": [{"a": 1.0}, {"-1": 1.0}, {str(VOCABULARY): 1.0}, {"5": 101.0}, 5],
    "stream_options": [1, {"include_usage": 1}, {"other": True}],
}  # fmt: skip
ITS_OWN: dict[str, dict[str, list[Any]]] = {
    COMPLETIONS: {
        "prompt": [None, 1, {}, [], [[]], [[1], []], [1, "a"], ["a", 1], [1.5], [True], [None], [["a"]], [[1], "a"],
                   [VOCABULARY], [-1], [[5], [VOCABULARY]], [2**70], "kalo " * CONTEXT, [5] * (CONTEXT + 1),
                   ["kalo"] * 99],
        "logprobs": [*NOT_WHOLE, -1, 21], "echo": NOT_A_FLAG, "best_of": [3, "1"], "suffix": ["a", 1],
        "max_tokens": [0], "messages": [QUESTION],
    },
    CHAT: {
        "messages": [None, [], "kalo", 1, {}, [1], [[]], [{}], [{"role": "user"}], [{"content": "a"}],
                     [{"role": "neighbour", "content": "a"}], [{"role": 1, "content": "a"}],
                     [{"role": "user", "content": 1}], [{"role": "user", "content": {"type": "text"}}],
                     [{"role": "user", "content": [{"type": "text"}]}],
                     [{"role": "user", "content": [{"type": "video_url", "video_url": {"url": "x"}}]}],
                     [{"role": "user", "content": "a", "tool_calls": [{"function": {"name": "f"}}]}],
                     [*QUESTION, {"role": "assistant", "tool_calls": 1}],
                     [*QUESTION, {"role": "assistant", "tool_calls": [1]}],
                     [*QUESTION, {"role": "assistant", "tool_calls": [{"function": {}}]}],
                     [*QUESTION, {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}],
                     [*QUESTION, {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[]"}}]}],
                     [{"role": "user", "content": "kalo " * CONTEXT}]],
        "tools": [1, "a", {}, [1], [{}], [{"type": "function"}], [{"type": "function", "function": {"name": 1}}],
                  [{"type": "code"}]],
        "tool_choice": ["required", {"type": "function", "function": {"name": "f"}}, 1],
        "max_completion_tokens": [*NOT_WHOLE, 0, -1, CONTEXT], "max_tokens": [0], "logprobs": NOT_A_FLAG,
        "top_logprobs": [*NOT_WHOLE, -1, 21, 3], "chat_template_kwargs": [1, [], {"messages": []}, {"tools": 1}],
        "enable_thinking": NOT_A_FLAG, "response_format": [1, {"type": "json_object"}, {"type": "json_schema"}],
        "reasoning_effort": NOT_A_TEXT, "prompt": ["kalo"], "parallel_tool_calls": NOT_A_FLAG,
    },
    GENERATE: {
        "prompt": [None, "", 1, ["kalo"], "kalo " * CONTEXT], "input_ids": [[5]], "return_logprob": NOT_A_FLAG,
        "return_routed_experts": NOT_A_FLAG, "include_stop_str_in_output": NOT_A_FLAG, "max_tokens": [0],
        "session_id": [-2, "1", 1.5], "image_data": ["data:image/png;base64,AAAA"], "mm_processor_kwargs": [{"a": 1}],
        "top_logprobs_num": [*NOT_WHOLE, -1, 2], "logprob_start_len": [*NOT_WHOLE, -2, 0], "repetition_ngram_size": [3],
        "repetition_ngram_threshold": [1, "1"],
    },
    ABORT: {"abort_all": NOT_A_FLAG, "session_id": [None, -1, "1", 1.5], "other": [1]},
}  # fmt: skip
NOT_JSON = [
    b"", b"{", b"kalo", b"\xff\xfe", b'{"prompt": "kalo"', b'{"prompt": "\xff"}', b"{'prompt': 'kalo'}", b"[" * 5000,
    b'{"prompt": "kalo", "temperature": NaN}', b'{"prompt": "kalo", "temperature": Infinity}', b'{"prompt": "\\ud800"}',
    b'{"prompt": "kalo", "prompt": "kalo"}', b'{"prompt": "kalo", "top_p": 1e999}', b"[1]", b"1", b'"kalo"', b"null",
    b'{"prompt": "kalo", "seed": ' + b"9" * 6000 + b"}", b'{"prompt": "kalo"} {}',
]  # fmt: skip
JSON_TYPE = {"Content-Type": "application/json"}


def cases() -> Iterator[Case]:
    for path, good in GOOD.items():
        common = {} if path == ABORT else EVERYWHERE | (OPENAI if path in (COMPLETIONS, CHAT) else {})
        for fields in (common, ITS_OWN[path]):
            for name, values in fields.items():
                yield from (Case(path, good | {name: value}, name) for value in values)
        yield from (Case(path, {name: good[name] for name in good if name != left}) for left in good if path != ABORT)
        yield from (Case(path, raw) for raw in NOT_JSON)
        for content_type in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
            yield Case(path, good, None, 415, {"Content-Type": content_type})
        yield Case(path, good | {"user": "x" * BODY}, None, 413)
        yield Case(path, good, None, 405, method="GET")
        yield Case(path, good, None, 405, method="PUT")
        yield Case(path, good, None, 401, {"Authorization": "Bearer wrong"})
        yield Case(path, good, None, 401, {"Authorization": "Basic secret"})
        yield Case(path, good, None, 401, {"Authorization": ""})
    for path in (COMPLETIONS, CHAT):
        yield Case(path, GOOD[path] | {"model": "another"}, "model", 404)
    several = {"tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}]}
    yield Case(CHAT, GOOD[CHAT] | several | {"parallel_tool_calls": False}, "parallel_tool_calls")
    yield Case(COMPLETIONS, GOOD[COMPLETIONS] | {"echo": True, "logprobs": 1, "stream": True}, "stream")
    scores = GOOD[GENERATE] | {"return_logprob": True}
    yield Case(GENERATE, scores | {"top_logprobs_num": 21}, "top_logprobs_num")
    yield Case(GENERATE, scores | {"logprob_start_len": 0}, "logprob_start_len")
    yield Case(GENERATE, scores | {"logprob_start_len": CONTEXT, "max_tokens": 0}, "logprob_start_len")
    yield Case(GENERATE, scores | {"max_tokens": 0}, "max_tokens")
    yield Case("/v1/models/another", None, "model", 404, method="GET")
    for path in ("/", "/v1", "/v1/completion", "/v1/chat", "/v1/embeddings", "/../etc/passwd", "/generate/x"):
        yield Case(path, None, None, 404, method="GET")


@pytest.fixture(scope="module")
def server():
    return tiny_server.served(most=8, limits=Limits(body=BODY), template=FAMILIES["qwen3"].text)


@pytest.fixture(scope="module")
def client(server) -> Iterator[TestClient]:
    with tiny_server.client(server, key="secret") as made:
        made.headers["Authorization"] = "Bearer secret"
        yield made


def send(client: TestClient, case: Case):
    content = case.body if isinstance(case.body, bytes) else json.dumps(case.body).encode()
    return client.request(case.method, case.path, content=content, headers={**JSON_TYPE, **case.headers})


def test_each_gets_a_reason_and_changes_nothing(client, server):
    table = [*cases()]
    assert len(table) >= 200
    body = {"model": NAME, "prompt": "a text about", "temperature": 0, "max_tokens": 5}
    before, submitted = client.post(COMPLETIONS, json=body).json()["choices"], server.worker.engine._submitted
    wrong = []
    for case in table:
        answer = send(client, case)
        found = answer.json().get("error") if answer.headers.get("content-type") == "application/json" else None
        named = found and (
            case.param is None or (found["param"] or "").partition("[")[0].partition(".")[0] == case.param
        )
        if answer.status_code != case.status or not found or len(found["message"]) < 10 or not named:
            wrong.append((case.label, case.status, answer.status_code, answer.text[:300]))
    assert not wrong, "\n".join(map(str, wrong))
    engine = server.worker.engine
    assert (engine._submitted, engine.unfinished, server.worker.pending) == (submitted, 0, 0)
    assert client.post(COMPLETIONS, json=body).json()["choices"] == before


def test_what_the_table_starts_from_is_answered(client):
    for path, good in GOOD.items():
        assert client.post(path, json=good | ({} if path == ABORT else {"max_tokens": 2})).status_code == 200


def test_a_body_without_a_length_is_cut_at_the_limit(client):
    read = 0

    def endless() -> Iterator[bytes]:
        nonlocal read
        yield b'{"prompt": "'
        for _ in range(1000):
            read += 1
            yield b"x" * 1000

    answer = client.post(COMPLETIONS, content=endless(), headers=JSON_TYPE)
    assert answer.status_code == 413


def test_a_body_that_does_not_arrive_is_given_up(monkeypatch):
    monkeypatch.setattr(bodies, "READ_SECONDS", 0.05)

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(60)
        raise AssertionError

    async def read() -> None:
        scope = {"type": "http", "method": "POST", "headers": [(b"content-type", b"application/json")]}
        await bodies.read(Request(scope, receive), bodies.Completion, most=BODY)

    with pytest.raises(ApiError) as caught:
        asyncio.run(read())
    assert caught.value.status == 408


def test_other_names_of_the_server_are_refused(server):
    with tiny_server.client(tiny_server.served(), hosts=("localhost", "127.0.0.1")) as made:
        assert made.get("/health", headers={"Host": "localhost:8000"}).status_code == 200
        answer = made.get("/health", headers={"Host": "evil.example:8000"})
    assert answer.status_code == 421
    assert "evil.example" in answer.json()["error"]["message"]


def test_health_needs_no_token(client):
    assert client.get("/health", headers={"Authorization": ""}).json()["status"] == "ok"
