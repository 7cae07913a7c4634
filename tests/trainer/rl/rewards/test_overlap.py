"""Overlap, with and without the end as a place."""

import pytest

from trainer.rl.rewards.base import Question, build_reward


@pytest.mark.parametrize(
    ("answer", "plain", "with_end"),
    [
        ("321", 1.0, 1.0),
        ("32", 2 / 3, 2 / 4),
        ("3219", 3 / 4, 3 / 4),
        ("32199999", 3 / 8, 3 / 4),
        ("123", 1 / 3, 2 / 4),
        ("", 0.0, 0.0),
    ],
)
def test_places_that_agree(answer, plain, with_end):
    question = Question(0, "123=", "321")
    assert build_reward("overlap")(question, answer).value == pytest.approx(plain)
    reward = build_reward({"name": "overlap", "end": True})
    assert reward(question, answer).value == pytest.approx(with_end)


def test_an_empty_reference_ends_at_once():
    reward = build_reward({"name": "overlap", "end": True})
    assert [reward(Question(0, "", ""), answer).value for answer in ("", "1")] == [1.0, 0.0]
