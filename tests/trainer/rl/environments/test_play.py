"""Episodes of several turns: what is masked, how turns are joined, what ends an episode, and what a hang costs."""

import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from tests.trainer.model.tiny import build, model_config
from tests.trainer.rl.environments.scripted import Characters, Scripted
from trainer.engine.engine import Engine
from trainer.engine.request import Request, Sampling
from trainer.model.exact.switch import make_exact
from trainer.rl.environments.base import EnvironmentFailed
from trainer.rl.environments.build import build_environment
from trainer.rl.environments.dialogue import InlineDialogue
from trainer.rl.environments.play import Play
from trainer.rl.rewards.base import Question
from trainer.rl.rollout.protocol import Rollout

TEXT = Characters()
EOS = TEXT.eos_id
DIALOGUE = InlineDialogue(TEXT)


def environment(**options):
    return build_environment({"tools": ["calculator"], "reward": "exact", **options})


def run(engine, asked, env=None, **options):
    questions = [(Question(number, prompt, answer), Sampling(seed=number)) for number, prompt, answer in asked]
    more = {"more": options.pop("more")} if "more" in options else {}
    how = {"max_tokens": 12, "context": 60, "environment_s": 20, **options}
    return Play(env or environment(), DIALOGUE, **how).play(engine, questions, deadline_s=60, **more)


def script(*turns):
    """Say the first turn whose condition, a text, ends the prompt."""

    def say(prompt):
        text = TEXT.answer_text([*prompt])
        said = next(said for end, said in turns if text.endswith(end))
        return TEXT.encode(said) + ([] if said.endswith("]") else [EOS])

    return say


def test_a_call_is_answered_and_what_the_tool_wrote_is_masked():
    engine = Scripted(script(("34*12=", "[34*12]"), ("408|", "408")))
    (found,) = run(engine, [(7, "34*12=", "408")])
    assert found.rollout.prompt == tuple(TEXT.encode("34*12="))
    assert TEXT.answer_text([*found.rollout.ids]) == "[34*12]408|408"
    assert "".join("d" if one else "." for one in found.rollout.drawn) == "ddddddd....dddd"
    assert found.verdict.value == 1
    assert (found.end, found.turns, found.rollout.finish) == ("done", 2, "stop")
    assert found.counts == {"calls": 1, "malformed": 0, "errors": 0}
    ids = np.array(found.rollout.ids)
    assert np.array_equal(found.rollout.log_probs, np.where(found.rollout.drawn, -ids, 0).astype(np.float32))
    assert found.rollout.versions.tolist() == [4] * 11 + [5] * 4
    # a row for each token but the last; those of the first turn stay as they were when it was drawn
    assert found.rollout.routes[:, 0, 0].tolist() == [1] * (6 + 7 - 1) + [2] * (6 + 15 - 1 - 12)


def test_unfinished_episodes_share_a_call_of_the_engine():
    engine = Scripted(script(("1+1=", "2"), ("2+2=", "[2+2]"), ("3+3=", "[3+3]"), ("4|", "4"), ("6|", "[6+0]")))
    found = run(engine, [(0, "1+1=", "2"), (1, "2+2=", "4"), (2, "3+3=", "6")], environment(turns=3))
    assert [len(requests) for requests in engine.asked] == [3, 2, 1]
    assert [one.verdict.value for one in found] == [1, 1, 0]
    assert [(one.end, one.turns) for one in found] == [("done", 1), ("done", 2), ("turns", 3)]
    assert [one.question.number for one in found] == [0, 1, 2]
    assert [request.sampling.seed for request in engine.asked[1]] == [1, 2]


def test_tokens_run_out():
    engine = Scripted(script(("1=", "[1+1+1+1+1+1+1+1+1]"), ("2=", "[2]"), ("|", "[2]")))
    found = run(engine, [(0, "1=", "2"), (1, "2=", "2")], environment(turns=50), context=20)
    assert [(one.end, one.verdict.value) for one in found] == [("length", 0)] * 2
    assert all(len(one.rollout.prompt) + len(one.rollout.ids) <= 20 for one in found)


def test_a_pause_ends_episodes_with_what_they_have():
    engine = Scripted(
        script(
            ("1=", "[1]"),
        ),
        abort=True,
    )
    (found,) = run(engine, [(0, "1=", "1")])
    assert (found.end, found.rollout.finish, found.verdict.value) == ("abort", "abort", 0)
    assert TEXT.answer_text([*found.rollout.ids]) == "[1]"


def test_an_engine_without_routes():
    class Plain(Scripted):
        def _one(self, request: Request) -> Rollout:
            return replace(super()._one(request), routes=None)

    (found,) = run(Plain(script(("1=", "[1]"), ("|", "1"))), [(0, "1=", "1")])
    assert found.rollout.routes is None
    assert found.verdict.value == 1


def test_ranks_play_until_all_are_done():
    asked = []
    answers = iter([True, True, True, False])
    engine = Scripted(
        script(
            ("1=", "1"),
        )
    )
    run(engine, [(0, "1=", "1")], more=lambda mine: asked.append(mine) or next(answers))
    assert asked == [True, False, False, False]
    assert [len(requests) for requests in engine.asked] == [1, 0, 0]


class Hanging:
    """Hangs in one method of its sessions until the test ends."""

    name, tools, turns = "hanging", (), 2

    def __init__(self, where, released, number=1):
        self.where, self.released, self.number = where, released, number

    def start(self, question):
        self._maybe("start", question)
        return _Session(self, question)

    def _maybe(self, where, question):
        if where == self.where and question.number == self.number:
            self.released.wait(30)


class _Session:
    def __init__(self, environment, question):
        self.environment, self.question = environment, question
        self.messages = [{"role": "user", "content": question.prompt}]

    def step(self, said):
        self.environment._maybe("step", self.question)
        return []

    def reward(self):
        self.environment._maybe("reward", self.question)

    def counts(self):
        return {}


@pytest.mark.parametrize("where", ["start", "step", "reward"])
def test_an_environment_that_hangs_is_ended_by_its_deadline(where):
    released = threading.Event()
    engine = Scripted(
        script(
            ("1=", "1"),
        )
    )
    started = time.monotonic()
    try:
        with pytest.raises(EnvironmentFailed) as caught:
            run(engine, [(0, "1=", "1"), (1, "1=", "1")], Hanging(where, released), environment_s=0.3)
    finally:
        released.set()
    assert 0.3 <= time.monotonic() - started < 10
    assert (caught.value.where, caught.value.value) == ("hanging", 1)
    (line,) = caught.value.lines
    assert "hanging" in line
    assert "question 1" in line


def test_an_environment_that_raises_is_named():
    class Broken(Hanging):
        def _maybe(self, where, question):
            if (where, question.number) == ("step", 1):
                raise KeyError("no such\nrow")

    with pytest.raises(EnvironmentFailed) as caught:
        run(
            Scripted(
                script(
                    ("1=", "1"),
                )
            ),
            [(0, "1=", "1"), (1, "1=", "1")],
            Broken("step", None),
        )
    assert (caught.value.where, caught.value.value) == ("hanging", 1)
    assert len(caught.value.lines) == 1


class Embedded:
    """The training model's own engine behind the protocol."""

    def __init__(self, model):
        self.engine, self.version = Engine(model), 0

    def generate(self, requests, *, deadline_s):
        found = self.engine.generate(requests)
        return [
            Rollout(one.prompt, one.ids, one.log_probs, one.routes, np.zeros(len(one.ids), np.int64), one.finish)
            for one in found
        ]


def test_joined_turns_are_those_of_one_pass_over_the_whole():
    """In exact arithmetic: log-probabilities of drawn tokens, and routes of all, as of scoring the finished text."""
    model = make_exact(build(model_config(max_position=200)).requires_grad_(False))
    assert model.cfg.vocab_size > EOS
    env = environment(turns=6)
    found = run(Embedded(model), [(n, f"{n}+{n}=", "0") for n in range(12)], env, max_tokens=25, context=150)
    several = [one for one in found if one.turns > 1]
    assert several, "some episode draws a closing bracket"
    for one in several:
        whole = [*one.rollout.prompt, *one.rollout.ids]
        (scored,) = Engine(model).generate([Request(whole, 0, score_prompt=True)])
        of_ids = scored.prompt_scores.log_probs[len(one.rollout.prompt) - 1 :]
        assert np.array_equal(one.rollout.log_probs[one.rollout.drawn], of_ids[one.rollout.drawn])
        assert not one.rollout.drawn.all()
        assert one.rollout.routes.shape == (len(whole) - 1, model.cfg.num_layers, model.cfg.experts_per_token)
        assert np.array_equal(one.rollout.routes, scored.routes[: len(whole) - 1])
