"""LMDeploy's /generate: ids, log-probabilities and experts as the engine has them, and ending answers from outside."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import torch
from starlette.testclient import TestClient

from launch.serving.http.app import build
from tests.launch.serving import tiny_server
from trainer.engine.engine import Engine
from trainer.engine.request import Completion, Request, Sampling

PROMPT = "a text about kalo"


@pytest.fixture(scope="module")
def server():
    return tiny_server.served()


@pytest.fixture(scope="module")
def client(server) -> Iterator[TestClient]:
    with tiny_server.client(server) as made:
        yield made


def ask(client: TestClient, **body: Any) -> dict[str, Any]:
    answer = client.post("/generate", json={"return_logprob": True, "return_routed_experts": True, **body})
    assert answer.status_code == 200, answer.text
    return answer.json()


def directly(server, **more: Any) -> Completion:
    engine = Engine(tiny_server.decoder(), decode=server.tokenizer.decode, cache_tokens=1024)
    sampling = Sampling(0.9, seed=4)
    (done,) = engine.generate([Request(server.ids_of(PROMPT), 20, sampling, server.source.stop_ids, **more)])
    return done


def test_everything_is_the_engines(client, server):
    done = directly(server)
    asked = {"temperature": 0.9, "seed": 4, "max_tokens": 20, "include_stop_str_in_output": True}
    for prompt in ({"prompt": PROMPT}, {"input_ids": server.ids_of(PROMPT), "session_id": 7}):
        found = ask(client, **prompt, **asked)
        meta = found["meta_info"]
        assert (found["text"], found["output_ids"]) == (done.text, [*done.ids])
        assert meta["output_token_logprobs"] == [[p, i] for i, p in zip(done.ids, done.log_probs.tolist(), strict=True)]
        assert meta["routed_experts"] == done.routes.tolist()
        assert len(meta["routed_experts"]) == meta["prompt_tokens"] + meta["completion_tokens"] - 1
        assert meta["finish_reason"] == {"type": done.finish}
    bare = client.post("/generate", json={"prompt": PROMPT, "max_tokens": 2}).json()["meta_info"]
    assert (bare["output_token_logprobs"], bare["routed_experts"]) == (None, None)


def test_the_token_that_ends_an_answer_is_left_out_unless_asked_for(client, server):
    whole = directly(server)
    end = whole.ids[6]
    last = whole.ids.index(end)
    asked = {"prompt": PROMPT, "temperature": 0.9, "seed": 4, "max_tokens": 20, "stop_token_ids": [end]}
    with_it = ask(client, include_stop_str_in_output=True, **asked)
    without = ask(client, **asked)
    assert with_it["output_ids"] == [*whole.ids[: last + 1]]
    assert without["output_ids"] == [*whole.ids[:last]]
    assert with_it["meta_info"]["finish_reason"] == without["meta_info"]["finish_reason"] == {"type": "stop"}
    for found in (with_it, without):
        meta, tokens = found["meta_info"], len(found["output_ids"])
        assert meta["completion_tokens"] == len(meta["output_token_logprobs"]) == tokens
        assert meta["routed_experts"] == whole.routes.tolist()[: meta["prompt_tokens"] + tokens - 1]


def test_a_stop_text_is_left_out_unless_asked_for(client):
    asked = {"prompt": PROMPT, "temperature": 0, "max_tokens": 30}
    whole = ask(client, **asked)["text"]
    stop = whole[5:8]
    before = whole[: whole.find(stop)]
    assert ask(client, stop=stop, **asked)["text"] == before
    assert ask(client, stop=[stop], include_stop_str_in_output=True, **asked)["text"] == before + stop


@pytest.mark.parametrize("include", [True, False])
def test_a_stream_has_the_whole_answer(client, server, include):
    end = directly(server).ids[6]
    asked = {"prompt": PROMPT, "temperature": 0.9, "seed": 4, "max_tokens": 20, "stop_token_ids": [end],
             "top_logprobs_num": 2,
             "include_stop_str_in_output": include}  # fmt: skip
    whole = ask(client, **asked)
    body = {"return_logprob": True, "return_routed_experts": True, "stream": True, **asked}
    with client.stream("POST", "/generate", json=body) as answer:
        lines = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
    assert lines.pop() == "[DONE]"
    chunks = [json.loads(line) for line in lines]
    assert "".join(chunk["text"] for chunk in chunks) == whole["text"]
    assert [token for chunk in chunks for token in chunk["output_ids"]] == whole["output_ids"]
    for key in ("output_token_logprobs", "output_top_logprobs"):
        assert [pair for chunk in chunks for pair in chunk["meta_info"][key]] == whole["meta_info"][key]
        for one in (chunks[-1], whole):
            one["meta_info"][key] = None
    assert {chunk["meta_info"]["routed_experts"] is None for chunk in chunks[:-1]} == {True}
    assert chunks[-1]["meta_info"] == whole["meta_info"]


def test_the_likeliest_tokens_and_the_prompt_are_scored(client, server):
    """As LMDeploy 0.18 names them: pairs of log-probability and token, the likeliest first. Of a prompt they are of the
    tokens behind the first logprob_start_len + 1."""
    done = directly(server, alternatives=3, score_prompt=True)
    asked = {"prompt": PROMPT, "temperature": 0.9, "seed": 4, "top_logprobs_num": 3, "include_stop_str_in_output": True}
    found = ask(client, **asked, max_tokens=20)["meta_info"]
    rows = zip(done.scores.of_ids.tolist(), done.scores.ids.tolist(), strict=True)
    assert found["output_top_logprobs"] == [[[p, i] for p, i in zip(*row, strict=True)] for row in rows]
    assert (found["input_token_logprobs"], found["input_top_logprobs"]) == (None, None)
    assert done.prompt_scores is not None
    scored = [[p, i] for p, i in zip(done.prompt_scores.log_probs.tolist(), done.prompt[1:], strict=True)]
    rows = zip(done.prompt_scores.of_ids.tolist(), done.prompt_scores.ids.tolist(), strict=True)
    top = [[[p, i] for p, i in zip(*row, strict=True)] for row in rows]
    for start in (0, 2, len(done.prompt) - 1):
        for stream in (False, True):
            body = {"return_logprob": True, "max_tokens": 0, "logprob_start_len": start, "stream": stream}
            answer = client.post("/generate", json={**asked, **body})
            line, *rest = answer.text.removeprefix("data: ").split("\n\n")
            assert not stream or rest[0] == "data: [DONE]"
            whole = json.loads(line)
            assert whole["output_ids"] == []
            assert whole["meta_info"]["input_token_logprobs"] == (scored[start:] or None)
            assert whole["meta_info"]["input_top_logprobs"] == (top[start:] or None)


@pytest.mark.parametrize("path", ["/generate", "/v1/completions"])
def test_log_probabilities_that_are_not_numbers_are_never_sent(path):
    """A model with damaged weights gives an error, in streams too, whatever was asked for."""
    model = tiny_server.decoder()
    with torch.no_grad():
        model.lm_head[3] = torch.nan
    server = tiny_server.served(model=model)
    bodies = [{"prompt": PROMPT, "max_tokens": 3, "seed": 1}]
    if path == "/generate":
        bodies.append({"prompt": PROMPT, "return_logprob": True, "logprob_start_len": 0, "max_tokens": 0})
    else:
        bodies.append({"prompt": PROMPT, "echo": True, "logprobs": 2, "max_tokens": 0})
    with tiny_server.client(server) as asking:
        for body in bodies:
            answer = asking.post(path, json=body)
            assert (answer.status_code, answer.json()["error"]["code"]) == (500, "not_finite")
        streamed = asking.post(path, json={**bodies[0], "stream": True}).text
        assert json.loads(streamed.removeprefix("data: "))["error"]["code"] == "not_finite"
        assert server.worker.pending == 0


def test_answers_are_aborted_with_what_there_is():
    async def scenario() -> None:
        server = tiny_server.served()
        transport = httpx.ASGITransport(build(server))
        async with httpx.AsyncClient(transport=transport, base_url="http://testserver") as client:
            server.worker.start()
            body = {"prompt": PROMPT, "max_tokens": 900, "ignore_eos": True, "return_logprob": True}
            asking = [
                asyncio.ensure_future(client.post("/generate", json={**body, "session_id": session}))
                for session in (1, 2)
            ]
            while server.worker.pending < 2:
                await asyncio.sleep(0.01)
            again = await client.post("/generate", json={**body, "session_id": 1})
            assert (again.status_code, again.json()["error"]["param"]) == (400, "session_id")
            await client.post("/abort_request", json={"session_id": 1})
            first = (await asking[0]).json()
            assert first["meta_info"]["finish_reason"] == {"type": "abort"}
            assert len(first["output_ids"]) == first["meta_info"]["completion_tokens"] < 900
            assert server.worker.pending == 1
            await client.post("/abort_request", json={"abort_all": True})
            assert (await asking[1]).json()["meta_info"]["finish_reason"] == {"type": "abort"}
            await server.worker.stop()
            assert server.worker.engine.pages.available == server.worker.engine.pages.count

    asyncio.run(scenario())
