"""/v1/completions against the engine itself and OpenAI's shapes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from starlette.testclient import TestClient

from launch.serving.http import logprobs
from tests.launch.serving import tiny_server
from tests.launch.serving.tiny_server import NAME
from trainer.engine.engine import Engine
from trainer.engine.request import Request, Sampling

PROMPT = "a text about kalo"
URL = "/v1/completions"


@pytest.fixture(scope="module")
def server():
    return tiny_server.served()


@pytest.fixture(scope="module")
def client(server) -> Iterator[TestClient]:
    with tiny_server.client(server) as made:
        yield made


def ask(client: TestClient, **body: Any) -> dict[str, Any]:
    answer = client.post(URL, json={"model": NAME, "prompt": PROMPT, "max_tokens": 12, **body})
    assert answer.status_code == 200, answer.text
    return answer.json()


def chunks(client: TestClient, **body: Any) -> list[dict[str, Any]]:
    with client.stream("POST", URL, json={"prompt": PROMPT, "max_tokens": 12, "stream": True, **body}) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in answer.iter_lines() if line]
    assert lines.pop() == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def directly(server, *requests: Request):
    model = tiny_server.decoder()
    return Engine(model, decode=server.tokenizer.decode, cache_tokens=1024).generate(requests)


def test_an_answer_is_the_engines(client, server):
    prompt = server.ids_of(PROMPT)
    sampled = [Sampling(0.8, 40, 0.9, 0.01, seed) for seed in (7, 8)]
    first, second = directly(server, *(Request(prompt, 12, how, server.source.stop_ids) for how in sampled))
    found = ask(client, temperature=0.8, top_k=40, top_p=0.9, min_p=0.01, seed=7, n=2)
    assert [choice["text"] for choice in found["choices"]] == [first.text, second.text]
    assert [choice["index"] for choice in found["choices"]] == [0, 1]
    assert (found["object"], found["model"]) == ("text_completion", NAME)
    usage = found["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (len(prompt), len(first.ids) + len(second.ids))
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_prompts_of_every_kind_give_the_same(client, server):
    ids = server.ids_of(PROMPT)
    texts = [
        choice["text"]
        for prompt in (PROMPT, [PROMPT, "b"], ids, [ids, [5]])
        for choice in ask(client, prompt=prompt, temperature=0)["choices"][:1]
    ]
    assert len(texts) == 4
    assert len({*texts}) == 1
    assert [one["index"] for one in ask(client, prompt=["a", "b"], n=2)["choices"]] == [0, 1, 2, 3]


def test_a_stream_has_the_whole_answer(client):
    body = {"temperature": 0.9, "seed": 3, "n": 2, "stop": ["zz"]}
    whole = ask(client, **body)
    found = chunks(client, stream_options={"include_usage": True}, **body)
    last = found.pop()
    assert (last["choices"], last["usage"]["total_tokens"]) == ([], whole["usage"]["total_tokens"])
    for choice in whole["choices"]:
        parts = [one["choices"][0] for one in found if one["choices"][0]["index"] == choice["index"]]
        assert "".join(part["text"] for part in parts) == choice["text"]
        assert [part["finish_reason"] for part in parts if part["finish_reason"]] == [choice["finish_reason"]]
    assert {one["id"] for one in found} == {last["id"]}


def test_a_stop_text_ends_an_answer(client):
    whole = ask(client, temperature=0, max_tokens=30)["choices"][0]["text"]
    found = ask(client, temperature=0, max_tokens=30, stop=[whole[5:8]])["choices"][0]
    assert (found["text"], found["finish_reason"]) == (whole[: whole.find(whole[5:8])], "stop")
    assert ask(client, temperature=0, max_tokens=30, stop=whole[5:8])["choices"][0]["text"] == found["text"]


def test_log_probabilities_are_those_of_the_model(client, server):
    """Against a plain forward pass over prompt and answer."""
    ids, model = server.ids_of(PROMPT), tiny_server.decoder()
    (done,) = directly(server, Request(ids, 12, Sampling(0.0), server.source.stop_ids))
    every = torch.tensor([*ids, *done.ids])
    with torch.no_grad():
        state = model(every[None], torch.arange(len(every))[None], torch.tensor([0, len(every)], dtype=torch.int32))
        expected = torch.log_softmax(model.logits(state.hidden[0]), -1)
    found = ask(client, temperature=0, echo=True, logprobs=3)["choices"][0]
    assert found["text"] == PROMPT + done.text
    scores = found["logprobs"]
    assert len(scores["tokens"]) == len(scores["top_logprobs"]) == len(scores["text_offset"]) == len(every)
    assert "".join(scores["tokens"][: len(ids)]) == PROMPT
    assert scores["token_logprobs"][0] is scores["top_logprobs"][0] is None
    for place, token in enumerate(every[1:].tolist()):
        assert scores["token_logprobs"][place + 1] == pytest.approx(expected[place, token].item(), abs=1e-4)
        top, likely = scores["top_logprobs"][place + 1], expected[place].topk(3)
        assert sorted(top.values(), reverse=True)[:3] == pytest.approx(likely.values.tolist(), abs=1e-4)
        assert scores["token_logprobs"][place + 1] in top.values()
    start = scores["text_offset"][3]
    assert found["text"][start : start + len(scores["tokens"][3])] == scores["tokens"][3]


def test_the_text_of_a_token_has_its_bytes(server):
    text = "kalo \u00e4\u6f22\u5b57 <think>x</think>"
    ids = server.tokenizer.encode(text)
    assert b"".join(logprobs.bytes_of(server.tokenizer, token) for token in ids) == text.encode()
    texts = [logprobs.text_of(server.tokenizer, token) for token in server.tokenizer.encode("\u00e4")]
    assert texts == ["bytes:\\xc3", "bytes:\\xa4"]
    found = logprobs.OfCompletion(server.tokenizer).take([(token, -1.0, []) for token in ids])
    for token, offset in zip(found["tokens"], found["text_offset"], strict=True):
        assert token.startswith("bytes:") or text[offset:].startswith(token)


def test_a_prompt_alone_is_scored(client):
    whole = ask(client, temperature=0, echo=True, logprobs=1, max_tokens=1)["choices"][0]["logprobs"]
    (found,) = ask(client, echo=True, logprobs=1, max_tokens=0)["choices"]
    assert found["text"] == PROMPT
    assert found["logprobs"]["token_logprobs"] == whole["token_logprobs"][:-1]
    assert found["logprobs"]["top_logprobs"] == whole["top_logprobs"][:-1]


def test_a_streamed_answer_has_the_same_log_probabilities(client):
    whole = ask(client, temperature=0, logprobs=2)["choices"][0]["logprobs"]
    parts = [one["choices"][0]["logprobs"] for one in chunks(client, temperature=0, logprobs=2)]
    for name, values in whole.items():
        assert [value for part in parts for value in part[name]] == values


@pytest.mark.parametrize("code", ["timeout", "aborted"])
def test_the_openai_client_sends_nothing_twice_that_was_given_up(monkeypatch, code):
    openai = pytest.importorskip("openai")
    server = tiny_server.served(limits=tiny_server.Limits(seconds=0.05))
    watched, ask = tiny_server.watched(server, monkeypatch), server.worker.ask

    def aborted(*args, **more):
        answers = ask(*args, **more)
        server.worker.abort(None)
        return answers

    if code == "aborted":
        monkeypatch.setattr(server.worker, "ask", aborted)
    with tiny_server.client(server) as made:
        asking = openai.OpenAI(base_url="http://testserver/v1", api_key="none", http_client=made, max_retries=2)
        with pytest.raises(openai.BadRequestError) as caught:
            asking.completions.create(model=NAME, prompt=PROMPT, max_tokens=900, extra_body={"ignore_eos": True})
    assert caught.value.code == code
    assert len(watched) == 1


def test_the_openai_client_reads_the_answers(server):
    openai = pytest.importorskip("openai")
    with tiny_server.client(tiny_server.served(), key="secret") as made:
        asking = openai.OpenAI(base_url="http://testserver/v1", api_key="secret", http_client=made, max_retries=0)
        assert [model.id for model in asking.models.list()] == [NAME]
        assert asking.models.retrieve(NAME).id == NAME
        found = asking.completions.create(model=NAME, prompt=PROMPT, max_tokens=6, temperature=0, logprobs=1)
        stream = asking.completions.create(model=NAME, prompt=PROMPT, max_tokens=6, temperature=0, stream=True)
        assert "".join(chunk.choices[0].text for chunk in stream) == found.choices[0].text
        with pytest.raises(openai.NotFoundError) as caught:
            asking.completions.create(model="another", prompt=PROMPT)
        assert caught.value.param == "model"
        wrong = asking.with_options(api_key="wrong")
        with pytest.raises(openai.AuthenticationError):
            wrong.models.list()


@pytest.mark.parametrize(
    "how",
    [{"repetition_penalty": 1.5}, {"presence_penalty": 2.0, "frequency_penalty": 1.0}, {"logit_bias": {"17": 4.0}}],
    ids=str,
)
def test_penalties_change_the_answer_and_not_its_log_probabilities(client, server, how):
    """The answer, scored as a prompt without penalties, has the same numbers."""
    plain = ask(client, temperature=0, max_tokens=12, logprobs=1, ignore_eos=True)["choices"][0]
    found = ask(client, temperature=0, max_tokens=12, logprobs=1, ignore_eos=True, **how)["choices"][0]
    assert found["logprobs"]["tokens"] != plain["logprobs"]["tokens"]
    values = {name: value for name, value in how.items() if name != "logit_bias"}
    bias = tuple((int(token), value) for token, value in how.get("logit_bias", {}).items())
    engine = Engine(tiny_server.decoder(), decode=server.tokenizer.decode, cache_tokens=1024)
    (done,) = engine.generate([Request(server.ids_of(PROMPT), 12, Sampling(0.0, logit_bias=bias, **values))])
    assert found["logprobs"]["token_logprobs"] == done.log_probs.tolist()
    (scored,) = engine.generate([Request([*done.prompt, *done.ids], 0, score_prompt=True)])
    assert scored.prompt_scores is not None
    assert scored.prompt_scores.log_probs[-12:].tolist() == done.log_probs.tolist()
