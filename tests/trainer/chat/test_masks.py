"""The tokens that are trained: of thirteen structures of published templates against a check of single characters that
renders nothing and knows only how each family marks a turn."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from parallel.errors import UserError
from tests.trainer.chat.templates import FAMILIES, TOOLS, conversations
from trainer.chat.masks import examples, trained_tokens
from trainer.chat.records import Chat
from trainer.chat.template import ChatTemplate

# Family -> a turn of the assistant in a text, the group being what it writes.
IM = r"<\|im_start\|>assistant\n(.*?<\|im_end\|>)"
TURNS = {
    "chatml": IM, "qwen2": IM, "qwen3": IM, "internlm": IM,
    "llama2": r"\[/INST\](.*?</s>)",
    "llama3": r"<\|start_header_id\|>assistant<\|end_header_id\|>\n\n(.*?<\|eot_id\|>)",
    "mistral3": r"\[/(?:INST|TOOL_RESULTS)\](.*?</s>)",
    "gemma": r"<start_of_turn>model\n(.*?<end_of_turn>)",
    "phi3": r"<\|assistant\|>\n(.*?<\|end\|>)",
    "deepseek": r"(?:<\|Assistant\|>|<\|output_end\|>)(.*?<\|eos\|>)",
    "zephyr": r"<\|assistant\|>(.*?</s>)",
    "harmony": r"<\|start\|>assistant((?:<\|channel\|>analysis<\|message\|>[^<]*<\|end\|><\|start\|>assistant)?"
               r"<\|channel\|>(?:final|commentary).*?(?:<\|end\|>|<\|return\|>|<\|call\|>))",
    "vicuna": r" ASSISTANT:(.*?</s>)",
}  # fmt: skip


def pieces(message: dict[str, Any]) -> tuple[str, str, list[tuple[str, str]]]:
    calls = [
        (call["function"]["name"], json.dumps(call["function"]["arguments"])) for call in message.get("tool_calls", [])
    ]
    return message.get("content") or "", message.get("reasoning_content", ""), calls


def tagged(name: str, arguments: str) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


# Family -> what the assistant writes for a message: its text, its thinking and its calls.
Writes = Callable[[str, str, list[tuple[str, str]]], str]
WRITES: dict[str, Writes] = {
    "chatml": lambda text, thought, calls: f"{text}<|im_end|>",
    "qwen2": lambda text, thought, calls: text + "".join(tagged(*call) for call in calls) + "<|im_end|>",
    "qwen3": lambda text, thought, calls: (
        f"<think>\n{thought}\n</think>\n\n{text}{''.join(tagged(*call) for call in calls)}<|im_end|>"
    ),
    "llama2": lambda text, thought, calls: f" {text} </s>",
    "llama3": lambda text, thought, calls: (
        "".join(f'{{"name": "{name}", "parameters": {what}}}' for name, what in calls) or text
    ) + "<|eot_id|>",
    "mistral3": lambda text, thought, calls: (
        "".join(f'[TOOL_CALLS] [{{"name": "{n}", "arguments": {a}, "id": "call00001"}}]' for n, a in calls)
        or f" {text}"
    ) + "</s>",
    "gemma": lambda text, thought, calls: f"{text}<end_of_turn>",
    "phi3": lambda text, thought, calls: f"{text}<|end|>",
    "deepseek": lambda text, thought, calls: (
        text + "".join(f"<|call_begin|>{name}\n{what}<|call_end|>" for name, what in calls) + "<|eos|>"
    ),
    "zephyr": lambda text, thought, calls: f"\n{text}</s>",
    "internlm": lambda text, thought, calls: (
        (f"<think>{thought}</think>\n" if thought else "") + text
        + "".join(f'<|action_start|><|plugin|>\n{{"name": "{n}", "parameters": {a}}}<|action_end|>\n' for n, a in calls)
        + "<|im_end|>"
    ),
    "harmony": lambda text, thought, calls: (
        (f"<|channel|>analysis<|message|>{thought}<|end|><|start|>assistant" if thought else "")
        + ("".join(f"<|channel|>commentary to=functions.{n}<|message|>{a}<|call|>" for n, a in calls)
           or f"<|channel|>final<|message|>{text}<|return|>")
    ),
    "vicuna": lambda text, thought, calls: f" {text}</s>",
}  # fmt: skip


def template(name: str) -> ChatTemplate:
    family = FAMILIES[name]
    return ChatTemplate({"default": family.text}, {"bos_token": family.bos, "eos_token": family.eos}, f"{name}.jinja")


def control(name: str) -> list[str]:
    family = FAMILIES[name]
    return [*family.control, family.bos, family.eos]


@cache
def tokenizer(name: str) -> Tokenizer:
    """A byte-level BPE with merges across spaces and signs, and the family's control tokens."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.decoder = decoders.ByteLevel()
    texts = [json.dumps(found, ensure_ascii=False) for found in conversations(FAMILIES[name]).values()]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False))
    bpe.add_special_tokens(control(name))
    return bpe


@pytest.mark.parametrize("name", FAMILIES)
def test_the_assistants_characters_and_tokens_alone_are_trained(name):
    for what, (messages, tools) in conversations(FAMILIES[name]).items():
        found = examples(template(name), Chat("chats.jsonl:1", messages, tools), control(name), FAMILIES[name].values)
        assistant = [message for message in messages if message["role"] == "assistant"]
        wanted = [WRITES[name](*pieces(message)) for message in assistant]
        assert [one.text[first:last] for one in found for first, last in one.spans] == wanted, what
        for one in found:
            turns = [match.span(1) for match in re.finditer(TURNS[name], one.text, re.DOTALL)]
            assert set(one.spans) <= set(turns), what
            assert one.spans[-1] == turns[-1] == (turns[-1][0], len(one.text)), what
            by_character = [any(first <= at < last for first, last in one.spans) for at in range(len(one.text))]
            check_tokens(tokenizer(name), one.text, one.spans, by_character)


def check_tokens(library: Tokenizer, text: str, spans: Any, by_character: list[bool]) -> None:
    """The mask of tokens against their own bytes, counted one by one; offsets are not looked at."""
    encoding = library.encode(text, add_special_tokens=False)
    mask, straddling = trained_tokens(encoding.offsets, spans)
    owner = [at for at, character in enumerate(text) for _ in character.encode()]  # byte -> its character
    byte_of = {shown: byte for byte, shown in byte_characters().items()}
    at, cut = 0, 0
    special = set(library.get_added_tokens_decoder())
    for number, token, trained in zip(encoding.ids, encoding.tokens, mask, strict=True):
        raw = token.encode() if number in special else bytes(byte_of[shown] for shown in token)
        inside = [by_character[owner[place]] for place in range(at, at + len(raw))]
        assert text.encode()[at : at + len(raw)] == raw
        assert trained == all(inside)
        cut += any(inside) and not all(inside)
        at += len(raw)
    assert at == len(owner)
    assert straddling == cut


@cache
def byte_characters() -> dict[int, str]:
    """GPT-2's spelling of bytes."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {byte: chr(byte) for byte in shown} | {byte: chr(256 + n) for n, byte in enumerate(hidden)}


@pytest.mark.parametrize(
    ("name", "counts"),
    [("chatml", [3]), ("qwen3", [1, 1, 1]), ("mistral3", [1, 2]), ("harmony", [1, 1, 1]), ("llama3", [3])],
)
def test_a_template_that_rewrites_earlier_turns_gives_several_examples(name, counts):
    messages, tools = conversations(FAMILIES[name])["several"]
    found = examples(template(name), Chat("f:1", messages, tools), control(name), FAMILIES[name].values)
    assert sorted(len(one.spans) for one in found) == sorted(counts)


def test_values_are_those_of_the_template_and_a_record_has_its_own():
    ask, answer = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
    trained = []
    for given, own in (
        ({}, {}),
        ({"enable_thinking": False}, {}),
        ({"enable_thinking": True}, {"enable_thinking": False}),
    ):
        (one,) = examples(template("qwen3"), Chat("f:1", [ask, answer], None, own), control("qwen3"), given)
        trained.append([one.text[first:last] for first, last in one.spans])
    assert trained == [["<think>\n\n</think>\n\nb<|im_end|>"], ["b<|im_end|>"], ["b<|im_end|>"]]


@pytest.mark.parametrize("marked", [False, True])
def test_a_weight_of_zero_is_context(marked):
    messages, _ = conversations(FAMILIES["chatml"])["several"]
    messages = [{**message, "weight": 0} if place == 4 else message for place, message in enumerate(messages)]
    text = FAMILIES["chatml"].text
    if marked:
        text = "{% for m in messages %}<{{ m.role }}>{% if m.role == 'assistant' %}{% generation %}{{ m.content }};"
        text += "{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}"
    (one,) = examples(ChatTemplate({"default": text}), Chat("f:1", messages), control("chatml"))
    end = ";" if marked else "<|im_end|>"
    assert [one.text[a:b] for a, b in one.spans] == [messages[place]["content"] + end for place in (2, 6)]


def test_marks_that_cannot_be_matched_to_turns():
    text = "{% for m in messages %}{% if loop.last %}{% generation %}{{ m.content }}{% endgeneration %}{% endif %}"
    text += "{% endfor %}"
    messages = [{"role": "assistant", "content": "a", "weight": 0}, {"role": "assistant", "content": "b"}]
    with pytest.raises(UserError) as failure:
        examples(ChatTemplate({"default": text}), Chat("f:7", messages), [])
    assert (failure.value.where, failure.value.value) == ("f:7", 1)


def test_a_prompt_that_a_finished_turn_does_not_have_is_refused():
    text = FAMILIES["deepseek"].text + "{% if add_generation_prompt %}{{ '<think>\\n' }}{% endif %}"
    messages, _ = conversations(FAMILIES["deepseek"])["one"]
    with pytest.raises(UserError) as failure:
        examples(ChatTemplate({"default": text}), Chat("f:3", messages), control("deepseek"))
    assert failure.value.where == "f:3"
    assert failure.value.value == "<think>\n"
    assert failure.value.allowed


SAYS = "{{ m.role }}: {{ m.content | trim }}\n"


@pytest.mark.parametrize(
    "text",
    [
        "{% for m in messages %}{% generation %}" + SAYS + "{% endgeneration %}{% endfor %}",
        "{% generation %}{% for m in messages %}" + SAYS + "{% endfor %}{% endgeneration %}",
        # A question is written only once its answer is there.
        "{% for m in messages %}{% if m.role == 'assistant' %}Q: {{ loop.previtem.content }}\nA: {{ m.content }}\n"
        "{% endif %}{% endfor %}",
        # The answer is before its question.
        "{% for m in messages | reverse %}" + SAYS + "{% endfor %}",
    ],
)  # fmt: skip
def test_a_template_that_would_train_on_what_others_say_is_refused(text):
    messages = [{"role": "user", "content": "how much? "}, {"role": "assistant", "content": "seven"}]
    with pytest.raises(UserError) as failure:
        examples(ChatTemplate({"default": text}), Chat("f:3", messages), [])
    assert failure.value.where == "f:3"
    assert failure.value.allowed


def test_an_answer_may_repeat_its_question():
    for text in (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}",
        "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}"
        "{% else %}{{ m.content }}{% endif %}{% endfor %}",
    ):
        messages = [{"role": "user", "content": "gold"}, {"role": "assistant", "content": "gold, you say gold"}]
        (one,) = examples(ChatTemplate({"default": text}), Chat("f:3", messages), [])
        assert [one.text[first:last].strip() for first, last in one.spans] == ["gold, you say gold"]


def test_calls_that_a_template_does_not_write_are_refused():
    messages, _ = conversations(FAMILIES["qwen2"])["tools"]
    with pytest.raises(UserError) as failure:
        examples(template("chatml"), Chat("f:3", messages, TOOLS), control("chatml"))
    assert (failure.value.where, failure.value.value) == ("f:3", "boiling_point")


def test_the_end_of_the_conversation_is_trained_where_nothing_else_ends_a_turn():
    text = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    text += "{% if add_generation_prompt %}assistant: {% else %}</s>{% endif %}"
    messages, _ = conversations(FAMILIES["vicuna"])["several"]
    found = examples(ChatTemplate({"default": text}), Chat("f:1", messages), ["</s>"])
    ends = [one.text[first:last] for one in found for first, last in one.spans]
    assert ends == [f"{message['content']}\n</s>" for message in messages if message["role"] == "assistant"]


def test_tokens_on_an_edge_are_not_trained():
    offsets = [(0, 2), (2, 5), (5, 5), (5, 6), (6, 9), (9, 9), (9, 10), (10, 10)]
    mask, straddling = trained_tokens(offsets, [(3, 9)])
    assert mask == [False, False, True, True, True, False, False, False]
    assert straddling == 1
    assert trained_tokens([(0, 1), (1, 3), (3, 4)], [(0, 1), (1, 2), (3, 4)]) == ([True, False, True], 1)
    assert trained_tokens([(0, 1)], []) == ([False], 0)
