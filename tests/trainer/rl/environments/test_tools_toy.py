"""The loop over episodes: what a tool wrote is read and replayed, and not trained on."""

import numpy as np
import pytest

from tests.trainer.model.tiny import model_config
from tests.trainer.rl.toy import run_toy, toy_config
from trainer.data.batch import IGNORE
from trainer.rl.batches import Trained, make_batches, pack
from trainer.rl.environments.base import EnvironmentFailed
from trainer.rl.episodes import environment_of
from trainer.rl.rollout.protocol import Rollout


def test_a_run_with_the_calculator_trains_on_what_it_drew(tmp_path):
    """In exact arithmetic the log-probabilities of drawn tokens are those of training, bit for bit, over turns too."""
    steps = run_toy(tmp_path / "run", "optim.lr=0.01", recipe="rl_tools_toy")
    assert [step["step"] for step in steps] == [1, 2, 3]
    assert sum(step["tokens"] for step in steps) > 0
    for step in steps:
        assert step["mismatch/max"] == 0.0
        if step["tokens"]:
            assert step["replay/flip_rate"] == 0.0
        assert step["turns/mean"] >= 1
        assert step["tools/calls"] >= step["tools/errors"] >= 0
    assert any(step["tools/calls"] > 0 for step in steps)


def test_tokens_of_tools_have_no_label():
    drawn = np.array([True, True, False, False, True])
    rollout = Rollout((3, 4), (5, 6, 7, 8, 9), np.zeros(5, np.float32), None, np.zeros(5, np.int64), "stop", drawn)
    trained = [Trained(0, rollout, 1.0)]
    model = model_config()
    (batch,) = make_batches(trained, pack([6], 8), micro_batches=1, micro_batch=1, seq_len=8, model=model, padding=0,
                            routed=False)  # fmt: skip
    assert batch.inputs["ids"][0, :6].tolist() == [3, 4, 5, 6, 7, 8]
    assert batch.labels[0].tolist() == [IGNORE, 5, 6, IGNORE, IGNORE, 9, IGNORE, IGNORE]
    assert batch.num_tokens == 3
    assert batch.extra["share"][0, :6].tolist() == pytest.approx([0, 1 / 3, 1 / 3, 0, 0, 1 / 3])


@pytest.mark.parametrize(
    ("key", "value", "where"),
    [
        ("environment", "{tool: [calculator]}", "rl.environment.tool"),
        ("environment", "calculator", "rl.environment"),
        ("environment", "{tools: [calculator", "rl.environment"),
        ("reward", "overlp", "rl.environment.reward"),
    ],
)
def test_an_environment_that_cannot_be_built_names_its_key(tmp_path, key, value, where):
    cfg = toy_config(tmp_path / "run", recipe="rl_tools_toy")
    setattr(cfg.rl, key, value)
    with pytest.raises(EnvironmentFailed) as caught:
        environment_of(cfg.rl)
    assert caught.value.where == where
