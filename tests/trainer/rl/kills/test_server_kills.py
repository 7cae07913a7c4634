"""Rollout servers that die, hang or answer nonsense, and runs that are killed while they speak to one.

The server is a process of its own. It draws by seeds that start anew with each load, so that a run which was started
again draws what a run that was never stopped draws.
"""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
import torch

from tests.distributed.doomed import Ended, run_ranks
from tests.printed import error_line
from tests.trainer.rl.kills.places import (
    BATCH,
    KILL,
    Place,
    assert_equal_weights,
    run_until,
    trained_questions,
)
from tests.trainer.rl.servers.stand_in import FAULT, Fault, own_server, write_model
from tests.trainer.rl.toy import toy_config
from tests.trainer.tiny_run import events, steps
from trainer.model.decoder import Decoder
from trainer.rl.servers.buckets import buckets_of
from trainer.rl.servers.remote import published

pytestmark = pytest.mark.slow

LIMIT_S, DEADLINE_S = 200.0, 15.0
STEPS, GROUP = 3, 3
EVERY = [*range(BATCH * STEPS)]
GIVEN = (
    f"train.steps={STEPS}", "checkpoint.every=2", f"rl.group_size={GROUP}", "model.positions=fope",
    "model.expert_width=256", "rl.engine=lmdeploy", "rl.exact=false", "rl.bucket_mb=1", "rl.concurrent=1",
)  # fmt: skip
ROLLOUTS = GROUP * BATCH  # of a step
PROBES = 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A model with the run's sizes and other weights."""
    place = tmp_path_factory.mktemp("model")
    return write_model(place / "model", toy_config(place / "run", *GIVEN, "rl.url=http://localhost:9").model, seed=99)


def run_at(url: str, run: Path, place: Place | None = None, number: int = KILL, deadline_s: float = LIMIT_S) -> Ended:
    """A run, or what is left of it, in a process of its own."""
    given = (*GIVEN, f"rl.url={url}", f"rl.deadline_s={deadline_s}")
    return run_ranks(run.parent, 1, run_until, run, place, number, given, limit_s=LIMIT_S)


def port_of(url: str) -> int:
    return int(url.rpartition(":")[2])


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory) -> Path:
    """A run that was never stopped."""
    run = tmp_path_factory.mktemp("whole") / "run"
    with own_server(folder) as url:
        ended = run_at(url, run)
    assert ended.codes == [0], ended.output
    assert trained_questions(run) == EVERY
    assert all(step["tokens"] for step in steps(run))
    return run


def assert_whole(run: Path, whole: Path) -> None:
    assert trained_questions(run) == EVERY
    assert [step["loss"] for step in steps(run)] == [step["loss"] for step in steps(whole)]
    assert_equal_weights(run, whole)


def buckets(tmp_path: Path) -> int:
    model = Decoder(toy_config(tmp_path / "none", *GIVEN, "rl.url=http://localhost:9").model, torch.float32)
    return sum(1 for _ in buckets_of(published([model], model.cfg), 1 << 20))


IN_STEP_2 = PROBES + ROLLOUTS + 5  # requests to /generate
LAST = 1 << 30


@pytest.mark.parametrize(
    ("fault", "named"),
    [
        (Fault("dead", "/generate", IN_STEP_2, LAST), "request 4 "),
        (Fault("hung", "/generate", IN_STEP_2, LAST), "request 4 "),
        (Fault("500", "/generate", IN_STEP_2, LAST), "request 4 "),
        (Fault("garbage", "/generate", IN_STEP_2, LAST), "request 4 "),
        (Fault("truncated", "/generate", IN_STEP_2, LAST), "request 4 "),
        (Fault("dead", "/sleep", 2, LAST), "/sleep"),
        (Fault("dead", "/update_weights", 6, LAST), "/update_weights"),
        (Fault("garbage", "/is_sleeping", 3, LAST), "/is_sleeping"),
    ],
    ids=lambda value: f"{value.kind} at {value.path}" if isinstance(value, Fault) else "",
)
def test_a_server_that_fails_ends_the_run_in_one_line_and_the_run_continues_later(
    tmp_path, folder, whole, fault, named
):
    run = tmp_path / "run"
    with own_server(folder, fault) as url:
        ended = run_at(url, run, deadline_s=DEADLINE_S)
        took = time.time() - (folder / FAULT).stat().st_mtime
    assert ended.codes == [1], ended.output
    (line,) = ended.errors
    error_line(line, f"LMDeploy at {url}", named)
    assert took < DEADLINE_S + 45  # with the save and the end of the process
    assert (run / "checkpoints" / "latest").read_text() == "step-1\n", "the step before is saved"
    assert trained_questions(run) == EVERY[:BATCH]
    with own_server(folder, port=port_of(url)) as again:
        assert again == url
        ended = run_at(url, run)
    assert ended.codes == [0], ended.output
    assert_whole(run, whole)


@pytest.mark.parametrize(
    "fault",
    [
        Fault("500", "/generate", IN_STEP_2, IN_STEP_2 + 1),
        Fault("truncated", "/generate", IN_STEP_2, IN_STEP_2),
        Fault("truncated", "/is_sleeping", 5, 5),
    ],
    ids=lambda fault: f"{fault.kind} at {fault.path}",
)
def test_a_request_that_failed_is_repeated_and_nothing_is_lost(tmp_path, folder, fault):
    """The server draws with another seed then, so the weights are others."""
    run = tmp_path / "run"
    with own_server(folder, fault) as url:
        ended = run_at(url, run)
    assert ended.codes == [0], ended.output
    assert trained_questions(run) == EVERY


@pytest.mark.parametrize(
    "fault",
    [
        Fault("restarted", "/generate", IN_STEP_2, IN_STEP_2),
        Fault("restarted", "/is_sleeping", 4, 4),
    ],
    ids=["in the middle of the rollouts", "between a load and the rollouts"],
)
def test_a_server_that_was_restarted_gets_the_weights_again(tmp_path, folder, whole, fault):
    """It answers as before, with its first weights: the run has none of these answers."""
    run = tmp_path / "run"
    with own_server(folder, fault) as url:
        ended = run_at(url, run)
    assert ended.codes == [0], ended.output
    assert_whole(run, whole)


@pytest.mark.parametrize("name", ["rollouts", "first bucket", "second bucket", "empty bucket", "wakeup"])
def test_a_run_that_is_killed_beside_a_server_continues(tmp_path, folder, whole, name):
    """The server is left with requests or with half of the weights, and stays as it is."""
    run, each = tmp_path / "run", buckets(tmp_path)
    assert each > 2
    place = {
        "rollouts": Place("trainer.rl.servers.lmdeploy:LMDeployEngine._try", 2 * ROLLOUTS + 5),
        "first bucket": Place("trainer.rl.servers.lmdeploy:LMDeployEngine.take", 2 * each + 1),
        "second bucket": Place("trainer.rl.servers.lmdeploy:LMDeployEngine.take", 2 * each + 2),
        "empty bucket": Place("trainer.rl.servers.lmdeploy:LMDeployEngine.finish_load", 3),
        "wakeup": Place("trainer.rl.servers.lmdeploy:LMDeployEngine.resume", 3),
    }[name]
    with own_server(folder) as url:
        ended = run_at(url, run, place)
        assert ended.codes == [-KILL], ended.output
        assert trained_questions(run) == EVERY[: 2 * BATCH]
        ended = run_at(url, run)
    assert ended.codes == [0], ended.output
    assert_whole(run, whole)


def test_a_run_that_is_asked_to_end_beside_a_server_finishes_its_step(tmp_path, folder, whole):
    run = tmp_path / "run"
    with own_server(folder) as url:
        place = Place("trainer.rl.servers.lmdeploy:LMDeployEngine._try", ROLLOUTS + 5)
        ended = run_at(url, run, place, signal.SIGTERM)
        assert ended.codes == [128 + signal.SIGTERM], ended.output
        (stopped,) = events(run, "stopped")
        assert trained_questions(run) == EVERY[: BATCH * stopped["step"]]
        ended = run_at(url, run)
    assert ended.codes == [0], ended.output
    assert_whole(run, whole)
