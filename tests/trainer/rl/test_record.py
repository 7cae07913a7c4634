"""The lines of a round: steps without questions, states and sums, waits; and errors of engines and references."""

from __future__ import annotations

import json
import time
from contextlib import contextmanager

import pytest

from parallel.health.watch import Watch
from parallel.world import World
from tests.distributed.pool import on_ranks
from tests.trainer.rl.toy import run_toy, toy_config
from tests.trainer.tiny_run import steps
from trainer.rl import producer
from trainer.rl.alarm import MismatchAlarm
from trainer.rl.environments import play
from trainer.rl.rollout.embedded import NAME, Embedded
from trainer.run.policy.engines import build_engine
from trainer.run.process import train
from trainer.weights.hf_files import HuggingFaceError
from trainer.weights.kept_source import open_published

EMPTY = ("reward/mean", "solve_rate", "length/mean", "length/max", "length/cut", "staleness/mean", "staleness/max")


def test_a_step_without_questions_has_no_means(tmp_path):
    words = ("rl.updates=3", "rl.oversample=2", "rl.reward=overlap", "rl.group_size=2", "train.global_batch=2")
    found = run_toy(tmp_path / "run", *words, "train.steps=3", "rl.max_tokens=1")
    empty = [line for line in found if not line["groups"]]
    assert 0 < len(empty) < 3
    assert all(line[name] is None for line in empty for name in EMPTY)
    assert all(line[name] is not None for line in found if line["groups"] for name in EMPTY)


def test_figures_of_episodes_are_divided_as_these_are(tmp_path):
    """Steps of a round have different numbers of episodes; the mean over a round is that of each of its steps."""
    words = ("rl.updates=2", "rl.oversample=4", "train.steps=2", "rl.group_size=2")
    one, two = run_toy(tmp_path / "run", *words, recipe="rl_tools_toy")
    assert one["groups"] != two["groups"] > 0
    assert one["turns/mean"] == pytest.approx(two["turns/mean"], rel=1e-9)
    assert one["turns/mean"] >= 1


def test_what_a_round_leaves_behind_is_on_its_first_line(tmp_path):
    found = run_toy(tmp_path / "run", "rl.updates=2", "rl.max_staleness=3", "train.steps=4", "rl.max_tokens=24")
    names = ("rollout/unfinished", "rollout/waiting", "rollout/discarded_tokens", "rollout/tokens_per_second")
    assert [[line[name] is None for name in names] for line in found] == [[False] * 4, [True] * 4] * 2


@pytest.mark.parametrize("recipe", ["rl_toy", "rl_tools_toy"])
def test_ranks_that_wait_for_rewards_and_tools_are_no_hang(tmp_path, monkeypatch, recipe):
    ticking, called = [False], []

    @contextmanager
    def noted(self):
        ticking[0] = True
        yield
        ticking[0] = False

    monkeypatch.setattr(Watch, "ticking", noted)
    for module, name in ((producer, "score_all"), (play, "call_all")):
        genuine = getattr(module, name)
        noting = lambda *args, genuine=genuine: (called.append(ticking[0]), genuine(*args))[1]  # noqa: E731
        monkeypatch.setattr(module, name, noting)
    run_toy(tmp_path / "run", "train.steps=1", recipe=recipe)
    assert set(called) == {True}


def test_a_watch_that_ticks_notes_progress():
    watch = Watch()
    with watch.ticking():
        time.sleep(1.2)
    assert watch._moves == 1


@pytest.mark.parametrize("change", ["cut", "other"])
def test_an_engine_that_answers_something_else_is_named(tmp_path, monkeypatch, capsys, change):
    draw = Embedded.draw

    def changed(self, wanted, end):
        found, *more = draw(self, wanted, end)
        for one in found.values():
            object.__setattr__(one, "finish", "abort")
            object.__setattr__(one, "prompt", one.prompt[:1] if change == "other" else one.prompt)
        return found, *more

    monkeypatch.setattr(Embedded, "draw", changed)
    assert train(toy_config(tmp_path / "run", "rl.max_staleness=1")) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert NAME in line
    assert "question " in line
    assert "; check" in line


def test_errors_of_a_server_have_no_password(tmp_path, monkeypatch):
    pytest.importorskip("httpx", reason="pip install -e '.[rl]'")
    from trainer.run.policy import engines

    made = []
    monkeypatch.setattr(engines, "Remote", lambda *args: made.append(args))

    class Parts:
        stages, meshes, place = {}, None, type("Place", (), {"readers": 1})

    words = ("rl.engine=lmdeploy", "rl.exact=false", "rl.url=http://me:hidden@localhost:9/")
    cfg, world = toy_config(tmp_path / "run", *words), World()
    name, _ = build_engine(cfg, world, Parts, world, world, rollouts=1, longest=1, version=0)
    assert made
    assert name == "LMDeploy at http://localhost:9"


def test_an_unreadable_reference_is_named_by_its_key(tmp_path, monkeypatch):
    cfg = toy_config(tmp_path / "run", "rl.kl_coef=0.1", f"rl.kl_reference={tmp_path}")

    def fail(path):
        raise OSError("it cannot be read")

    monkeypatch.setattr("trainer.weights.kept_source.open_directory", fail)
    with pytest.raises(HuggingFaceError) as caught:
        open_published(cfg, World(), "rl.kl_reference")
    assert caught.value.where == "rl.kl_reference"


def over_two(directory, *words):
    """The record of a run that is killed may end in the middle of a line, which rank 0 cuts."""
    read = MismatchAlarm.of_record

    def of_first(path, *args, **more):
        lines = path.read_bytes().splitlines(keepends=True)
        assert all(json.loads(line) and line.endswith(b"\n") for line in lines)
        found.append(path)
        return read(path, *args, **more)

    found = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MismatchAlarm, "of_record", of_first)
        assert train(toy_config(directory, *words, "parallel.dp_replicate=2", world_size=2)) == 0
    return len(found)


def test_one_rank_reads_the_record(tmp_path):
    directory = tmp_path / "run"
    run_toy(directory, "train.steps=1", "train.micro_batch=1")
    with open(directory / "metrics.jsonl", "ab") as file:
        file.write(b'{"step": 2, "lo')
    assert on_ranks(2, over_two, directory, "train.steps=2", "train.micro_batch=1", timeout_s=120.0) == [1, 0]
    assert [line["step"] for line in steps(directory)] == [1, 2]
