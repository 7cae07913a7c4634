"""`octavo chat`: a conversation through a pipe, against the template and the engine."""

from __future__ import annotations

import argparse
import io

import pytest

from launch.cli import main
from launch.serving.chat import Shown, Talk
from launch.serving.conversation import Conversation
from tests.launch.refused import refused
from tests.launch.serving import tiny_server
from tests.trainer.chat.templates import FAMILIES
from trainer.chat.answers import Part
from trainer.chat.template import DEFAULT, ChatTemplate
from trainer.engine.engine import Engine
from trainer.engine.request import Request, RequestError, Sampling

CHATML = FAMILIES["chatml"].text


def test_a_conversation_through_a_pipe(text_run, tmp_path, monkeypatch, capsys):
    template = tmp_path / "chat.jinja"
    template.write_text(CHATML)
    monkeypatch.setattr("sys.stdin", io.StringIO("kalo\nkalo\n\n/reset\nkalo\n/system Be short.\nkalo\n/exit\nkalo\n"))
    words = [str(text_run), "--chat-template", str(template), "--max-tokens", "8", "--seed", "3"]
    assert main(["chat", *words]) == 0
    first, second, again, other = capsys.readouterr().out.split("\n")[:-1]
    assert first == again
    assert len({first, second, other}) == 3


def test_a_model_whose_answers_depend_on_others_is_a_warning(text_run, tmp_path, monkeypatch, capsys):
    template = tmp_path / "chat.jinja"
    template.write_text(CHATML)
    for found, warned in ([], False), (["64 x 7 x 9"], True):
        monkeypatch.setattr("trainer.model.exact.check.dependent_products", lambda model, found=found: found)
        monkeypatch.setattr("sys.stdin", io.StringIO("/exit\n"))
        assert main(["chat", str(text_run), "--chat-template", str(template)]) == 0
        assert ("64 x 7 x 9" in capsys.readouterr().err) == warned


def options(**more: object) -> argparse.Namespace:
    values = {"system": None, "no_thinking": False, "max_tokens": None, "temperature": 0.9, "top_p": 1.0, "top_k": 0,
              "min_p": 0.0, "seed": 5}  # fmt: skip
    return argparse.Namespace(**values | more)


def talk(**more: object) -> Talk:
    tokenizer = tiny_server.tokenizer()
    conversation = Conversation(ChatTemplate({DEFAULT: FAMILIES["qwen3"].text}), tokenizer)
    engine = Engine(tiny_server.decoder(), decode=conversation.decode, cache_tokens=2048)
    return Talk(engine, conversation, frozenset({tokenizer.eos_id}), options(**more))


def test_each_turn_sees_those_before_it():
    talking = talk(system="Be short.", max_tokens=6)
    for turn in ("kalo", "mi ren"):
        before, said = talking.messages, []
        talking.answer(turn, said.append)
        opened = talking._conversation.open([*before, {"role": "user", "content": turn}])
        engine = Engine(tiny_server.decoder(), decode=talking._conversation.decode, cache_tokens=2048)
        sampling = Sampling(0.9, seed=5 if turn == "kalo" else 6)
        ids = talking._conversation.ids_of(opened.text)
        (done,) = engine.generate([Request(ids, 6, sampling, talking._stop_ids)])
        assert "".join(part.text for part in said) == done.text
    assert [message["role"] for message in talking.messages] == ["system", "user", "assistant", "user", "assistant"]


def test_an_interrupted_answer_stays_said():
    talking, said = talk(max_tokens=500), []

    def say(part: Part) -> None:
        said.append(part.text)
        if len(said) == 3:
            raise KeyboardInterrupt

    talking.answer("kalo", say)
    assert talking.messages[-1]["content"].startswith("".join(said[:3]))
    assert talking._engine.unfinished == 0


def test_a_turn_without_room_is_left_out():
    talking = talk(max_tokens=6)
    with pytest.raises(RequestError):
        talking.answer("kalo " * 600, lambda part: None)
    assert talking.messages == []


def test_thinking_is_seen_apart():
    out = io.StringIO()
    shown = Shown(out)
    for part in (Part("thinking", "a"), Part("thinking", "b"), Part("text", "c")):
        shown.say(part)
    shown.end()
    assert out.getvalue() == "[thinking]\nab\n[text]\nc\n"


def test_without_a_template_there_is_no_chat(text_run, tmp_path):
    fault = refused("chat", str(text_run))
    assert fault.where == str(text_run)
    assert "--chat-template" in fault.allowed
    assert refused("chat", str(text_run), "--chat-template", str(tmp_path / "none")).where == "--chat-template"
