"""The LMDeploy client against recorded exchanges.

`tests/trainer/rl/servers/scenario.py` recorded them from LMDeploy 0.18's own server; test_lmdeploy_contract.py asks it
again.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest

from tests.printed import error_line
from tests.trainer.rl.servers import scenario
from tests.trainer.rl.servers.http_server import repeating
from trainer.engine.request import Request, Sampling
from trainer.rl.rollout.protocol import RolloutError
from trainer.rl.servers.lmdeploy_api import VERSIONS, body_of

NAMES = ("full", "bare", "logits")


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    """The scenario's results from what was recorded."""
    unknown: list[str] = []
    with ExitStack() as stack:
        exchanges = scenario.recorded()
        urls = {
            name: stack.enter_context(repeating(name, [one for one in exchanges if one.server == name], unknown))
            for name in NAMES
        }
        results = scenario.ask(urls)
    assert not unknown
    return results


def replies(target: str, server: str = "full") -> list[Any]:
    return [one.reply for one in scenario.recorded() if (one.server, one.target) == (server, target)]


def test_there_are_at_least_twenty_exchanges_and_errors_among_them():
    exchanges = scenario.recorded()
    assert len({one.key for one in exchanges}) >= 20
    assert {one.status for one in exchanges} >= {200, 400, 500, 501, 503}


def test_answers_have_what_the_server_sent(found):
    assert found["connected"] == ("0.18", "tiny")
    first, second = found["answers"]
    for request, (ids, log_probs, routes, finish, versions) in zip(scenario.QUESTIONS, (first, second), strict=True):
        (sent,) = [
            one.reply for one in scenario.recorded()
            if one.body == body_of(request, routes=True) and one.status == 200 and one.reply["output_ids"] == ids
        ][:1]  # fmt: skip
        assert finish == sent["meta_info"]["finish_reason"]["type"]
        assert np.float32([pair[0] for pair in sent["meta_info"]["output_token_logprobs"]]).tolist() == log_probs
        assert routes == sent["meta_info"]["routed_experts"]
        assert len(routes) == len(request.prompt) + len(ids) - 1
        assert versions == [3] * len(ids)
    assert first[3] == "length"


def test_the_token_that_ends_an_answer_has_its_log_probability_and_the_row_before_it(found):
    ((ids, log_probs, routes, finish, _),) = found["stopped"]
    whole = found["answers"][0]
    assert finish == "stop"
    assert ids == whole[0][: len(ids)]
    assert (len(ids), len(log_probs), len(routes)) == (5, 5, 7)
    assert (log_probs, routes) == (whole[1][:5], whole[2][:7])


def test_a_pause_returns_what_running_requests_have(found):
    aborted = found["aborted"]
    assert aborted.finish == "abort"
    assert 0 < len(aborted.ids) < scenario.LONG.max_tokens
    assert aborted.routes.shape == (len(scenario.LONG.prompt) + len(aborted.ids) - 1, 2, 4)


def test_new_weights_have_a_new_version_and_other_answers(found):
    assert [one[4][0] for one in found["loaded"]] == [5, 5]
    assert found["loaded"][0][0] != found["answers"][0][0]
    sync = found["sync"]
    assert (sync.version, sync.buckets, sync.tensors, sync.nbytes) == (5, 2, 2, 128)
    sent = [one.body for one in scenario.recorded() if one.target == "/update_weights"]
    assert [body["finished"] for body in sent] == [False, False, False, True]


def test_a_failed_bucket_leaves_the_server_asleep_until_whole_weights_have_come(found):
    assert isinstance(found["unknown"], RolloutError)
    assert error_line("\n".join(found["unknown"].lines))
    assert found["without weights"].value == "resume"
    assert found["asleep"] == 503


def test_a_server_without_the_flags_is_refused(found):
    assert found["bare"].value == "/generate"
    assert found["logits"].value == "--logprobs-mode"
    assert "--logprobs-mode" in found["bare"].allowed
    assert (found["no abort"], found["no routes"]) == (501, 400)


def test_what_lmdeploy_refuses_and_what_it_ignores(found):
    refused = ("empty", "too long", "no tokens", "hot", "both", "not ids", "level 3")
    assert {name: found[name] for name in refused} == dict.fromkeys(refused, 400)
    assert (found["another server's fields"], found["wrong tag"]) == (200, 200)


def test_every_sampling_field_is_sent():
    body = body_of(Request([1], 2, Sampling(0.5, 3, 0.25, 0.125), frozenset({9, 4})), routes=True)
    assert body.keys() == VERSIONS["0.18"]["GenerateReqInput"]
    assert [body[name] for name in ("temperature", "top_k", "top_p", "min_p")] == [0.5, 3, 0.25, 0.125]
    assert (body["stop_token_ids"], body["ignore_eos"], body["include_stop_str_in_output"]) == ([4, 9], False, True)
