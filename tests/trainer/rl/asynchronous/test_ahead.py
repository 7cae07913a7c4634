"""Rollouts that are under way while training continues, with the embedded engine."""

import numpy as np
import pytest

from tests.distributed.pool import on_ranks
from tests.trainer.rl.asynchronous.records import FROZEN, rounds_of, same
from tests.trainer.rl.toy import run_toy, toy_config
from tests.trainer.tiny_run import events, steps
from trainer.config.checks.validate import validate
from trainer.rl import alarm
from trainer.run.policy import trainer as module
from trainer.run.policy.producers import build_ahead, build_producer
from trainer.run.process import train

LONG = ("rl.max_tokens=24", "rl.reward=overlap", "optim.lr=1e-2")
CROWDED = ("rl.concurrent=5",)  # so few that rollouts are cut by a change of weights


def test_nothing_ahead_is_the_synchronous_loop_exactly(tmp_path, monkeypatch):
    usual = run_toy(tmp_path / "usual" / "run", *LONG, "rl.oversample=2")

    def none_ahead(cfg, questions, led, place, **more):
        made = build_producer(cfg, questions, led, place, **more)
        made.ahead = build_ahead(cfg, questions, led, place, None, name=more["name"], count=0)
        return made

    monkeypatch.setattr(module, "build_producer", none_ahead)
    found = run_toy(tmp_path / "other" / "run", *LONG, "rl.oversample=2")
    timed = {name for name in usual[0] if "second" in name} | {"peak_memory_bytes"}
    for line, expected in zip(found, usual, strict=True):
        assert {name: line[name] for name in expected if name not in timed} == {
            name: value for name, value in expected.items() if name not in timed
        }


@pytest.mark.parametrize(("staleness", "more"), [(1, CROWDED), pytest.param(2, (), marks=pytest.mark.slow)])
def test_no_token_is_older_than_the_bound_and_no_question_is_passed_over(tmp_path, monkeypatch, staleness, more):
    rounds = rounds_of(monkeypatch)
    lines = run_toy(tmp_path / "run", *LONG, *more, f"rl.max_staleness={staleness}", "train.steps=6")
    assert [group.sample for _, groups in rounds for group in groups] == [*range(24)]
    versions = [(version, one.versions) for version, groups in rounds for group in groups for one in group.rollouts]
    assert all(version - staleness <= min(of_tokens) for version, of_tokens in versions)
    assert any(len(set(of_tokens.tolist())) > 1 for _, of_tokens in versions)  # drawn under several weights
    assert all((np.diff(of_tokens) >= 0).all() for _, of_tokens in versions)
    assert max(line["staleness/max"] for line in lines) == staleness
    assert any(line["rollout/unfinished"] for line in lines)
    assert all(line["rollout/discarded_tokens"] == 0 for line in lines)


def test_the_age_of_rollouts_is_no_alarm(tmp_path, monkeypatch):
    """In exact arithmetic any k3 of tokens of the weights of now would be one."""
    monkeypatch.setattr(alarm, "EARLY", 1)
    lines = run_toy(tmp_path / "run", *LONG, "rl.max_staleness=1", "train.steps=4")
    assert [line["staleness/max"] for line in lines] == [0, 1, 0, 1]
    assert max(line["mismatch/k3"] for line in lines) > 0
    assert [line["mismatch/k3_early"] for line in lines] == [None, 0.0, 0.0, 0.0]
    assert [line["mismatch/alarm"] for line in lines] == [None, None, 0, None]
    assert not events(tmp_path / "run", "warning")


@pytest.mark.parametrize("partial", ["keep", pytest.param("discard", marks=pytest.mark.slow)])
def test_parts_under_equal_weights_are_the_rollouts_that_were_never_cut(tmp_path, monkeypatch, partial):
    """Tokens, log-probabilities and routes, to the last bit; and training computes the same."""
    rounds = rounds_of(monkeypatch)
    run_toy(tmp_path / "usual" / "run", *LONG[:2], *FROZEN, "train.steps=4")
    whole = {group.sample: group for _, groups in rounds for group in groups}
    rounds.clear()
    words = (*LONG[:2], *FROZEN, *CROWDED, "train.steps=4", "rl.max_staleness=2", f"rl.partial_rollouts={partial}")
    lines = run_toy(tmp_path / "other" / "run", *words)
    several = 0
    for _, groups in rounds:
        for group in groups:
            assert all(same(a, b) for a, b in zip(group.rollouts, whole[group.sample].rollouts, strict=True))
            several += sum(len(set(one.versions.tolist())) > 1 for one in group.rollouts)
    assert (several > 0) == (partial == "keep")
    assert (sum(line["rollout/discarded_tokens"] for line in lines) > 0) == (partial == "discard")
    assert all(line["mismatch/max"] == 0.0 for line in lines)


@pytest.mark.slow
def test_several_updates_of_a_round_stay_within_the_bound(tmp_path, monkeypatch):
    lines = run_toy(tmp_path / "run", *LONG, "rl.max_staleness=3", "rl.updates=2", "train.steps=6")
    assert [line["staleness/max"] <= 3 for line in lines] == [True] * 6
    assert max(line["staleness/max"] for line in lines) == 3


@pytest.mark.parametrize(
    ("words", "where"),
    [
        (("rl.max_staleness=2", "rl.updates=2"), "rl.max_staleness"),
        (("rl.partial_rollouts=discard",), "rl.partial_rollouts"),
    ],
)
def test_what_cannot_be_held_is_refused(tmp_path, words, where):
    cfg = toy_config(tmp_path / "run")
    for word in words:
        name, _, value = word.removeprefix("rl.").partition("=")
        setattr(cfg.rl, name, int(value) if value.isdigit() else value)
    (fault,) = validate(cfg, 1)
    assert fault.where == where
    setattr(cfg.rl, where.removeprefix("rl."), fault.allowed[-1])
    assert not [*validate(cfg, 1)]


def over_two(directory, *words):
    assert train(toy_config(directory, *words, "parallel.dp_replicate=2", world_size=2)) == 0


@pytest.mark.slow
def test_ranks_train_on_the_rollouts_of_one(tmp_path):
    words = (*LONG, "rl.max_staleness=2", "rl.oversample=2", "rl.group_size=3", "train.micro_batch=1")
    alone = run_toy(tmp_path / "one" / "run", *words)
    on_ranks(2, over_two, tmp_path / "two" / "run", *words)
    both = steps(tmp_path / "two" / "run")
    for name in ("groups", "groups/dropped", "tokens", "length/mean", "staleness/mean", "rollout/unfinished"):
        assert [line[name] for line in both] == [line[name] for line in alone], name
    assert [line["loss"] for line in both] == pytest.approx([line["loss"] for line in alone], rel=1e-4)
