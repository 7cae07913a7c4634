"""/v1/chat/completions, with answers that the model is made to give."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from starlette.testclient import TestClient

from tests.launch.serving import tiny_server
from tests.launch.serving.tiny_server import NAME
from tests.trainer.chat.templates import FAMILIES
from trainer.engine import engine as engine_module
from trainer.engine.request import Sampling

URL = "/v1/chat/completions"
QUESTION = [{"role": "user", "content": "kalo?"}]
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
CALL = '<tool_call>\n{"name": "look", "arguments": {"at": 1.50}}\n</tool_call>'


@pytest.fixture(scope="module")
def server():
    return tiny_server.served(template=FAMILIES["qwen3"].text)


@pytest.fixture(scope="module")
def client(server) -> Iterator[TestClient]:
    with tiny_server.client(server) as made:
        yield made


@pytest.fixture
def says(server, monkeypatch):
    """Make the model answer with a text and the end of its turn."""

    def make(text: str) -> None:
        tokenizer = server.tokenizer
        ids = [*tokenizer.encode(text), tokenizer.id_of("<|im_end|>")]
        starts: dict[int, int] = {}  # of answers, by their seeds

        def draw(logits: torch.Tensor, how: list[Sampling], positions: list[int]) -> torch.Tensor:
            drawn = [ids[at - starts.setdefault(one.seed, at)] for one, at in zip(how, positions, strict=True)]
            return torch.tensor(drawn)

        monkeypatch.setattr(engine_module, "draw", draw)

    return make


def ask(client: TestClient, **body: Any) -> dict[str, Any]:
    answer = client.post(URL, json={"model": NAME, "messages": QUESTION, **body})
    assert answer.status_code == 200, answer.text
    return answer.json()


def deltas(client: TestClient, **body: Any) -> list[dict[str, Any]]:
    with client.stream("POST", URL, json={"messages": QUESTION, "stream": True, **body}) as answer:
        lines = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


def test_the_prompt_is_that_of_the_template(client, server, monkeypatch):
    asked = tiny_server.watched(server, monkeypatch)
    messages = [{"role": "developer", "content": [{"type": "text", "text": "Be short."}]}, *QUESTION]
    ask(client, messages=messages, max_tokens=2, tools=[TOOL], seed=1, chat_template_kwargs={"enable_thinking": False})
    template = server.conversation.template
    expected = template.render(
        [{"role": "system", "content": "Be short."}, *QUESTION],
        [TOOL],
        add_generation_prompt=True,
        enable_thinking=False,
    )
    assert server.tokenizer._bpe.decode([*asked[0].prompt], skip_special_tokens=False) == expected
    assert server.tokenizer.id_of("<|im_end|>") in asked[0].stop_ids
    assert asked[0].max_tokens == 2
    ask(client, messages=QUESTION, max_completion_tokens=3, tools=[TOOL], tool_choice="none", temperature=0)
    assert "look" not in server.tokenizer.decode([*asked[1].prompt])
    assert (asked[1].max_tokens, asked[1].sampling.temperature) == (3, 0)


def test_thinking_text_and_calls_are_apart(client, says):
    says(f"<think>\nso it is\n</think>\n\nI look.\n{CALL}\n{CALL}")
    (choice,) = ask(client, tools=[TOOL])["choices"]
    message = choice["message"]
    assert choice["finish_reason"] == "tool_calls"
    assert (message["reasoning_content"], message["content"]) == ("so it is", "I look.")
    assert [one["function"] for one in message["tool_calls"]] == [{"name": "look", "arguments": '{"at": 1.50}'}] * 2
    assert len({one["id"] for one in message["tool_calls"]}) == 2
    says(f"<think>a</think>{CALL}")
    assert ask(client, tools=[TOOL])["choices"][0]["message"]["content"] is None
    (choice,) = ask(client)["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == (CALL, "stop")
    assert "tool_calls" not in choice["message"]


def test_a_malformed_call_is_text(client, says):
    says(text := '<tool_call>\n{"name": "look", "arguments": {"at": }}\n</tool_call>')
    (choice,) = ask(client, tools=[TOOL])["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == (text, "stop")


def test_a_stream_has_the_same_parts(client, says):
    says(f"<think>\nso it is\n</think>\n\nI look.\n{CALL}\n{CALL}")
    found = deltas(
        client, tools=[TOOL], n=2, seed=0, stream_options={"include_usage": True}, logprobs=True, top_logprobs=2
    )
    usage = found.pop()
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] > 40
    for place in (0, 1):
        choices = [one["choices"][0] for one in found if one["choices"][0]["index"] == place]
        parts = [choice["delta"] for choice in choices]
        assert parts[0]["role"] == "assistant"
        assert "".join(part.get("reasoning_content", "") for part in parts) == "so it is"
        assert "".join(part.get("content") or "" for part in parts) == "I look."
        calls = [call for part in parts for call in part.get("tool_calls", [])]
        written = [(call["index"], call["function"]["arguments"]) for call in calls]
        assert written == [(0, '{"at": 1.50}'), (1, '{"at": 1.50}')]
        assert [choice["finish_reason"] for choice in choices if choice["finish_reason"]] == ["tool_calls"]
        scored = [token for choice in choices if choice["logprobs"] for token in choice["logprobs"]["content"]]
        assert len(scored) == usage["usage"]["completion_tokens"] // 2
        assert {len(token["top_logprobs"]) for token in scored} == {2}


def test_log_probabilities_have_openais_shape(client):
    (choice,) = ask(client, temperature=0, max_tokens=3, logprobs=True, top_logprobs=2)["choices"]
    for token in choice["logprobs"]["content"]:
        assert [*token] == ["token", "bytes", "logprob", "top_logprobs"]
        assert token["logprob"] == token["top_logprobs"][0]["logprob"]  # greedy
        assert bytes(token["bytes"]).decode(errors="replace") == token["token"] or token["token"].startswith("bytes:")


def test_without_a_template_chats_are_refused():
    with tiny_server.client(tiny_server.served()) as bare:
        answer = bare.post(URL, json={"messages": QUESTION})
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "no_chat_template"


def test_marks_that_are_special_tokens_are_shown(monkeypatch):
    monkeypatch.setattr(
        tiny_server, "SPECIAL", (*tiny_server.SPECIAL, "<|action_start|>", "<|plugin|>", "<|action_end|>")
    )
    monkeypatch.setattr(tiny_server, "ADDED", ())
    server = tiny_server.served(template=FAMILIES["internlm"].text)
    text = 'x<|action_start|><|plugin|>\n{"name": "f", "parameters": {}}<|action_end|>'
    ids = server.tokenizer.encode(text)
    assert "<|plugin|>" not in server.tokenizer.decode(ids)
    assert server.conversation.decode(ids) == text


def test_the_openai_client_calls_a_tool(server, says):
    openai = pytest.importorskip("openai")
    says(f"<think>a</think>I look.\n{CALL}")
    with tiny_server.client(tiny_server.served(template=FAMILIES["qwen3"].text)) as made:
        asking = openai.OpenAI(base_url="http://testserver/v1", api_key="none", http_client=made, max_retries=0)
        found = asking.chat.completions.create(model=NAME, messages=QUESTION, tools=[TOOL])
        message = found.choices[0].message
        assert json.loads(message.tool_calls[0].function.arguments) == {"at": 1.5}
        assert message.reasoning_content == "a"
        result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "seen"}
        again = [*QUESTION, message, result]
        assert asking.chat.completions.create(model=NAME, messages=again, tools=[TOOL], max_tokens=5).choices
        with asking.chat.completions.stream(model=NAME, messages=QUESTION, tools=[TOOL]) as stream:
            last = stream.get_final_completion().choices[0]
        assert (last.message.content, last.finish_reason) == ("I look.", "tool_calls")
        assert last.message.tool_calls[0].function.name == "look"
