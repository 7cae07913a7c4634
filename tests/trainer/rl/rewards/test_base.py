import threading

import pytest

from trainer.rl.rewards.base import Question, RewardError, Verdict, build_reward, counts_of, score_all
from trainer.rl.rewards.text import Exact


def ask(answer, **data):
    return Question(0, "?", answer, data)


def test_exact_reads_behind_thinking_and_spaces():
    reward = build_reward("exact")
    assert reward(ask("042"), "<think>041?</think>\n042 \n").value == 1
    assert reward(ask("042"), "42").value == 0
    assert reward(ask(["NaCl", "ClNa"]), "ClNa").value == 1
    assert reward(ask("NaCl"), "nacl").value == 0
    assert build_reward({"name": "exact", "case": False})(ask("NaCl"), "nacl").value == 1


@pytest.mark.parametrize(
    ("cfg", "where", "allowed"),
    [
        ("exakt", "rl.reward", "exact"),
        ({"case": True}, "rl.reward", "a name, or an object with a name"),
        ({"name": "exact", "cases": True}, "rl.reward.cases", "case"),
    ],
)
def test_a_reward_that_cannot_be_built_names_its_key(cfg, where, allowed):
    with pytest.raises(RewardError) as caught:
        build_reward(cfg)
    assert caught.value.where == where
    assert allowed in caught.value.allowed


@pytest.mark.parametrize(
    ("name", "module"), [("math", "math_verify"), ("math", "pint"), ("quantity", "pint"), ("molecule", "rdkit")]
)
def test_a_reward_without_its_package_is_refused_when_it_is_built(name, module, monkeypatch):
    monkeypatch.setattr("trainer.rl.rewards.base.find_spec", lambda asked: None if asked == module else asked)
    with pytest.raises(RewardError) as caught:
        build_reward({"name": "sum", "parts": ["exact", name], "weights": [1, 1]})
    assert caught.value.where == "rl.reward.parts[1].name"


def test_verdicts_come_in_the_order_of_the_answers():
    asked = [(ask(str(number)), str(number % 3)) for number in range(50)]
    assert [verdict.value for verdict in score_all(build_reward("exact"), asked)] == [1, 1, 1, *[0] * 47]
    assert counts_of(build_reward("exact")) == {}


@pytest.mark.parametrize("cfg", ["exact", {"name": "sum", "parts": ["overlap", "exact"], "weights": [1, 1]}])
def test_what_does_not_wait_is_scored_in_the_thread_that_asks(cfg, monkeypatch):
    reward, seen = build_reward(cfg), set()

    def noted(self, question, answer):
        seen.add(threading.get_ident())
        return Verdict(1.0)

    monkeypatch.setattr(Exact, "__call__", noted)
    score_all(reward, [(ask("1"), "1")] * 20)
    assert seen == {threading.get_ident()}
