"""The embedded engine's questions: a chat template, thinking, images and signals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from launch.serving.conversation import find_conversation
from tests.trainer.data.media import illustrated
from tests.trainer.illustrated_run import train_illustrated
from trainer.engine.load import open_source
from trainer.evaluation.asked import SETTINGS, Failure, Question
from trainer.evaluation.embedded import EmbeddedModel

TEMPLATE = """{#- thoughts are between <think> and </think> -#}
{%- for message in messages %}[{{ message.role }}]{% if message.content is string %}{{ message.content }}{% else -%}
{% for part in message.content %}{% if part.type == 'text' %}{{ part.text }}{% elif part.type == 'image_url' %}
{{- '<IMG_CONTEXT>' }}{% else %}<TS_CONTEXT>{% endif %}{% endfor %}{% endif %}{% endfor -%}
{% if add_generation_prompt %}[assistant]{% if enable_thinking %}<think>{% endif %}{% endif %}"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> EmbeddedModel:
    directory = tmp_path_factory.mktemp("illustrated")
    run = train_illustrated(directory, init_std=0.3)
    (directory / "chat.jinja").write_text(TEMPLATE)
    source = open_source(run)
    conversation = find_conversation(source, str(run), str(directory / "chat.jinja"))
    return EmbeddedModel(source, "run", conversation, lambda: torch.device("cpu"), towers=True, batch=4)


def ask(model: EmbeddedModel, *contents: object, thinking: bool = False) -> list[object]:
    settings = replace(SETTINGS["thinking" if thinking else "non_thinking"], max_tokens=12)
    questions = [
        Question(str(number), [{"role": "user", "content": content}], settings)
        for number, content in enumerate(contents)
    ]
    found = {question.key: answer for question, answer in model.answer(questions)}
    return [found[question.key] for question in questions]


def part(kind: str, path: Path, **more: object) -> dict:
    return {"type": kind, kind: {"url": str(path), **more}}


def test_questions_are_rendered_by_the_template_and_thoughts_are_taken_off(model):
    settings = replace(SETTINGS["thinking"], max_tokens=12)
    question = Question("k", [{"role": "user", "content": "why"}], settings)
    ids, media = model.prompt(question)
    assert (ids, media) == (model.source.prompt("[user]why[assistant]<think>", opening=False), [])
    ids, _ = model.prompt(replace(question, settings=SETTINGS["non_thinking"]))
    assert ids == model.source.prompt("[user]why[assistant]", opening=False)
    (answer,) = ask(model, "why", thinking=True)
    assert (answer.text, answer.thinking != "") == ("", True)  # it never closed its thoughts
    assert (answer.finish, answer.tokens, answer.prompt_tokens) == ("length", 12, len(model.prompt(question)[0]))
    done = replace(model._running.generate([model._request(question)])[0], text="I think</think>\n\nso")
    answer = model._answer(question, done)
    assert (answer.text, answer.thinking) == ("so", "I think")


def test_images_and_signals_go_to_the_towers(model, tmp_path):
    images, waves = [], []
    for number in (1, 2):
        images.append(tmp_path / f"{number}.png")
        images[-1].write_bytes(illustrated.image(number))
        waves.append(tmp_path / f"{number}.npy")
        np.save(waves[-1], illustrated.wave(number))
    text = {"type": "text", "text": " what is it"}
    of_images = ask(model, *([part("image_url", path), text] for path in (images[0], images[1], images[0])))
    of_waves = ask(model, *([part("time_series_url", path, sampling_rate=30), text] for path in (*waves, waves[0])))
    for first, other, again in (of_images, of_waves):
        assert not isinstance(first, Failure), first
        assert first.text == again.text != other.text
    (failure,) = ask(model, [part("image_url", waves[0]), text])
    assert isinstance(failure, Failure)


def test_a_prompt_beyond_the_context_is_a_failure_of_its_own(model):
    long, short = ask(model, "word " * model.context, "word")
    assert isinstance(long, Failure)
    assert long.final
    assert short.tokens == 12


def test_another_precision_or_other_rules_of_media_are_another_model(model):
    assert model.source.placeholders

    def identity(**changed: object) -> object:
        source = replace(model.source, **changed)
        return EmbeddedModel(source, "run", model.conversation, lambda: torch.device("cpu")).identity

    rules = model.source.rules
    other = replace(rules, image=replace(rules.image, in_text=rules.image.in_text + "<other>"))
    assert identity() == model.identity
    assert identity(find_rules=lambda: other) != model.identity
    assert identity(experts=model.source.experts + "8") != model.identity


def test_the_cache_grows_unless_its_size_is_given(model):
    small = EmbeddedModel(model.source, "run", model.conversation, lambda: torch.device("cpu"), batch=1)
    answers = ask(model, "a", "word " * 100, "b")
    assert ask(small, "a", "word " * 100, "b") == answers
    fixed = EmbeddedModel(
        model.source, "run", model.conversation, lambda: torch.device("cpu"), batch=1, cache_tokens=64
    )
    first, long, last = ask(fixed, "a", "word " * 100, "b")
    assert (first, last) == (answers[0], answers[2])
    assert isinstance(long, Failure)
