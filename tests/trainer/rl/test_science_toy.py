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


def test_a_short_run_answers_questions_of_all_kinds(tmp_path):
    words = ["train.steps=2", "train.global_batch=4", "train.micro_batch=4", "rl.group_size=2", "rl.max_tokens=6"]
    steps = run(tmp_path / "run", "rl_science_toy", *words, "rl.eval_questions=4")
    assert [step["step"] for step in steps] == [1, 2]
    assert all(0 <= step["reward/mean"] <= 1 for step in steps)
    (evaluation,) = events(tmp_path / "run", "evaluation")
    assert evaluation["heldout_reward"].keys() == {"science"}
