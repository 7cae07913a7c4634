"""A run with a tokenizer, trained for one step."""

from pathlib import Path

import pytest

from tests.trainer.data.small_mixture import make_mixture
from tests.trainer.tiny_run import tiny_config
from trainer.run.process import train


@pytest.fixture(scope="session")
def text_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("runs") / "run"
    model = {"vocab_size": 320, "router_groups": 1, "positions": "rope", "max_position": 2000, "init_std": 0.3}
    cfg = tiny_config(directory, model=model, steps=1)
    with pytest.MonkeyPatch.context() as patch:
        cfg.data = make_mixture(tmp_path_factory.mktemp("mixture"), patch)
    assert train(cfg) == 0
    return directory
