"""A chat template that cannot be compiled: every command that reads one says so before it starts, with exit code 2."""

from __future__ import annotations

from pathlib import Path

import pytest

from launch.cli import main
from tests.printed import error_line
from tests.trainer.data.chats.chat_corpus import chat_config, write_corpus
from trainer.run.process import train

BAD = "{% for m in messages %}\n{{ m.content }"


@pytest.mark.parametrize("command", ["chat", "serve"])
def test_commands_that_converse(text_run, tmp_path, capsys, command):
    template = tmp_path / "chat.jinja"
    template.write_text(BAD)
    assert main([command, str(text_run), "--chat-template", str(template)]) == 2
    error_line(capsys.readouterr().err, template)


@pytest.mark.parametrize("action", ["check", "show", "stats"])
def test_commands_that_read_chats(tmp_path: Path, capsys, action):
    corpus = write_corpus(tmp_path, template=BAD)
    words = [f"data.tokenizer={corpus}", f"data.root={corpus}", "data.build=none", f"data.cache_dir={corpus}/cache"]
    assert main(["data", action, "sft_toy", *(["0"] if action == "show" else []), *words]) == 2
    error_line(capsys.readouterr().err, corpus / "chat_template.jinja")
    if action == "check":
        assert train(chat_config(tmp_path / "run", corpus)) == 2
        error_line(capsys.readouterr().err, corpus / "chat_template.jinja")


@pytest.mark.parametrize("command", ["chat", "serve"])
def test_help_fits_a_terminal(capsys, command):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 100
