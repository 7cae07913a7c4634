"""Rollouts are scored by their text as it was drawn, tokens without text included."""

import numpy as np
import pytest

from parallel.layout import Place
from parallel.world import World
from tests.trainer.rl.toy import toy_config
from trainer.corpora.questions.toy import UNKNOWN, open_toy_questions
from trainer.data.questions.stream import open_questions
from trainer.rl.environments.calculator import CALCULATOR
from trainer.rl.environments.dialogue import InlineDialogue
from trainer.rl.producer import Synchronous
from trainer.rl.rewards.base import build_reward
from trainer.rl.rollout.led import Led
from trainer.rl.rollout.protocol import Rollout


class Says:
    """Implements `RolloutEngine.generate`: the right answer, with further ids behind it."""

    def __init__(self, answers, behind):
        self.answers, self.behind = answers, behind

    def generate(self, requests, *, deadline_s):
        found = []
        for request in requests:
            ids = (*self.answers[tuple(request.prompt)], *self.behind)
            finish = "stop" if ids[-1] in request.stop_ids else "length"
            drawn = np.zeros(len(ids), np.float32), None, np.zeros(len(ids), np.int64)
            found.append(Rollout(tuple(request.prompt), ids, *drawn, finish))
        return found


@pytest.fixture(scope="module")
def toys(tmp_path_factory):
    """A configuration of each toy with its questions."""
    found = {}
    for recipe in ("rl_toy", "rl_tools_toy"):
        cfg = toy_config(tmp_path_factory.mktemp("rl") / "run", recipe=recipe)
        data = open_toy_questions(cfg.data, lambda _: None)
        found[recipe] = cfg, open_questions(data, seed=0, weights=None, kept=None)[0].questions
    return found


@pytest.mark.parametrize("reward", ["exact", "{name: overlap, end: true}", "overlap"])
def test_only_the_end_of_the_text_may_stand_behind_the_answer(toys, reward):
    cfg, questions = toys["rl_toy"]
    end, unknown = questions.tokenizer.eos_id, questions.tokenizer.id_of(UNKNOWN)
    answers = {one.prompt: one.answer[:-1] for one in questions.train}

    def values(*behind):
        place, built = Place(reader=0, readers=1), build_reward(reward)
        engine = Says(answers, behind)
        leaders = Led(engine, World(), World())
        made = Synchronous(cfg.rl, questions, engine, built, seed=0, batch=4, place=place, leaders=leaders)
        return made.answer(questions.ask(0, 4))[1]

    assert values(end).tolist() == [1.0] * 4
    for behind in [(unknown,), (unknown, end), (end, end), (cfg.model.vocab_size, end)]:
        assert (values(*behind) < 1).all()


def test_a_call_with_an_unknown_token_is_another_call(toys):
    text = toys["rl_tools_toy"][1].tokenizer
    inline, ids = InlineDialogue(text), text.encode("[37*4]")
    (plain,) = inline.read(ids, [CALCULATOR.schema]).calls
    (other,) = inline.read([*ids[:-1], text.id_of(UNKNOWN), ids[-1]], [CALCULATOR.schema]).calls
    assert plain.arguments != other.arguments
