"""The LMDeploy client against servers that fail, are restarted or answer what cannot be used."""

from __future__ import annotations

import json
import pickle
import threading
import time
from typing import Any

import numpy as np
import pytest
import torch

from tests.printed import error_line
from tests.trainer.rl.servers import scenario
from tests.trainer.rl.servers.http_server import serving
from trainer.engine.request import Request, RequestError, Sampling
from trainer.rl.rollout.protocol import RolloutError
from trainer.rl.servers import lmdeploy
from trainer.rl.servers.errors import IncompleteError, RestartedError
from trainer.rl.servers.lmdeploy import LMDeployEngine
from trainer.rl.servers.lmdeploy_api import PATHS, VERSIONS


class Fake:
    """A server that answers as LMDeploy does, but for the paths of `answers`, whose functions take the body."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Any]] = []
        self.answers: dict[str, Any] = {}
        self.tags: set[str] = set()
        self.engine: LMDeployEngine
        self.started = "1.5e+09"
        self.dead = False

    def __call__(self, method: str, target: str, body: Any) -> Any:
        if self.dead:
            return None
        path, _, query = target.partition("?")
        self.asked.append((target, body))
        if path in self.answers:
            return self.answers[path](body)
        if path == "/generate":
            return 200, self.reply(body)
        if path == "/sleep":
            self.tags = {"weights", "kv_cache"}
        if path == "/wakeup":
            self.tags -= {query.removeprefix("tags=")}
        fixed = {
            "/openapi.json": scenario.keep("/openapi.json", OPENAPI),
            "/v1/models": {"data": [{"id": "fake"}]},
            "/metrics": f"# HELP\nprocess_start_time_seconds {self.started}\n",
            "/is_sleeping": {"is_sleeping": bool(self.tags)},
            "/update_weights_from_ipc": {"sleeping_tags": sorted(self.tags)},
        }
        return 200, fixed.get(path)

    @staticmethod
    def reply(body: Any, tokens: int | None = None) -> Any:
        ids = [7] * (body["max_tokens"] if tokens is None else tokens)
        rows = len(body["input_ids"]) + len(ids) - 1
        meta = {
            "prompt_tokens": len(body["input_ids"]), "completion_tokens": len(ids),
            "finish_reason": {"type": "length"}, "output_token_logprobs": [[-1.5, token] for token in ids],
            "output_top_logprobs": [[[-1.2345678, token]] for token in ids],
            "routed_experts": [[[3, 1], [0, 2]]] * rows,
        }  # fmt: skip
        return {"text": "", "output_ids": ids, "meta_info": meta}

    def changed(self, body: Any, **meta: Any) -> Any:
        found = self.reply(body)
        found["meta_info"] |= meta
        return 200, found


OPENAPI = {
    "paths": dict.fromkeys(PATHS),
    "components": {"schemas": {name: {"properties": dict.fromkeys(f)} for name, f in VERSIONS["0.18"].items()}},
}
LATER = [Request([1, 2], tokens) for tokens in (1, 2, 3, 4)]


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setattr(lmdeploy, "BACKOFF_S", 0.01)
    made = Fake()
    with serving(made) as url:
        made.engine = LMDeployEngine(url, control_s=5)
        yield made
        made.engine.close()


@pytest.mark.parametrize(
    ("request_", "where"),
    [
        (Request([], 1), "prompt"),
        (Request([1], 0), "max_tokens"),
        (Request([1], 1, stop=("a",)), "stop"),
        (Request([1], 1, score_prompt=True), "score_prompt or alternatives"),
        (Request([1], 1, Sampling(2.5)), "temperature"),
    ],
)
def test_requests_that_it_cannot_serve_as_asked_are_refused_before_any_is_sent(fake, request_, where):
    asked = len(fake.asked)
    with pytest.raises(RequestError) as raised:
        fake.engine.generate([Request([1], 1), request_], deadline_s=5)
    assert raised.value.where == where
    assert len(fake.asked) == asked


def error_of_generate(fake: Fake, deadline_s: float = 5.0) -> IncompleteError:
    with pytest.raises(IncompleteError) as raised:
        fake.engine.generate(LATER, deadline_s=deadline_s)
    assert raised.value.where == fake.engine.name
    assert error_line("\n".join(raised.value.lines))
    return raised.value


def test_a_server_that_hangs_is_named_within_the_deadline_and_finished_answers_are_kept(fake):
    hold = threading.Event()
    fake.answers["/generate"] = lambda body: (
        (hold.wait(20), None)[1] if body["max_tokens"] == 3 else (200, fake.reply(body))
    )
    started = time.monotonic()
    error = error_of_generate(fake, 1.5)
    hold.set()
    assert time.monotonic() - started < 5
    assert error.value == 2
    assert {place: len(one.ids) for place, one in error.finished.items()} == {0: 1, 1: 2, 3: 4}
    again = pickle.loads(pickle.dumps(error))
    assert (again.where, again.value, [*again.finished]) == (error.where, error.value, [*error.finished])


def test_a_server_that_died_is_named(fake):
    fake.dead = True
    started = time.monotonic()
    error = error_of_generate(fake, 30)
    assert time.monotonic() - started < 5
    assert (error.value, error.finished) == (0, {})
    with pytest.raises(RolloutError):
        fake.engine.load(iter([("a", torch.ones(2))]), 1)
    with pytest.raises(RolloutError):
        LMDeployEngine(fake.engine.name.split()[-1])


@pytest.mark.parametrize("failure", [None, (500, "Internal Server Error"), (503, {"message": "unavailable"})])
def test_a_request_that_failed_is_asked_again(fake, failure):
    failures = [failure] * 2
    fake.answers["/generate"] = lambda body: failures.pop() if failures else (200, fake.reply(body))
    assert [len(one.ids) for one in fake.engine.generate(LATER, deadline_s=10)] == [1, 2, 3, 4]


def test_a_refused_request_is_not_asked_again(fake):
    fake.answers["/generate"] = lambda body: (
        (400, {"message": "no"}) if body["max_tokens"] == 2 else (200, fake.reply(body))
    )
    before = count(fake, "/generate")
    error = error_of_generate(fake)
    assert (error.value, [*error.finished]) == (1, [0, 2, 3])
    assert count(fake, "/generate") - before == len(LATER)


def count(fake: Fake, path: str) -> int:
    return sum(target.partition("?")[0] == path for target, _ in fake.asked)


@pytest.mark.parametrize("moment", ["before", "in the middle", "behind the answer"])
def test_answers_of_a_server_that_was_restarted_are_not_used(fake, moment):
    """It answers, with other weights: the process behind the answers is what shows it."""

    def restart(body: Any) -> Any:
        fake.started = "1.6e+09"
        return None if moment == "in the middle" else (200, fake.reply(body))

    if moment == "before":
        restart({"max_tokens": 1, "input_ids": [1]})
    else:
        fake.answers["/generate"] = restart
    before = count(fake, "/generate")
    with pytest.raises(RestartedError) as raised:
        fake.engine.generate(LATER, deadline_s=5)
    assert (raised.value.where, raised.value.value) == (fake.engine.name, 0)
    assert count(fake, "/generate") - before == (0 if moment == "before" else len(LATER))
    fake.answers.clear()
    probes = count(fake, "/generate")
    load(fake, 3)
    assert count(fake, "/generate") == probes + 1, "it may have been started with other flags"
    assert {one.versions[0] for one in fake.engine.generate(LATER, deadline_s=5)} == {3}


def load(fake: Fake, version: int) -> None:
    fake.engine.pause()
    fake.engine.load(iter([("a", torch.ones(2)), ("b", torch.ones(3))]), version)
    fake.engine.resume()


def test_a_server_that_is_restarted_in_a_load_has_no_whole_weights(fake):
    def restart(body: Any) -> Any:
        fake.started = "1.6e+09"
        return 200, None

    fake.answers["/update_weights"] = restart
    with pytest.raises(RolloutError) as raised:
        load(fake, 1)
    assert (raised.value.where, fake.engine.version) == (fake.engine.name, 0)
    with pytest.raises(RolloutError):
        fake.engine.generate(LATER, deadline_s=5)
    fake.answers.clear()
    load(fake, 2)
    assert {one.versions[0] for one in fake.engine.generate(LATER, deadline_s=5)} == {2}


def test_a_pause_ends_what_a_killed_client_has_left_on_the_server(fake):
    before = len(fake.asked)
    fake.engine.pause()
    assert ("/abort_request", {"abort_all": True}) in fake.asked[before:]


@pytest.mark.parametrize("failure", [None, (503, "unavailable")])
@pytest.mark.parametrize("path", ["/abort_request", "/sleep", "/update_weights", "/is_sleeping"])
def test_a_request_of_a_load_is_repeated_where_the_server_was_not_there(fake, path, failure):
    failures = [failure] * 2
    genuine = {"/is_sleeping": lambda body: (200, {"is_sleeping": bool(fake.tags)})}.get(path)

    def answer(body: Any) -> Any:
        if failures:
            return failures.pop()
        if path == "/sleep":
            fake.tags = {"weights", "kv_cache"}
        return genuine(body) if genuine else (200, None)

    fake.answers[path] = answer
    load(fake, 4)
    assert (fake.engine.version, failures) == (4, [])


@pytest.mark.parametrize("path", ["/is_sleeping", "/update_weights_from_ipc"])
@pytest.mark.parametrize("reply", ["<html>no such page</html>", None, [], {}])
def test_a_reply_of_something_else_than_the_server_is_one_line(fake, path, reply):
    fake.answers[path] = lambda body: (200, reply)
    with pytest.raises(RolloutError) as raised:
        load(fake, 1)
    assert raised.value.where == fake.engine.name
    assert error_line("\n".join(raised.value.lines))


@pytest.mark.parametrize(
    "meta",
    [
        {"routed_experts": [[[0, 1]]]},
        {"routed_experts": None},
        {"routed_experts": [[[0, 70000]]] * 2},
        {"routed_experts": "no-such-key"},
        {"output_token_logprobs": [[-1.0, 8]]},
        {"output_token_logprobs": [[2.0, 7]]},
        {"output_token_logprobs": None},
        {"completion_tokens": 2},
        {"prompt_tokens": 1},
        {"finish_reason": None},
        {"finish_reason": {"type": "error"}},
    ],
)
def test_a_reply_whose_lengths_or_numbers_disagree_is_refused(fake, meta):
    def missing(key: str) -> Any:
        raise ValueError(key)

    fake.engine._store = missing
    fake.answers["/generate"] = lambda body: fake.changed(body, **meta)
    with pytest.raises(IncompleteError) as raised:
        fake.engine.generate([Request([1, 2], 1)], deadline_s=5)
    assert raised.value.value == 0


def test_routes_are_read_from_a_store_by_their_key(fake):
    rows = np.arange(3 * 2 * 2, dtype=np.uint16).reshape(3, 2, 2)
    fake.engine._store = {"a-key": rows}.pop
    fake.answers["/generate"] = lambda body: fake.changed(body, routed_experts="a-key")
    (one,) = fake.engine.generate([Request([1, 2], 2)], deadline_s=5)
    assert one.routes.dtype == np.uint16
    assert (one.routes == rows).all()


def test_an_aborted_answer_may_lack_routes_but_its_tokens_are_kept(fake):
    fake.answers["/generate"] = lambda body: fake.changed(body, routed_experts=None, finish_reason={"type": "abort"})
    (one,) = fake.engine.generate([Request([1, 2], 2)], deadline_s=5)
    assert (one.ids, one.routes, one.finish) == ((7, 7), None, "abort")


def test_nothing_starts_between_pause_and_resume(fake):
    fake.engine.pause()
    before = len(fake.asked)
    found = fake.engine.generate(LATER, deadline_s=5)
    assert {(one.ids, one.finish, one.prompt) for one in found} == {((), "abort", (1, 2))}
    assert len(fake.asked) == before
    fake.engine.resume()
    assert fake.engine.generate(LATER[:1], deadline_s=5)[0].finish == "length"


def test_weights_change_only_while_paused(fake):
    with pytest.raises(RolloutError):
        fake.engine.load(iter([]), 1)
    assert fake.engine.version == 0


@pytest.mark.parametrize("path", ["/sleep", "/wakeup", "/update_weights"])
def test_a_load_that_fails_anywhere_counts_no_version(fake, path):
    weights = [("a", torch.ones(2)), ("b", torch.ones(3))]
    fake.engine.pause()
    fake.answers[path] = lambda body: (500, "Internal Server Error")
    with pytest.raises(RolloutError):
        fake.engine.load(iter(weights), 1)
    del fake.answers[path]
    with pytest.raises(RolloutError):
        fake.engine.resume()
    with pytest.raises(RolloutError):
        fake.engine.generate(LATER, deadline_s=5)
    assert fake.engine.version == 0
    fake.engine.load(iter(weights), 2)
    fake.engine.resume()
    assert fake.engine.generate(LATER[:1], deadline_s=5)[0].versions.tolist() == [2]


def test_a_wakeup_that_does_nothing_is_noticed(fake):
    fake.engine.pause()
    fake.answers["/wakeup"] = lambda body: (200, None)
    with pytest.raises(RolloutError) as raised:
        fake.engine.load(iter([("a", torch.ones(2))]), 1)
    assert raised.value.where == fake.engine.name


def test_prefixes_of_old_weights_are_refused(fake):
    fake.engine.pause()
    fake.answers["/metrics"] = lambda body: (200, 'lmdeploy:prefix_cache_hit_rate{engine="0"} 0.25\n')
    with pytest.raises(RolloutError) as raised:
        fake.engine.load(iter([("a", torch.ones(2))]), 1)
    assert raised.value.value == "--enable-prefix-caching"
    assert "/sleep?level=2" not in [target for target, _ in fake.asked]


def test_a_head_in_16_bits_is_refused():
    made = Fake()
    made.answers["/generate"] = lambda body: made.changed(body, output_top_logprobs=[[[-1.5, 7], [-2.078125, 8]]])
    with serving(made) as url, pytest.raises(RolloutError) as raised:
        LMDeployEngine(url)
    assert raised.value.value == "--hf-overrides"


@pytest.mark.parametrize("field", ["top_n", "top_k"])
def test_a_version_that_is_not_known_is_refused(field):
    other = json.loads(json.dumps(OPENAPI))
    fields = other["components"]["schemas"]["GenerateReqInput"]["properties"]
    fields.pop(field, None) if field == "top_k" else fields.update({field: {}})
    made = Fake()
    made.answers["/openapi.json"] = lambda body: (200, other)
    with serving(made) as url, pytest.raises(RolloutError) as raised:
        LMDeployEngine(url)
    assert "0.18" in raised.value.allowed


def test_a_server_that_sleeps_is_probed_when_it_wakes():
    made = Fake()
    made.tags = {"weights", "kv_cache"}
    with serving(made) as url:
        engine = LMDeployEngine(url)
        assert "/generate" not in [target for target, _ in made.asked]
        engine.pause()
        engine.load(iter([("a", torch.ones(2))]), 1)
        engine.resume()
        assert [target for target, _ in made.asked].count("/generate") == 1
        engine.close()
