"""Prompts that are messages: rendered by a checkpoint's template, answered, scored and trained on."""

import json

import pytest
import tokenizers
from tokenizers import models, pre_tokenizers, processors

from tests.trainer.chat.templates import FAMILIES, TOOLS
from tests.trainer.rl.toy import toy_config
from tests.trainer.tiny_run import records
from trainer.chat.template import ChatTemplate
from trainer.config.mixture import QuestionSourceConfig
from trainer.data.errors import DataError
from trainer.data.questions.stream import open_questions
from trainer.engine.load import open_source
from trainer.rl.draws import question_of
from trainer.rl.environments.base import EnvironmentFailed
from trainer.rl.environments.dialogue import InlineDialogue, TemplateDialogue
from trainer.rl.episodes import dialogue_of
from trainer.rl.rewards.base import build_reward
from trainer.run.process import train

OPENING = "add_generation_prompt %}\n<|im_start|>assistant\n"
THINKS = FAMILIES["chatml"].text.replace(OPENING, OPENING + "<think>\n") + "{# </think> #}"
END = "<|im_end|>"


def asked(text):
    return [{"role": "user", "content": text}]


def write(directory, rows, *, family="chatml", template=None, opens=None):
    """Questions with a tokenizer of bytes and the template of a family; opens: the tokenizer puts <s> before texts."""
    family = FAMILIES[family]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = dict.fromkeys([family.bos, family.eos, *family.control])
    made = tokenizers.Tokenizer(models.BPE({letter: number for number, letter in enumerate(letters)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    made.add_special_tokens([*special])
    if opens:
        first = family.bos, made.token_to_id(family.bos)
        made.post_processor = processors.TemplateProcessing(single=f"{first[0]} $A", special_tokens=[first])
    made.save(str(directory / "tokenizer.json"))
    config = {"bos_token": family.bos, "eos_token": family.eos}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    if template != "":
        (directory / "chat_template.jinja").write_text(template or family.text)
    (directory / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))


def config(directory, *words, recipe="rl_toy", **data):
    cfg = toy_config(directory / "run", *words, "model.vocab_size=300", recipe=recipe)
    cfg.data.build, cfg.data.root, cfg.data.tokenizer = "none", str(directory), str(directory)
    cfg.data.questions = {"mine": QuestionSourceConfig(path="q.jsonl")}
    cfg.data.seq_len, cfg.data.holdout_fraction = 4096, 0.5
    for key, value in data.items():
        setattr(cfg.data, key, value)
    return cfg


def opened(directory, **data):
    return open_questions(config(directory, **data).data, seed=0, weights=None, kept=None)[0].questions


def every(questions):
    return [*questions.train, *(one for some in questions.heldout.values() for one in some)]


SUMS = [{"prompt": asked(f"{one} + 1?"), "answer": str(one + 1)} for one in range(12)]


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "harmony"])
def test_a_prompt_and_its_answer_are_what_the_template_writes(tmp_path, family):
    rows = [{**row, "tools": TOOLS} for row in SUMS] if FAMILIES[family].tools else SUMS
    write(tmp_path, rows, family=family)
    questions = opened(tmp_path, chat_values=FAMILIES[family].values)
    talk = questions.conversation
    for one in every(questions):
        messages, tools = one.record.prompt, one.record.data.get("tools")
        text = talk.template.render(messages, tools, add_generation_prompt=True, **talk.values)
        assert talk.decode(one.prompt) == text
        assert one.answer[-1] in talk.ends <= questions.ends
        label = questions.text_of(one, one.answer)
        assert label.rpartition("</think>")[2].strip() == one.record.label
        assert build_reward("exact")(question_of(one), label).value == 1
        assert build_reward("exact")(question_of(one), questions.text_of(one, [*one.answer, one.answer[-1]])).value == 0


def test_thinking_that_the_prompt_opened_is_no_answer(tmp_path):
    write(tmp_path, SUMS, template=THINKS)
    questions, reward = opened(tmp_path), build_reward("exact")
    one = questions.train[0]
    end = next(iter(questions.conversation.ends))
    ids = questions.tokenizer.encode(one.record.label)
    unclosed = questions.text_of(one, [*ids, end])
    assert unclosed == f"<think>{one.record.label}"
    assert reward(question_of(one), unclosed).value == 0
    assert build_reward({"name": "math"})(question_of(one), unclosed).value == 0
    closed = [*questions.tokenizer.encode("So.\n</think>\n\n"), *ids, end]
    assert reward(question_of(one), questions.text_of(one, closed)).value == 1
    assert reward(question_of(one), questions.text_of(one, one.answer)).value == 1


def test_a_text_opens_as_the_tokenizer_wants_it_and_messages_as_the_template_does(tmp_path):
    rows = [*SUMS, *({"prompt": f"{number}=", "answer": "1"} for number in range(9))]
    write(tmp_path, rows, family="llama2", opens=True)
    questions = opened(tmp_path)
    first = questions.tokenizer.id_of("<s>")
    for one in every(questions):
        assert [place for place, token in enumerate(one.prompt) if token == first] == [0]
    assert {isinstance(one.record.prompt, str) for one in every(questions)} == {True, False}


@pytest.mark.parametrize(
    ("row", "options"),
    [
        (SUMS[0], {"template": ""}),
        (SUMS[0], {"template": "{{ strftime_now('%d') }}" + FAMILIES["chatml"].text}),
        (SUMS[0], {"template": "{{ raise_exception('no') }}"}),
        (SUMS[0], {"template": "{% for m in messages %}{{ m.content }}{% endfor %}"}),
        ({"prompt": [{"role": "system", "content": "Short."}, *asked("1 + 1?")], "answer": "2"}, {"family": "gemma"}),
        ({**SUMS[0], "tools": "calculator"}, {}),
        ({**SUMS[0], "answer": "1<|im_end|>2"}, {}),
        (SUMS[0], {"family": "harmony"}),
        (
            SUMS[0],
            {"template": "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"},
        ),
        ({**SUMS[0], "chat_template_kwargs": ["enable_thinking"]}, {}),
        ({"prompt": [{"role": "user", "content": [{"type": "image"}]}], "answer": "2"}, {}),
    ],
)
def test_messages_that_cannot_be_rendered_name_their_line(tmp_path, row, options):
    write(tmp_path, [{"prompt": "1=", "answer": "1"}, row], **options)
    with pytest.raises(DataError) as caught:
        opened(tmp_path)
    assert caught.value.where == f"{tmp_path}/q.jsonl:2"
    assert caught.value.allowed
    assert len(caught.value.faults) == 1


def test_an_environment_talks_by_the_template_of_messages(tmp_path):
    write(tmp_path, SUMS, family="qwen3")
    talks = dialogue_of(opened(tmp_path, chat_values={"enable_thinking": False}))
    assert isinstance(talks, TemplateDialogue)
    text = talks.conversation.decode(talks.open(asked("1 + 1?"), TOOLS))
    expected = ChatTemplate.load(tmp_path).render(
        asked("1 + 1?"), TOOLS, add_generation_prompt=True, enable_thinking=False
    )
    assert text == expected
    written = '<tool_call>\n{"name": "boiling_point", "arguments": {"name": "water"}}\n</tool_call>'
    said = talks.read([*talks.conversation.ids_of(written + END)], TOOLS)
    assert [(call.tool, call.arguments) for call in said.calls] == [("boiling_point", {"name": "water"})]
    write(tmp_path, [{"prompt": f"{number}=", "answer": "1"} for number in range(9)])
    assert isinstance(dialogue_of(opened(tmp_path)), InlineDialogue)
    for more in ({"tools": TOOLS}, {"chat_template_kwargs": {"enable_thinking": True}}):
        write(tmp_path, [*SUMS, {"prompt": asked("2 + 9?"), "answer": "11", **more}], family="qwen3")
        with pytest.raises(EnvironmentFailed) as caught:
            dialogue_of(opened(tmp_path))
        assert caught.value.where == f"{tmp_path}/q.jsonl:13"


@pytest.mark.parametrize("environment", ["", "{tools: [calculator], turns: 2}"])
def test_a_run_on_messages_trains_on_what_it_drew_and_keeps_the_template(tmp_path, environment):
    write(tmp_path, SUMS, family="qwen2")
    words = ["rl.max_tokens=4", "train.steps=2", "model.max_position=1024"]
    words += ["rl.reward='{name: format, pattern: \".*[a-z].*\"}'"]
    words += [f"rl.environment='{environment}'"] if environment else []
    cfg = config(tmp_path, *words, seq_len=600)
    assert train(cfg) == 0
    steps = [one for one in records(tmp_path / "run") if "event" not in one]
    assert all(step["mismatch/max"] == 0.0 for step in steps)
    assert environment or sum(step["tokens"] for step in steps) > 0
    source = open_source(tmp_path / "run")
    assert [source.tokenizer.token(end) for end in source.stop_ids] == [END]
    assert ChatTemplate.load(tmp_path / "run").texts == {"default": FAMILIES["qwen2"].text}
