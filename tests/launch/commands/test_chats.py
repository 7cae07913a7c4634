"""`octavo data` on chats: what is counted, and which tokens it shows as trained on."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from launch.cli import main
from tests.trainer.data.chats.chat_corpus import LINES, chat_config, write_corpus
from trainer.config.compose import to_yaml


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = tmp_path_factory.mktemp("corpus")
    corpus = write_corpus(directory, [*LINES, json.dumps({"messages": []})])
    file = directory / "config.yaml"
    file.write_text(to_yaml(chat_config(directory / "run", corpus)))
    return str(file)


def test_check_counts(config, capsys):
    assert main(["data", "check", config]) == 0
    out, err = capsys.readouterr()
    (row,) = [line.split() for line in out.splitlines() if line.strip().startswith("mine")]
    assert row[:5] == ["mine", "41", "36", "4", "56"]  # eight have two questions, eight a call before the answer
    assert f"{Path(config).parent}/chats.jsonl:41" in err


def test_stats_add_up(config, capsys):
    assert main(["data", "stats", config]) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    windows, length = (int(number) for number in re.findall(r"\d+", lines["windows"])[:2])
    trained, tokens = (int(number.replace(",", "")) for number in re.findall(r"[\d,]+", lines["trained"])[:2])
    padding = float(lines["padding"].partition("%")[0]) / 100
    assert length == 512
    assert padding == pytest.approx(1 - tokens / (windows * length), abs=1e-3)
    assert 0 < trained < tokens / 2


@pytest.mark.parametrize("colours", [False, True])
def test_show_marks_what_the_assistant_writes(config, capsys, monkeypatch, colours):
    monkeypatch.setenv("FORCE_COLOR", "1") if colours else monkeypatch.delenv("FORCE_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert main(["data", "show", config, "5"]) == 0
    _, _, out = capsys.readouterr().out.partition("\n")
    mark = re.compile(r"\x1b\[1;32m(.*?)\x1b\[0m" if colours else r"\u27e6(.*?)\u27e7", re.DOTALL)  # colours: by line
    plain = re.sub(r"\x1b\[[\d;]*m|\u27e6|\u27e7", "", out)
    turns = re.findall(r"<\|im_start\|>assistant\n(.*?<\|im_end\|>)", plain, re.DOTALL)
    found = re.findall(r".*?<\|im_end\|>", "".join("".join(mark.findall(out)).split()))
    assert len(found) >= 3
    assert {*found} <= {"".join(turn.split()) for turn in turns}
    assert f"{Path(config).parent}/chats.jsonl:" in plain
    assert ("\x1b" in out) == colours
