"""Runs on chats: what they log, keep and continue; losses packed and not, and on several ranks."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.trainer.data.chats.chat_corpus import chat_config, write_corpus
from tests.trainer.tiny_run import events, losses, steps
from trainer.run.process import train


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


def test_a_run_continues_where_it_stopped(corpus, tmp_path):
    constant = {"schedule": "constant"}
    assert train(chat_config(tmp_path / "whole", corpus, steps=4, **constant)) == 0
    for last in (2, 4):
        assert train(chat_config(tmp_path / "parts", corpus, steps=last, **constant)) == 0
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    assert len(steps(tmp_path / "whole")) == 4
    (evaluation,) = events(tmp_path / "whole", "evaluation")
    assert evaluation["heldout"]["mine"] < steps(tmp_path / "whole")[0]["loss"]
