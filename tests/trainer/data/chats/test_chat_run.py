"""Runs on chats: what they log, keep and continue; losses packed and not, and on several ranks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from launch.cli import main
from tests.trainer.chat.templates import FAMILIES, conversations
from tests.trainer.data.chats.chat_corpus import chat_config, write_corpus
from tests.trainer.tiny_run import events, losses, steps
from trainer.chat.template import ChatTemplate
from trainer.data.chats.tokens import open_tokenizer
from trainer.engine.load import open_source
from trainer.run.process import train
from trainer.weights.export import export


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


def test_the_template_goes_along_with_the_run_and_its_export(corpus, tmp_path, capsys):
    """The run's copy makes the same tokens, for when its first weights are gone; transformers renders the export as the
    corpus does."""
    run, out = tmp_path / "run", tmp_path / "out"
    cfg = chat_config(run, corpus, steps=1)
    assert train(cfg) == 0
    export(run, out)
    capsys.readouterr()
    assert main(["inspect", str(run)]) == main(["inspect", str(out)]) == 0
    said = capsys.readouterr().out
    assert f"tokenizer   {run}/tokenizer/tokenizer.json, <|im_end|> ends a turn\n" in said
    assert f"template    {run}/tokenizer/chat_template.jinja\n" in said
    assert "template    chat_template.jinja\n" in said
    without = chat_config(run, corpus, data={"tokenizer": None}).data
    assert open_tokenizer(without, kept=run / "tokenizer").key == open_tokenizer(cfg.data).key
    messages, tools = conversations(FAMILIES["qwen3"])["tools"]
    text = ChatTemplate.load(corpus).render(messages, tools, add_generation_prompt=True)
    for directory in (run, run / "checkpoints" / "step-1", out):
        assert ChatTemplate.load(directory).render(messages, tools, add_generation_prompt=True) == text
    peer = AutoTokenizer.from_pretrained(out)
    assert peer.apply_chat_template(messages, tools=tools, tokenize=False, add_generation_prompt=True) == text
    end = peer.convert_tokens_to_ids("<|im_end|>")
    assert (peer.eos_token_id, peer.bos_token) == (end, None)
    assert json.loads((out / "generation_config.json").read_text())["eos_token_id"] == end
    for directory in (run, out):
        source = open_source(directory)
        assert source.stop_ids == {end}
        assert source.tokenizer.encode(text) == peer.encode(text, add_special_tokens=False)
