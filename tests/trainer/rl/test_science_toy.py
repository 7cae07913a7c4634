"""recipe=rl_science_toy: questions of all kinds from records, each with the reward of its kind."""

import pytest

from tests.trainer.tiny_run import events, records
from trainer.config.compose import compose
from trainer.run.process import train

pytest.importorskip("pint", reason="pip install -e '.[rewards]'")
pytest.importorskip("chemicals", reason="pip install -e '.[toy]'")


def run(directory, recipe, *words):
    given = [f"data.cache_dir={directory.parent / 'cache'}", f"run.dir={directory}", "train.device=cpu"]
    assert train(compose([f"recipe={recipe}", *given, "logging.console=off", *words], world_size=1)) == 0
    return [one for one in records(directory) if "event" not in one]


def test_without_the_weights_that_know_some_answers_it_ends_with_the_key(tmp_path, monkeypatch, capsys):
    """And leaves no directory that looks like a run."""
    monkeypatch.chdir(tmp_path)
    assert train(compose(["recipe=rl_science_toy", "run.dir=run", "train.device=cpu", "logging.console=off"])) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert "checkpoint.init_from=outputs/science" in line
    assert list(tmp_path.iterdir()) == []


def test_a_short_run_answers_questions_of_all_kinds(tmp_path):
    words = ["train.steps=2", "train.global_batch=4", "train.micro_batch=4", "rl.group_size=2", "rl.max_tokens=6"]
    steps = run(tmp_path / "run", "rl_science_toy", *words, "rl.eval_questions=4", "checkpoint.init_from=null")
    assert [step["step"] for step in steps] == [1, 2]
    assert all(0 <= step["reward/mean"] <= 1 for step in steps)
    (evaluation,) = events(tmp_path / "run", "evaluation")
    assert evaluation["heldout_reward"].keys() == {"science"}
