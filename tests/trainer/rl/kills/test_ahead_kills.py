"""Runs with rollouts ahead of training that are killed, or whose engine dies: rollouts that a checkpoint has continue,
and every question is trained on once. docs/rl.md has the table."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.distributed.doomed import Ended, run_ranks
from tests.printed import error_line
from tests.trainer.rl.kills.places import (
    BATCH,
    KILL,
    STEPS,
    Place,
    assert_equal_weights,
    run_until,
    trained_questions,
    words,
)
from tests.trainer.rl.servers.stand_in import Fault, own_server, write_model
from tests.trainer.rl.toy import toy_config
from tests.trainer.tiny_run import losses, steps
from trainer.rl.asynchronous.held import read_held
from trainer.run.process import train

SLOW = pytest.mark.slow
LIMIT_S = 200.0
EVERY = [*range(BATCH * STEPS)]
AHEAD = ("rl.max_staleness=2", "rl.max_tokens=24", "rl.reward=overlap", "optim.lr=1e-2")

# ---- the embedded engine; step-2 is the newest checkpoint, and has rollouts under way ----

EMBEDDED = words(*AHEAD, "rl.concurrent=8", eval_every=0)
PLACES = {
    "in the middle of rollouts": Place("trainer.rl.rollout.embedded:Embedded.draw", 30),
    "between rewards and the update": Place("trainer.run.policy.trainer:PolicyTrainer._train_step", 4),
    "between stopped rollouts and new weights": Place("trainer.rl.rollout.embedded:Embedded.pause", 4),
    "behind new weights, before rollouts continue": Place("trainer.rl.rollout.embedded:Embedded.start", 4),
    "between stopped rollouts and their checkpoint": Place("trainer.run.checkpoints:Checkpoints.save", 2),
    "while a checkpoint with rollouts is written": Place("trainer.storage.manifest:Manifest.write", 1, about="step-4"),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run that was never killed."""
    run = tmp_path_factory.mktemp("whole") / "run"
    assert train(toy_config(run, *EMBEDDED)) == 0
    assert trained_questions(run) == EVERY
    assert max(line["staleness/max"] for line in steps(run)) > 0
    return run


@pytest.mark.parametrize("name", [pytest.param(one, marks=SLOW if at else (), id=one) for at, one in enumerate(PLACES)])
def test_a_killed_run_continues_its_rollouts_bit_for_bit(tmp_path, whole, name):
    run = tmp_path / "run"
    ended = run_ranks(tmp_path, 1, run_until, run, PLACES[name], KILL, EMBEDDED, limit_s=LIMIT_S)
    assert ended.codes == [-KILL], ended.output
    assert (run / "checkpoints" / "latest").read_text() == "step-2\n"
    held, _ = read_held((run / "checkpoints" / "step-2").iterdir(), 0, 1)
    assert any(one.rollout.finish == "abort" for one in held)
    before = trained_questions(run)
    assert before == EVERY[: len(before)]
    assert train(toy_config(run, *EMBEDDED)) == 0
    assert trained_questions(run) == EVERY
    assert losses(run) == losses(whole)
    assert_equal_weights(run, whole)


# ---- a server in another process, whose draws depend on the order in which it is asked ----

BESIDE = words(
    *AHEAD, "model.positions=fope", "model.expert_width=256", "rl.engine=lmdeploy", "rl.exact=false", "rl.bucket_mb=1",
    "rl.concurrent=4", eval_every=0,
)  # fmt: skip
ROLLOUTS = 4 * BATCH  # of a step


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A model with the run's sizes and other weights."""
    place = tmp_path_factory.mktemp("model")
    return write_model(place / "model", toy_config(place / "run", *BESIDE, "rl.url=http://localhost:9").model, seed=99)


def run_at(url: str, run: Path, place: Place | None = None, deadline_s: float = LIMIT_S) -> Ended:
    """A run, or what is left of it, in a process of its own."""
    given = (*BESIDE, f"rl.url={url}", f"rl.deadline_s={deadline_s}")
    return run_ranks(run.parent, 1, run_until, run, place, KILL, given, limit_s=LIMIT_S)


def assert_trained_once(run: Path) -> None:
    lines = steps(run)
    assert trained_questions(run) == EVERY
    assert max(line["staleness/max"] for line in lines if line["tokens"]) in (1, 2)
    assert all(line["sync/bytes"] > 0 for line in lines)


@SLOW
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ["rollouts", "bucket", "update", "checkpoint"])
def test_a_run_that_is_killed_while_a_server_draws_ahead_continues(tmp_path, folder, name):
    """The server is left with requests or with half of the weights, and stays as it is."""
    run = tmp_path / "run"
    place = {
        "rollouts": Place("trainer.rl.servers.lmdeploy:LMDeployEngine._try", 4 * ROLLOUTS),
        "bucket": Place("trainer.rl.servers.lmdeploy:LMDeployEngine.finish_load", 4),
        "update": Place("trainer.run.policy.trainer:PolicyTrainer._update", 4),
        "checkpoint": Place("trainer.storage.manifest:Manifest.write", 1, about="step-4"),
    }[name]
    with own_server(folder) as url:
        ended = run_at(url, run, place)
        assert ended.codes == [-KILL], ended.output
        before = trained_questions(run)
        assert before == EVERY[: len(before)]
        ended = run_at(url, run)
    assert ended.codes == [0], ended.output
    assert_trained_once(run)


@SLOW
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("fault", "named"),
    [
        (Fault("dead", "/generate", 3 * ROLLOUTS + 5, 1 << 30), "request "),
        (Fault("500", "/generate", 3 * ROLLOUTS + 5, 1 << 30), "request "),
        (Fault("dead", "/sleep", 3, 1 << 30), "/sleep"),
    ],
    ids=lambda value: f"{value.kind} at {value.path}" if isinstance(value, Fault) else "",
)
def test_a_server_that_fails_while_it_draws_ahead_ends_the_run_in_one_line(tmp_path, folder, fault, named):
    run = tmp_path / "run"
    with own_server(folder, fault) as url:
        ended = run_at(url, run)
        assert ended.codes == [1], ended.output
        (line,) = ended.errors
        error_line(line, f"LMDeploy at {url}", named)
    before = trained_questions(run)
    assert before == EVERY[: len(before)] != []
    assert (run / "checkpoints" / "latest").read_text() == f"step-{len(before) // BATCH}\n", "the step is saved"
    with own_server(folder, port=int(url.rpartition(":")[2])) as again:
        ended = run_at(again, run)
    assert ended.codes == [0], ended.output
    assert_trained_once(run)
