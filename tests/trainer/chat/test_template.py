"""Chat templates: found in a checkpoint's files, rendered as transformers renders them, faults as one error."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from parallel.errors import UserError
from tests.trainer.chat.templates import FAMILIES, TOOLS, conversations
from trainer.chat.template import ChatTemplate, as_seen, find_template

ASK = [{"role": "user", "content": "one <two> & 'three'"}]


def theirs(text: str | dict[str, str], **special: str) -> PreTrainedTokenizerFast:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), **special)
    tokenizer.chat_template = text
    return tokenizer


@pytest.mark.parametrize("name", FAMILIES)
def test_the_text_is_that_of_transformers(name):
    family = FAMILIES[name]
    special = {"bos_token": family.bos, "eos_token": family.eos}
    ours, peer = ChatTemplate({"default": family.text}, special), theirs(family.text, **special)
    for messages, tools in conversations(family).values():
        for prompt in (False, True):
            values = {"add_generation_prompt": prompt, **family.values}
            expected = peer.apply_chat_template(messages, tools=tools, tokenize=False, **values)
            assert ours.render(messages, tools, **values) == expected


@pytest.mark.parametrize(
    "text",
    [
        "{{ tools | tojson }} {{ tools | tojson(indent=2, sort_keys=true) }} {{ {'b': 1, 'a': 'é<'} | tojson }}",
        "{% for m in messages %}\n  {% if loop.index > 1 %}{% break %}{% endif %}\n  {{ m.content }}\n{% endfor %}",
        "{{ strftime_now('%Y') | length }}{{ messages[0].thinking }}{{ messages[0].reasoning_content }}{{ missing }}",
        "{% set ns = namespace(self=1, n=0) %}{% set ns.n = ns.n + 2 %}{{ ns.n }}{{ ns.self }}{{ dict(a=1) }}",
        "{{ messages[0].name is defined }}{{ messages[0].content is none }}{{ tools is none }}{{ documents is none }}",
        "a{# a comment #}\n{%- if pad_token is defined %} {{ pad_token }}{% endif %}{{ unk_token is defined }}\n",
    ],
)
def test_what_templates_are_given(text):
    messages = [{"role": "user", "content": "é", "name": None, "thinking": "hm"}, {"role": "user", "content": "b"}]
    peer = theirs(text, pad_token="<pad>", bos_token="<s>")
    ours = ChatTemplate({"default": text}, {"pad_token": "<pad>", "bos_token": "<s>"})
    for tools in (None, TOOLS):
        expected = peer.apply_chat_template(messages, tools=tools, tokenize=False)
        assert ours.render(messages, tools) == expected


@pytest.mark.parametrize(
    "text",
    [
        "{{ raise_exception('roles must alternate') }}",
        "{{ messages[0].content.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{% set ns = namespace(__x=1) %}",
        "{{ messages[0].content + 1 }}",
        "{{ messages[9].content }}",
        "{{ none.content.more }}",
        "{{ 1 / 0 }}",
        "{{ {'a': messages}['b']() }}",
    ],
)
def test_a_template_that_fails_is_one_error(text):
    with pytest.raises(UserError) as failure:
        ChatTemplate({"default": text}, where="here.jinja").render(ASK)
    assert failure.value.where == "here.jinja"
    assert failure.value.value
    assert failure.value.allowed


def test_a_template_that_does_not_compile():
    with pytest.raises(UserError) as failure:
        ChatTemplate({"default": "{% if %}"}, where="here.jinja").render(ASK)
    assert (failure.value.where, bool(failure.value.allowed)) == ("here.jinja", True)


@pytest.mark.parametrize("messages", [["text"], [3]])
def test_messages_that_are_not_objects(messages):
    with pytest.raises(UserError) as failure:
        ChatTemplate({"default": "x"}).render(messages)
    assert (failure.value.where, failure.value.value) == ("messages", messages[0])


def test_messages_hold_plain_values_alone():
    class Loud(str):
        def shout(self) -> str:
            return self.upper()

    seen = as_seen({"role": Loud("user"), "content": [{"image": Path("x")}], "n": True})
    assert type(seen["role"]) is str
    assert seen == {"role": "user", "content": [{"image": "<PosixPath>"}], "n": True}


def test_generation_marks_are_those_of_transformers():
    text = (
        "{% for m in messages %}[{{ m.role }}]{% if m.role == 'assistant' %}"
        "{% generation %}{{ m.content }}<e>{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}"
    )
    messages = [*ASK, {"role": "assistant", "content": "four"}, *ASK, {"role": "assistant", "content": ""}]
    ours = ChatTemplate({"default": text})
    rendered, spans = ours.render_marked(messages)
    assert ours.marks()
    assert not ChatTemplate({"default": "{% for m in messages %}{% endfor %}"}).marks()
    from transformers.utils.chat_template_utils import render_jinja_template

    theirs_text, theirs_spans = render_jinja_template([messages], chat_template=text, return_assistant_tokens_mask=True)
    assert (rendered, spans) == (theirs_text[0], [tuple(span) for span in theirs_spans[0]])
    assert [rendered[first:last] for first, last in spans] == ["four<e>", "<e>"]


def test_marks_inside_a_macro_are_where_they_are_written():
    text = (
        "{% macro say(m) %}<{{ m.role }}>{% generation %}{{ m.content }}{% endgeneration %}.{% endmacro %}"
        "{% set all %}{% for m in messages %}{{ say(m) }}{% endfor %}{% endset %}head {{ all }}"
    )
    rendered, spans = ChatTemplate({"default": text}).render_marked([{"role": "assistant", "content": "abc"}])
    assert rendered == "head <assistant>abc."
    assert [rendered[first:last] for first, last in spans] == ["abc"]


def test_marks_that_change_the_text_are_refused():
    text = "{% set t %}{% generation %}{{ messages[0].content }}{% endgeneration %}{% endset %}{{ t | length }}"
    with pytest.raises(UserError) as failure:
        ChatTemplate({"default": text}, where="x").render_marked(ASK)
    assert failure.value.where == "x"


def write(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("chat_template.jinja", "T"),
        ("tokenizer_config.json", {"chat_template": "T", "bos_token": {"content": "<b>"}}),
        ("tokenizer_config.json", {"chat_template": [{"name": "default", "template": "T"}]}),
        ("chat_template.json", {"chat_template": "T"}),
        ("run:tokenizer/chat_template.jinja", "T"),
        ("run:source/tokenizer_config.json", {"chat_template": "T"}),
    ],
)
def test_where_templates_are(tmp_path, name, value):
    write(tmp_path / name.removeprefix("run:"), value)
    assert ChatTemplate.load(tmp_path).render(ASK) == "T"
    if name.startswith("run:"):
        assert ChatTemplate.load(tmp_path / "checkpoints" / "step-3").render(ASK) == "T"


def test_a_jinja_file_goes_before_the_config_and_special_tokens_are_read(tmp_path):
    write(tmp_path / "chat_template.jinja", "{{ bos_token }}{{ eos_token }}{{ unk_token }}")
    write(tmp_path / "tokenizer_config.json", {"chat_template": "old", "bos_token": {"content": "<b>"}, "x": 1})
    write(tmp_path / "special_tokens_map.json", {"bos_token": "<old>", "eos_token": "<e>"})
    for path in (tmp_path, tmp_path / "chat_template.jinja"):
        assert ChatTemplate.load(path).render(ASK) == "<b><e>"


def test_named_templates(tmp_path):
    write(tmp_path / "chat_template.jinja", "plain")
    write(tmp_path / "additional_chat_templates" / "tool_use.jinja", "with tools")
    found = ChatTemplate.load(tmp_path)
    peer = theirs(dict(found.texts))
    for tools in (None, [], TOOLS):
        assert found.render(ASK, tools) == peer.apply_chat_template(ASK, tools=tools, tokenize=False)


def test_no_template(tmp_path):
    assert find_template(tmp_path) is None
    with pytest.raises(UserError) as failure:
        ChatTemplate.load(tmp_path)
    assert failure.value.where == str(tmp_path)
    assert failure.value.allowed


@pytest.mark.parametrize("value", [{"chat_template": 3}, {"chat_template": [{"name": "default"}]}, "{"])
def test_a_config_that_cannot_be_read(tmp_path, value):
    write(tmp_path / "tokenizer_config.json", value)
    with pytest.raises(UserError) as failure:
        ChatTemplate.load(tmp_path)
    assert failure.value.where.startswith(str(tmp_path / "tokenizer_config.json"))


def test_only_other_names(tmp_path):
    write(tmp_path / "additional_chat_templates" / "rag.jinja", "T")
    with pytest.raises(UserError) as failure:
        ChatTemplate.load(tmp_path).render(ASK)
    assert (failure.value.value, failure.value.allowed) == (("rag",), "default")
