"""The engine's requests: who runs when, how answers end, what is refused, and which prefixes are found again."""

import numpy as np
import pytest
import torch

from parallel.errors import UserError
from tests.trainer.model.tiny import build, model_config
from trainer.engine.engine import Engine
from trainer.engine.request import Request, RequestError, Sampling
from trainer.model.exact.blocks import KEYS
from trainer.model.exact.switch import make_exact


@pytest.fixture(scope="module")
def model():
    return make_exact(build(model_config(max_position=400)).requires_grad_(False))


def letters(ids):
    return "".join(chr(97 + token % 26) for token in ids)


PROMPT = [5, 9, 2, 44]


def test_tokens_come_one_a_step_with_text_and_log_probability(model):
    engine = Engine(model, decode=letters)
    number = engine.submit(Request(PROMPT, 6))
    tokens = [token for _ in range(6) for token in engine.step()]
    assert engine.unfinished == 0
    assert engine.step() == []
    done = engine.result(number)
    assert [token.id for token in tokens] == list(done.ids)
    assert [token.number for token in tokens] == [number] * 6
    assert [token.finish for token in tokens] == [None] * 5 + ["length"]
    assert "".join(token.text for token in tokens) == done.text == letters(done.ids)
    assert np.array_equal(np.float32([token.log_prob for token in tokens]), done.log_probs)
    assert done.prompt == tuple(PROMPT)
    assert done.routes.shape == (len(PROMPT) + 5, model.cfg.num_layers, model.cfg.experts_per_token)
    with pytest.raises(KeyError):
        engine.result(number)


def test_an_answer_ends_with_a_stop_token_or_before_a_stop_text(model):
    engine = Engine(model, decode=letters)
    (whole,) = engine.generate([Request(PROMPT, 30)])
    stop_id = whole.ids[11]
    length = whole.ids.index(stop_id) + 1
    (stopped,) = engine.generate([Request(PROMPT, 30, stop_ids=frozenset({stop_id}))])
    assert (stopped.ids, stopped.finish) == (whole.ids[:length], "stop")
    stop = whole.text[7:10]
    (cut,) = engine.generate([Request(PROMPT, 30, stop=(stop,))])
    assert (cut.text, cut.finish) == (whole.text[: whole.text.find(stop)], "stop")
    assert cut.ids == whole.ids[: whole.text.find(stop) + 3]


def test_seeds_give_different_answers_and_equal_ones_the_same(model):
    first, again, other = Engine(model).generate([Request(PROMPT, 20, Sampling(seed=seed)) for seed in (1, 1, 2)])
    assert first.ids == again.ids != other.ids


def test_requests_wait_for_room_in_their_order(model):
    engine = Engine(model, cache_tokens=4 * KEYS, batch=8)
    asked = [Request(PROMPT, tokens) for tokens in (KEYS, 2 * KEYS, 10)]  # with their prompts 2, 3 and 1 pages
    numbers = [engine.submit(one) for one in asked]
    finished = []
    while engine.unfinished:
        running = {token.number for token in engine.step()}
        if numbers[0] not in finished:
            assert running == {numbers[0]}  # the second does not fit, and the third does not overtake it
        finished += [number for number in numbers if number not in finished and number in engine._done]
    assert finished[0] == numbers[0]
    alone = [Engine(model).generate([one])[0] for one in asked]
    assert [engine.result(number).ids for number in numbers] == [answer.ids for answer in alone]


def test_a_step_has_no_more_tokens_and_requests_than_asked(model, monkeypatch):
    seen = []
    genuine = Engine._choose

    def choose(self):
        found = genuine(self)
        seen.append((len(found), sum(tokens for _, tokens in found)))
        return found

    monkeypatch.setattr(Engine, "_choose", choose)
    engine = Engine(model, batch=3, chunk=16)
    engine.generate([Request([7] * 40, 3, Sampling(seed=seed)) for seed in range(5)])
    assert max(requests for requests, _ in seen) == 3
    assert max(tokens for _, tokens in seen) == 16


def test_a_cancelled_request_leaves_nothing(model):
    engine = Engine(model, batch=1)
    running, waiting, last = (engine.submit(Request(PROMPT, 20, Sampling(seed=seed))) for seed in range(3))
    engine.step()
    engine.cancel(running)
    engine.cancel(waiting)
    engine.cancel(99)
    while engine.unfinished:
        engine.step()
    assert engine.pages.available == engine.pages.count
    assert engine.result(last).ids == Engine(model).generate([Request(PROMPT, 20, Sampling(seed=2))])[0].ids
    with pytest.raises(KeyError):
        engine.result(running)


def test_equal_prompts_that_start_together_are_computed_once(model, monkeypatch):
    ran = []
    genuine = Engine._choose
    monkeypatch.setattr(Engine, "_choose", lambda self: ran.append(genuine(self)) or ran[-1])
    prompt = [(7 * place) % 60 for place in range(KEYS + 6)]  # a full page and a part of one
    asked = [Request(prompt, 4, Sampling(seed=seed), alternatives=seed % 3) for seed in range(5)]
    asked += [Request(prompt[:-1], 4, Sampling(seed=5)), Request(prompt, 4, Sampling(seed=6), score_prompt=True)]
    engine = Engine(model)
    found = engine.generate(asked)
    assert sum(tokens for step in ran for _, tokens in step) == 3 * len(prompt) - 1 + 7 * 3
    for one, answer in zip(asked, found, strict=True):
        (alone,) = Engine(model).generate([one])
        assert (answer.ids, answer.reused, answer.finish) == (alone.ids, 0, "length")
        assert np.array_equal(answer.log_probs, alone.log_probs)
        assert np.array_equal(answer.scores.of_ids, alone.scores.of_ids)
        assert np.array_equal(answer.routes, alone.routes)
    assert engine.pages.available == engine.pages.count


def test_requests_continue_without_the_one_that_computes_their_prompt(model):
    engine = Engine(model, chunk=64)
    prompt = [(11 * place) % 60 for place in range(2 * KEYS)]
    numbers = [engine.submit(Request(prompt, 3, Sampling(seed=seed))) for seed in range(3)]
    assert engine.step() == []  # a part of the prompt
    engine.cancel(numbers[0])
    while engine.unfinished:
        engine.step()
    for seed, number in enumerate(numbers[1:], 1):
        assert engine.result(number).ids == Engine(model).generate([Request(prompt, 3, Sampling(seed=seed))])[0].ids
    assert engine.pages.available == engine.pages.count


def test_prefixes_are_found_again_only_under_their_weights():
    model = make_exact(build(model_config(max_position=400)).requires_grad_(False))
    prompt = [number % 61 for number in range(2 * KEYS + 9)]
    engine = Engine(model, version=1)
    (first,) = engine.generate([Request(prompt, 70)])
    (again,) = engine.generate([Request(prompt, 70)])
    assert (first.reused, again.reused) == (0, 2 * KEYS)
    assert again.ids == first.ids
    assert np.array_equal(again.routes, first.routes)
    longer = [*prompt, *first.ids]  # as the next turn of a conversation
    assert engine.generate([Request(longer, 1)])[0].reused == (len(longer) - 1) // KEYS * KEYS
    with torch.no_grad():
        model.lm_head.add_(torch.randn(model.lm_head.shape, generator=torch.Generator().manual_seed(1)))
        model.blocks[0].moe.router.weight.neg_()
    engine.use_version(2)
    (other,) = engine.generate([Request(prompt, 70)])
    assert other.reused == 0
    (fresh,) = Engine(model).generate([Request(prompt, 70)])
    assert (other.ids, other.log_probs.tolist()) == (fresh.ids, fresh.log_probs.tolist())
    assert not np.array_equal(other.log_probs[0], first.log_probs[0])
    engine.submit(Request(prompt, 5))
    with pytest.raises(RuntimeError):
        engine.use_version(3)


def test_a_prompt_is_scored_without_an_answer_wherever_its_start_comes_from(model):
    prompt = [number % 61 for number in range(2 * KEYS + 1)]
    engine = Engine(model)
    (first,) = engine.generate([Request(prompt, 0, score_prompt=True, alternatives=2)])
    assert (first.ids, first.finish, first.reused) == ((), "length", 0)
    assert first.routes.shape[0] == len(prompt) - 1
    assert first.scores.ids.shape == (0, 2)
    number = engine.submit(Request(prompt, 0, score_prompt=True, alternatives=2))  # all that it needs is in the cache
    assert number not in engine.done
    assert engine.step() == []
    assert number in engine.done
    again = engine.result(number)
    assert again.reused == 2 * KEYS
    (longer,) = engine.generate([Request([*prompt, 4], 3, score_prompt=True)])
    assert longer.reused == 2 * KEYS
    assert np.array_equal(first.prompt_scores.log_probs, longer.prompt_scores.log_probs[:-1])
    for name in ("log_probs", "ids", "of_ids"):
        assert np.array_equal(getattr(first.prompt_scores, name), getattr(again.prompt_scores, name))
    (one,) = engine.generate([Request([5], 0, score_prompt=True)])
    assert len(one.prompt_scores.log_probs) == len(one.routes) == 0
    assert engine.pages.available == engine.pages.count


def test_tokens_come_with_the_alternatives_asked_for(model):
    engine = Engine(model)
    numbers = [engine.submit(Request(PROMPT, 4, Sampling(temperature=0), alternatives=count)) for count in (0, 3)]
    for _ in range(4):
        plain, with_others = sorted(engine.step())
        assert plain.alternatives == ()
        assert len(with_others.alternatives) == 3
        assert with_others.alternatives[0] == (with_others.id, with_others.log_prob)
    done = engine.result(numbers[1])
    assert done.scores.ids[3].tolist() == [token for token, _ in with_others.alternatives]


def test_a_whole_prompt_in_the_cache_is_computed_from_its_last_page(model):
    engine = Engine(model)
    prompt = [number % 61 for number in range(2 * KEYS)]
    engine.generate([Request(prompt, 3)])
    assert engine.generate([Request(prompt, 3)])[0].reused == KEYS


@pytest.mark.parametrize(
    ("request_", "where", "value"),
    [
        (Request([], 5), "prompt", 0),
        (Request([1, 61], 5), "prompt", 61),
        (Request([-1], 5), "prompt", -1),
        (Request(PROMPT, 0), "max_tokens", 0),
        (Request(PROMPT, -1, score_prompt=True), "max_tokens", -1),
        (Request([1] * 401, 0, score_prompt=True), "prompt", 401),
        (Request(PROMPT, 5, alternatives=21), "alternatives", 21),
        (Request(PROMPT, 5, alternatives=-1), "alternatives", -1),
        (Request(PROMPT, 397), "max_tokens", 397),
        (Request([1] * 400, 1), "prompt", 400),
        (Request([1] * 200, 100), "cache_tokens", 256),
        (Request(PROMPT, 5, stop=("x",)), "stop", ("x",)),
        (Request(PROMPT, 5, Sampling(temperature=-1.0)), "temperature", -1.0),
        (Request(PROMPT, 5, Sampling(temperature=float("nan"))), "temperature", None),
        (Request(PROMPT, 5, Sampling(top_k=-1)), "top_k", -1),
        (Request(PROMPT, 5, Sampling(top_p=0.0)), "top_p", 0.0),
        (Request(PROMPT, 5, Sampling(min_p=1.5)), "min_p", 1.5),
        (Request(PROMPT, 5, Sampling(seed=2**63)), "seed", 2**63),
    ],
)
def test_what_can_never_be_served_is_refused(model, request_, where, value):
    engine = Engine(model, cache_tokens=4 * KEYS)
    with pytest.raises(RequestError) as caught:
        engine.submit(request_)
    assert caught.value.where == where
    assert value is None or caught.value.value == value
    assert caught.value.allowed
    assert engine.unfinished == 0


def test_all_faults_of_a_request_are_found_together(model):
    with pytest.raises(RequestError) as caught:
        Engine(model, decode=letters).submit(Request([], 0, Sampling(top_p=2.0), stop=("",)))
    assert [fault.where for fault in caught.value.faults] == ["prompt", "max_tokens", "stop", "top_p"]


@pytest.mark.parametrize(("name", "value"), [("cache_tokens", 0), ("batch", 0), ("chunk", 63)])
def test_an_engine_of_impossible_size_is_refused(model, name, value):
    with pytest.raises(UserError) as caught:
        Engine(model, **{name: value})
    assert (caught.value.where, caught.value.value) == (name, value)
