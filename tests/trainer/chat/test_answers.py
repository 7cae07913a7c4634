"""Answers taken apart: what a template wrote is read back, and how a text is cut into pieces changes nothing."""

from __future__ import annotations

import json
import random

import pytest

from tests.trainer.chat.templates import FAMILIES, TOOLS, call
from trainer.chat.answers import AnswerReader, Part, format_of, read_answer
from trainer.chat.template import DEFAULT, ChatTemplate

# The structure of the published templates, in our words: the prompt opens thinking; calls as objects; calls as tags.
INTERN_S1_PRO = """
{%- for m in messages %}
{{- '<|im_start|>' + m.role + '\\n' }}
{%- if m.role == 'assistant' %}{{- '<think>' + (m.reasoning_content or '') + '</think>\\n\\n' + (m.content or '') }}
{%- for c in m.tool_calls or [] %}
{%- if not loop.first or m.content %}{{- '\\n' }}{% endif %}
{{- '<tool_call>\\n{"name": "' + c.function.name + '", "arguments": ' }}{{- c.function.arguments | tojson }}
{{- '}\\n</tool_call>' }}{% endfor %}
{%- else %}{{- m.content }}{% endif %}{{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n<think>' }}{% endif %}
"""
QWEN3_CODER = """
{%- for m in messages %}
{{- '<|im_start|>' + m.role + '\\n' + (m.content or '') }}
{%- for c in m.tool_calls or [] %}
{{- '\\n<tool_call>\\n<function=' + c.function.name + '>\\n' }}
{%- for name, value in c.function.arguments.items() %}
{{- '<parameter=' + name + '>\\n' + (value if value is string else value | tojson) + '\\n</parameter>\\n' }}
{%- endfor %}{{- '</function>\\n</tool_call>' }}{% endfor %}{{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif %}
"""
TEMPLATES = {
    "qwen2": (FAMILIES["qwen2"].text, False),
    "qwen3": (FAMILIES["qwen3"].text, True),
    "internlm": (FAMILIES["internlm"].text, False),
    "intern-s1-pro": (INTERN_S1_PRO, True),
    "qwen3-coder": (QWEN3_CODER, False),
}
SCHEMA = {"text": "string", "count": "integer", "part": "number", "yes": "boolean", "many": "array", "more": "object"}
TOOL = [{
    "type": "function",
    "function": {
        "name": "measure",
        "parameters": {"type": "object", "properties": {name: {"type": kind} for name, kind in SCHEMA.items()}},
    },
}]  # fmt: skip
ARGUMENTS = {
    "text": "007, a \"quote\", </tool_call\\> and <b>\n two lines", "count": 12, "part": 1.5, "yes": True,
    "many": [1, {"a": None}], "more": {"b": "ä"},
}  # fmt: skip
OPEN, CLOSE = "<tool_call>", "</tool_call>"
HERMES = format_of(FAMILIES["qwen3"].text)


@pytest.mark.parametrize("name", TEMPLATES)
def test_what_a_template_wrote_is_read_back(name):
    text, thinks = TEMPLATES[name]
    template, asked = ChatTemplate({DEFAULT: text}), [{"role": "user", "content": "How much?"}]
    calls = 1 if name == "internlm" else 2  # whose template has one call a turn
    message = {
        "role": "assistant",
        "content": "I shall measure.",
        "tool_calls": [call("measure", ARGUMENTS), call("measure", {"count": -3})][:calls],
    }
    if thinks:
        message["reasoning_content"] = "Two things,\n\none after another."
    prompt = template.render(asked, TOOL, add_generation_prompt=True)
    whole = template.render([*asked, message], TOOL)
    assert whole.startswith(prompt)
    written = whole[len(prompt) :].rpartition("<|im_end|>")[0]
    thought, said, found = read_answer(written, format_of(text), thinking=prompt.endswith("<think>"), tools=TOOL)
    assert thought == message.get("reasoning_content", "")
    assert said == "I shall measure."
    assert [(one.name, json.loads(one.text)) for one in found] == [
        (one["function"]["name"], one["function"]["arguments"]) for one in message["tool_calls"]
    ]


@pytest.mark.parametrize(
    ("written", "text", "arguments"),
    [
        ("{0}{{\"name\": \"f\", \"arguments\": {{\"x\": 1.50, \"y\": \"007\"}}}}{1}", "", '{"x": 1.50, "y": "007"}'),
        ('{0}{{"arguments": {{}}, "name": "f"}}{1}', "", "{}"),
        ('{0}{{"name": "f", "parameters": {{"x": "{1}"}}}}{1}', "", '{"x": "</tool_call>"}'),
        ('{0}{{"name": "f", "arguments": "{{\\"x\\": 1}}"}}{1}', "", '{"x": 1}'),
        ('a {0}{{"name": "f", "arguments": {{}}}}{1}\n\nb', "a b", "{}"),
    ],
)  # fmt: skip
def test_a_call_is_read_as_it_was_written(written, text, arguments):
    _, said, found = read_answer(written.format(OPEN, CLOSE), HERMES, tools=TOOLS)
    assert [(one.name, one.text) for one in found] == [("f", arguments)]
    assert said.replace("ab", "a b") == text


@pytest.mark.parametrize(
    "body",
    [
        "", "{}", "no JSON", '{"name": "f"}', '{"name": "f", "arguments": [1]}', '{"name": 1, "arguments": {}}',
        '{"name": "", "arguments": {}}', '{"name": "f", "arguments": {"x": NaN}}', '{"name": "f", "arguments": {}} x',
        '{"name": "f", "name": "g", "arguments": {}}', '{"name": "f", "arguments": {}', "[1]",
        '{"name": "f", "arguments": "x"}',
        '{"name": "f, "arguments": {}}',
    ],
)  # fmt: skip
def test_a_malformed_call_is_text(body):
    for text in (f"{OPEN}{body}{CLOSE}", f"see \n{OPEN}{body}{CLOSE} there"):
        assert read_answer(text, HERMES, tools=TOOLS) == ("", text, [])
    assert read_answer(f"{OPEN}{body}", HERMES, tools=TOOLS) == ("", f"{OPEN}{body}", [])
    good = f'{OPEN}{{"name": "f", "arguments": {{}}}}{CLOSE}'
    assert read_answer(f"{OPEN}{body}{CLOSE}\n{good}", HERMES, tools=TOOLS)[1:] == (
        f"{OPEN}{body}{CLOSE}", [Part("call", "{}", "f")]
    )  # fmt: skip


@pytest.mark.parametrize(
    "body",
    ["", "<function=f>", "<function=>\n</function>", "<function=f>x</function>",
     "<function=f><parameter=x>1</function>",
     "<function=f><parameter=x>1</parameter><parameter=x>2</parameter></function>"],
)  # fmt: skip
def test_malformed_tags_are_text(body):
    text = f"{OPEN}\n{body}\n{CLOSE}"
    assert read_answer(text, format_of(QWEN3_CODER), tools=TOOL) == ("", text, [])


def test_tags_take_the_types_of_the_schema():
    values = {"text": "12", "count": "12", "part": "1.50", "yes": "True", "many": "[1]", "more": "none", "other": "3"}
    inner = "".join(f"<parameter={name}>\n{value}\n</parameter>\n" for name, value in values.items())
    text = f"{OPEN}\n<function=measure>\n{inner}</function>\n{CLOSE}"
    (_, _, (found,)) = read_answer(text, format_of(QWEN3_CODER), tools=TOOL)
    assert found.text == (
        '{"text": "12", "count": 12, "part": 1.50, "yes": true, "many": [1], "more": "none", "other": "3"}'
    )


@pytest.mark.parametrize(
    ("text", "opened", "expected"),
    [
        ("<think>\na\n</think>\n\nb", False, ("a", "b")),
        ("\n<think>a</think>b", False, ("a", "b")),
        ("a</think>b", True, ("a", "b")),
        ("a</think>b", False, ("", "a</think>b")),
        ("a <think>b</think>", False, ("", "a <think>b</think>")),
        ("a\n", True, ("a", "")),
        ("</think>\n\nb ", True, ("", "b ")),
        ("<think", False, ("", "<think")),
        (" \n", False, ("", " \n")),
        ("", False, ("", "")),
    ],
)
def test_thinking_is_apart_from_the_text(text, opened, expected):
    assert read_answer(text, HERMES, thinking=opened)[:2] == expected


def test_a_format_is_what_its_template_shows():
    plain = format_of(FAMILIES["chatml"].text)
    assert (plain.thinking, plain.calls) == (None, None)
    text = f" <think>a</think>{OPEN}{{}}{CLOSE}\n"
    assert read_answer(text, plain, tools=TOOLS) == ("", text, [])
    assert format_of(FAMILIES["qwen2"].text).thinking is None
    assert "<|action_start|><|plugin|>" in format_of(FAMILIES["internlm"].text).marks
    call_like = f'{OPEN}{{"name": "f", "arguments": {{}}}}{CLOSE}'
    assert read_answer(call_like, HERMES) == ("", call_like, [])  # without tools


def test_pieces_give_what_the_whole_gives():
    rng = random.Random(0)
    pieces = [
        "<think>",
        "</think>",
        OPEN,
        CLOSE,
        '{"name": "f", "arguments": {"x": "a',
        '"}}',
        "{}",
        "\n",
        " ",
        "word",
        "<",
        '"',
    ]
    for _ in range(400):
        text = "".join(rng.choices(pieces, k=rng.randrange(12)))
        thinking = rng.random() < 0.5
        reader = AnswerReader(HERMES, thinking=thinking, tools=TOOLS)
        parts, at = [], 0
        while at < len(text):
            size = rng.randrange(1, 5)
            parts += reader.push(text[at : at + size])
            at += size
        parts += reader.finish()
        joined = ["".join(part.text for part in parts if part.kind == kind) for kind in ("thinking", "text")]
        whole = read_answer(text, HERMES, thinking=thinking, tools=TOOLS)
        assert (*joined, [part for part in parts if part.kind == "call"]) == whole, text
