"""Runs that are killed and started again: every question is trained on once, and the weights are those of a run that
was never killed. docs/rl.md has the table."""

from __future__ import annotations

import signal
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.distributed.doomed import run_ranks
from tests.printed import error_line
from tests.trainer.rl.kills.places import (
    BATCH,
    KILL,
    STEPS,
    Place,
    act_at,
    assert_equal_weights,
    run_until,
    trained_questions,
    words,
)
from tests.trainer.rl.toy import toy_config
from tests.trainer.tiny_run import events, losses
from trainer.rl.rollout import embedded
from trainer.run.process import train

LIMIT_S = 100.0
EVERY = [*range(BATCH * STEPS)]

# All but the evaluation, which is behind step 3, are in the fourth step; the second has a checkpoint.
PLACES = {
    "in the middle of the rollouts": Place("trainer.engine.engine:Engine.advance", 11),
    "between rollouts and rewards": Place("trainer.rl.producer:Synchronous._score", 5),  # an evaluation has one
    "between rewards and the update": Place("trainer.run.policy.trainer:PolicyTrainer._train_step", 4),
    "between gradients and the update": Place("trainer.run.policy.trainer:PolicyTrainer._update", 4),
    "between the update and its line": Place("trainer.run.policy.trainer:PolicyTrainer._update", 4, after=True),
    "between the line and the checkpoint": Place("trainer.run.checkpoints:Checkpoints.save", 2),
    "while a checkpoint is written": Place("trainer.storage.manifest:Manifest.file_facts", 1, about="step-4"),
    "before a checkpoint counts": Place("trainer.storage.manifest:Manifest.write", 1, about="step-4"),
    "in an evaluation": Place("trainer.rl.producer:Synchronous.answer", 1),
}
QUICK = ("in the middle of the rollouts", "between rewards and the update", "before a checkpoint counts")


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run that was never killed."""
    directory = tmp_path_factory.mktemp("whole") / "run"
    assert train(toy_config(directory, *words())) == 0
    assert trained_questions(directory) == EVERY
    return directory


def resumed(directory: Path, *given: str) -> None:
    assert train(toy_config(directory, *words(*given))) == 0
    assert trained_questions(directory) == EVERY


@pytest.mark.parametrize(
    "name", [pytest.param(one, marks=() if one in QUICK else pytest.mark.slow, id=one) for one in PLACES]
)
def test_a_killed_run_continues_as_if_it_had_not_been(tmp_path, whole, name):
    run = tmp_path / "run"
    ended = run_ranks(tmp_path, 1, run_until, run, PLACES[name], KILL, words(), limit_s=LIMIT_S)
    assert ended.codes == [-KILL], ended.output
    assert (run / "checkpoints" / "latest").read_text() == "step-2\n"
    before = trained_questions(run)
    assert BATCH * 2 <= len(before) < len(EVERY)
    assert before == EVERY[: len(before)]
    resumed(run)
    assert losses(run) == losses(whole)
    assert_equal_weights(run, whole)


def test_rollouts_of_the_runs_own_engine_that_are_late_end_it_and_it_continues(tmp_path, capfd, whole, monkeypatch):
    """By the deadline; what was trained is saved."""
    run = tmp_path / "run"
    later = SimpleNamespace(monotonic=lambda: time.monotonic() + 1000)
    with monkeypatch.context() as patch:
        pass_deadline = partial(patch.setattr, embedded, "time", later)
        act_at(PLACES["in the middle of the rollouts"], pass_deadline, patch.setattr)
        assert train(toy_config(run, *words())) == 1
    printed = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    error_line("\n".join(printed), "embedded engine", "request ", "rl.deadline_s=600")
    before = trained_questions(run)
    assert before == EVERY[: len(before)] != []
    assert (run / "checkpoints" / "latest").read_text() == f"step-{len(before) // BATCH}\n"
    resumed(run)
    assert losses(run) == losses(whole)
    assert_equal_weights(run, whole)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["in the middle of the rollouts", "between gradients and the update"])
def test_a_run_that_is_asked_to_end_finishes_its_step(tmp_path, whole, name):
    run = tmp_path / "run"
    ended = run_ranks(tmp_path, 1, run_until, run, PLACES[name], signal.SIGTERM, words(), limit_s=LIMIT_S)
    assert ended.codes == [128 + signal.SIGTERM], ended.output
    (stopped,) = events(run, "stopped")
    assert (run / "checkpoints" / "latest").read_text() == f"step-{stopped['step']}\n"
    assert trained_questions(run) == EVERY[: BATCH * stopped["step"]]
    resumed(run)
    assert losses(run) == losses(whole)
    assert_equal_weights(run, whole)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["in the middle of the rollouts", "between gradients and the update"])
def test_the_others_name_a_rank_that_was_killed(tmp_path, name):
    run, given = tmp_path / "run", words("parallel.timeout_s=60")
    whole = run_ranks(tmp_path / "whole", 2, run_until, tmp_path / "whole" / "run", None, KILL, given, limit_s=LIMIT_S)
    assert whole.codes == [0, 0], whole.output
    ended = run_ranks(tmp_path, 2, run_until, run, PLACES[name], KILL, given, 1, limit_s=LIMIT_S)
    assert ended.codes == [1, -KILL], ended.output
    (line,) = ended.errors
    assert "rank 1 " in line
    again = run_ranks(tmp_path, 2, run_until, run, None, KILL, given, limit_s=LIMIT_S)
    assert again.codes == [0, 0], again.output
    assert trained_questions(run) == EVERY
    assert losses(run) == losses(tmp_path / "whole" / "run")
    assert_equal_weights(run, tmp_path / "whole" / "run")


@pytest.mark.slow
@pytest.mark.parametrize("word", ["rl.updates=2", "rl.oversample=3"])
def test_a_round_that_is_cut_in_the_middle_loses_no_question(tmp_path, word):
    """The checkpoint is behind the first of two steps on a round, or behind steps with more questions than groups."""
    run = tmp_path / "run"
    given = tuple(one for one in words(word, "checkpoint.every=1") if one != "checkpoint.every=2")
    place = Place("trainer.run.policy.trainer:PolicyTrainer._train_step", 4)
    ended = run_ranks(tmp_path, 1, run_until, run, place, KILL, given, limit_s=LIMIT_S)
    assert ended.codes == [-KILL], ended.output
    before = trained_questions(run)
    assert train(toy_config(run, *given)) == 0
    found = trained_questions(run)
    assert found == [*range(len(found))]
    assert found[: len(before)] == before
    assert len(found) >= len(EVERY)
