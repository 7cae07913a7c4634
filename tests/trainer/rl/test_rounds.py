"""The questions of a round: how many are asked, and which steps they belong to."""

import json

import pytest

from tests.distributed.pool import on_ranks
from tests.trainer.rl.toy import run_toy, toy_config
from tests.trainer.tiny_run import steps
from trainer.rl.producer import Synchronous
from trainer.rl.rounds import cut_steps, missing
from trainer.run.process import train

HARD = ("rl.reward=overlap", "rl.group_size=2")  # few groups teach


@pytest.mark.parametrize(
    ("teaching", "steps", "over", "lacking", "ends"),
    [
        ("tttt", 2, False, 0, [2, 4]),
        ("ffff", 2, False, 0, [2, 4]),
        ("ftftt", 1, True, 1, [5]),
        ("ftfttfft", 2, True, 0, [4, 8]),  # what does not teach belongs to the step of what was asked before it
        ("tftf", 4, True, 2, [2, 4, 4, 4]),  # too few: the last steps are empty
        ("ff", 2, True, 4, [2, 2]),
    ],
)
def test_steps_of_a_round(teaching, steps, over, lacking, ends):
    marks = [(number, letter == "t") for number, letter in enumerate(teaching)]
    assert missing(marks, 4, over=over) == lacking
    assert cut_steps(marks, steps, over=over) == ends


def asked_and_taught(monkeypatch):
    """The questions of each round that is produced from now on: number -> True where its group teaches."""
    rounds = []
    genuine = Synchronous.produce

    def produce(self, first, steps):
        found = genuine(self, first, steps)
        rounds.append({group.sample: group.teaches for one in found for group in one.groups})
        return found

    monkeypatch.setattr(Synchronous, "produce", produce)
    return rounds


def test_a_step_asks_until_enough_groups_teach(tmp_path, monkeypatch):
    """Every question is asked once, and none is passed over."""
    rounds = asked_and_taught(monkeypatch)
    lines = run_toy(tmp_path / "run", *HARD, "train.steps=4", "rl.oversample=8")
    assert next(iter(rounds[0])) == 0
    numbers = [number for of_round in rounds for number in of_round]
    assert numbers == [*range(len(numbers))]
    for line, of_round in zip(lines, rounds, strict=True):
        assert (line["groups"], line["groups/dropped"]) == (len(of_round), sum(not one for one in of_round.values()))
        assert sum(of_round.values()) == 4
        assert list(of_round.values())[-1]  # not one more than needed
        assert len(of_round) <= 32
    assert any(line["groups/dropped"] for line in lines)


def test_a_step_stops_asking_at_its_bound(tmp_path, monkeypatch):
    rounds = asked_and_taught(monkeypatch)
    lines = run_toy(tmp_path / "run", *HARD, "train.steps=4", "rl.oversample=2")
    assert [line["groups"] for line in lines] == [len(of_round) for of_round in rounds]
    assert all(sum(of_round.values()) == 4 or len(of_round) == 8 for of_round in rounds)
    assert any(len(of_round) == 8 for of_round in rounds)


def test_a_run_that_continues_asks_the_next_question(tmp_path, monkeypatch):
    """The manifest has the number of the first question that was not trained, not a multiple of the batch."""
    words = (*HARD, "rl.oversample=8", "checkpoint.every=2")
    once, twice = tmp_path / "once" / "run", tmp_path / "twice" / "run"
    whole = run_toy(once, *words, "train.steps=4")
    rounds = asked_and_taught(monkeypatch)
    run_toy(twice, *words, "train.steps=2")
    manifest = json.loads((twice / "checkpoints" / "step-2" / "manifest.json").read_text())
    asked = sum(len(of_round) for of_round in rounds)
    assert manifest["sample"] == asked > 8
    continued = run_toy(twice, *words, "train.steps=4")
    assert next(iter(rounds[2])) == asked
    assert [(line["loss"], line["groups"]) for line in continued] == [(line["loss"], line["groups"]) for line in whole]


def over_two(directory, *words):
    assert train(toy_config(directory, *words, "parallel.dp_replicate=2", world_size=2)) == 0


def test_ranks_ask_the_questions_of_one(tmp_path):
    """Their numbers, their rewards, and what is trained on do not depend on the number of ranks."""
    words = (*HARD, "rl.oversample=8", "train.micro_batch=1", "train.steps=3")
    alone = run_toy(tmp_path / "one" / "run", *words)
    on_ranks(2, over_two, tmp_path / "two" / "run", *words)
    both = steps(tmp_path / "two" / "run")
    for name in ("groups", "groups/dropped", "reward/mean", "tokens", "length/mean"):
        assert [line[name] for line in both] == [line[name] for line in alone], name
    assert [line["loss"] for line in both] == pytest.approx([line["loss"] for line in alone], rel=1e-4)
