"""Tools, their environment, and the conversation in a checkpoint's own template."""

import json

import pytest

from launch.serving.conversation import Conversation
from tests.launch.serving.tiny_server import tokenizer
from tests.trainer.chat.templates import FAMILIES
from tests.trainer.rl.environments.scripted import Scripted
from trainer.chat.template import ChatTemplate
from trainer.engine.request import Sampling
from trainer.rl.environments.base import Call, EnvironmentFailed, Malformed, Said
from trainer.rl.environments.build import build_environment
from trainer.rl.environments.calculator import evaluate
from trainer.rl.environments.dialogue import TemplateDialogue
from trainer.rl.environments.play import Play
from trainer.rl.environments.tools import ToolError
from trainer.rl.rewards.base import Question

SUMS = [
    ("(3 + 4) * 2**5", "224"),
    ("2^10", "1024"),
    ("0.1 + 0.2", "0.3"),
    ("1/3", "0.333333333333333"),
    ("-7 // 2", "-4"),
    ("6.02e23 * 2", "1204000000000000000000000"),
    ("sqrt(2)", "1.4142135623731"),
    ("99999999999 * 99999999999", "9999999999800000000001"),
    ("3 × 4 ÷ 6", "2"),
    ("abs(-5)", "5"),
    ("round(2.6)", "3"),
]


@pytest.mark.parametrize(("expression", "value"), SUMS)
def test_sums(expression, value):
    found = evaluate(expression)
    assert found == value or abs(float(found) - float(value)) < 1e-12


@pytest.mark.parametrize(
    "expression",
    ["1/0", "9**9**9", "2**-99999999", "__import__('os')", "(1).real", "x", "1 if 1 else 2", "[1]", "'a' * 9", "",
     "1 +", "sqrt(-1)", "(-8)**0.5", "exp(9999)", "1" * 500, "True", "sqrt(1, 2)", "1e999", "0 ** -1", "1j", "(" * 150],
)  # fmt: skip
def test_other_expressions_are_refused(expression):
    with pytest.raises(ToolError):
        evaluate(expression)


RECORDS = "name,mp,class\ncopper,1357.77,metal\nNickel Silver,,alloy\nice,273.150,\nice,272.9,salted\n"
COLUMNS = "name: name\nproperties:\n  mp: {label: melting point, unit: K}\n  class: {label: class, text: true}\n"


@pytest.fixture
def table(tmp_path):
    (tmp_path / "alloys.csv").write_text(RECORDS)
    (tmp_path / "columns.yaml").write_text(COLUMNS)
    tool = {"name": "table", "records": "alloys.csv", "columns": "columns.yaml"}
    cfg = {"tools": [tool, "calculator"], "reward": "exact", "calls": 3}
    return build_environment(cfg, root=tmp_path)


def ask(session, *calls):
    return [reply["content"] for reply in session.step(Said("", calls))]


def find(name, wanted):
    return Call("look_up", {"name": name, "property": wanted})


def test_a_table_gives_values_as_they_are_written(table):
    session = table.start(Question(0, "?", "1357.77 K"))
    assert ask(session, find("copper", "melting point"), find("COPPER", "mp"), find("ice", "melting point")) == [
        "melting point of copper: 1357.77 K",
        "melting point of copper: 1357.77 K",
        "melting point of ice: 273.150 K\nmelting point of ice: 272.9 K",
    ]
    unknown = ask(session, find("coper", "mp"), find("nickel silver", "mp"), find("copper", "boiling point"))
    assert all(reply.startswith("error: ") for reply in unknown)
    assert "copper" in unknown[0]
    assert "melting point" in unknown[2]
    assert session.counts() == {"calls": 6, "malformed": 0, "errors": 3}


def test_records_in_jsonl_keep_their_digits(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"name": "ice", "mp": 273.150}\n')
    (tmp_path / "columns.yaml").write_text(COLUMNS)
    tool = {"name": "table", "records": "a.jsonl", "columns": "columns.yaml"}
    made = build_environment({"tools": [tool], "reward": "exact"}, root=tmp_path)
    assert ask(made.start(Question(0, "?", "")), find("ice", "mp")) == ["melting point of ice: 273.150 K"]


def test_calls_of_one_turn_are_answered_in_order_and_bad_ones_with_an_error(table):
    session = table.start(Question(0, "?", "4"))
    calls = [
        Call("calculator", {"expression": "2+2"}),
        Malformed("<tool_call>{"),
        Call("calculator", {"expression": 4}),
        Call("calculator", {"expression": "1+1"}),  # one more than `calls` allows
    ]
    first, *rest = ask(session, *calls)
    assert first == "4"
    assert all(one.startswith("error: ") for one in rest)
    bad = [Call("calculater", {}), Call("calculator", {}), Call("calculator", {"expression": "1", "x": "2"})]
    assert all(one.startswith("error: ") for one in ask(session, *bad))
    assert session.counts() == {"calls": 7, "malformed": 1, "errors": 6}
    assert session.reward().value == 0
    assert session.step(Said("4")) == []
    assert session.reward().value == 1


def test_long_answers_of_tools_are_cut(table):
    object.__setattr__(table, "longest", 10)
    (reply,) = ask(table.start(Question(0, "?", "")), find("copper", "mp"))
    assert reply.startswith("melting po")
    assert len(reply) < 30


@pytest.mark.parametrize(
    ("cfg", "where"),
    [
        ("tools", "rl.environment"),
        ({"reward": "exact"}, "rl.environment.tools"),
        ({"tools": ["calculator"]}, "rl.environment.reward"),
        ({"tools": "calculator", "reward": "exact"}, "rl.environment.tools"),
        ({"tools": ["abacus"], "reward": "exact"}, "rl.environment.tools[0]"),
        ({"tools": [{"name": "table"}], "reward": "exact"}, "rl.environment.tools[0].records"),
        ({"tools": [], "reward": "exact", "turns": 0}, "rl.environment.turns"),
        ({"tools": [], "reward": "exact", "turn": 4}, "rl.environment.turn"),
    ],
)
def test_faults_name_the_option(cfg, where):
    with pytest.raises(EnvironmentFailed) as caught:
        build_environment(cfg)
    assert caught.value.where == where


@pytest.mark.parametrize("content", ["", "properties: 3", "name: [", "name: a\nproperties: {mp: 4}"])
def test_columns_that_cannot_be_read_name_their_file(tmp_path, content):
    (tmp_path / "alloys.csv").write_text(RECORDS)
    (tmp_path / "columns.yaml").write_text(content)
    tool = {"name": "table", "records": "alloys.csv", "columns": "columns.yaml"}
    with pytest.raises(EnvironmentFailed) as caught:
        build_environment({"tools": [tool], "reward": "exact"}, root=tmp_path)
    assert caught.value.where == str(tmp_path / "columns.yaml")


def dialogue(family):
    conversation = Conversation(ChatTemplate({"default": FAMILIES[family].text}), tokenizer())
    return TemplateDialogue(conversation, frozenset({tokenizer().eos_id}))


def written(name, /, **arguments):
    return f'<tool_call>\n{{"name": "{name}", "arguments": {json.dumps(arguments)}}}\n</tool_call>'


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_a_conversation_is_what_the_template_writes(table, family):
    """Drawn tokens and those between them are, as a text, what the template renders of the whole conversation."""
    talks = dialogue(family)
    think = "<think>\nLook it up.\n</think>\n\n" if family == "qwen3" else ""
    calls = [written("look_up", name="ice", property="mp"), written("calculator", expression="2+2")]
    turns = iter([f"{think}{calls[0]}\n{calls[1]}<|im_end|>", f"{think}4<|im_end|>"])
    engine = Scripted(lambda prompt: talks.conversation.ids_of(next(turns)))
    question = Question(5, "What is 2+2?", "4")
    plays = Play(table, talks, max_tokens=400, context=3000, environment_s=60)
    (found,) = plays.play(engine, [(question, Sampling())], deadline_s=60)
    assert found.verdict.value == 1
    assert found.counts["calls"] == 2
    message = {"role": "assistant", "content": "", "tool_calls": [
        {"type": "function", "function": {"name": "look_up", "arguments": {"name": "ice", "property": "mp"}}},
        {"type": "function", "function": {"name": "calculator", "arguments": {"expression": "2+2"}}},
    ]}  # fmt: skip
    replies = [
        {"role": "tool", "content": "melting point of ice: 273.150 K\nmelting point of ice: 272.9 K"},
        {"role": "tool", "content": "4"},
    ]
    answer = {"role": "assistant", "content": "4"}
    if think:
        message["reasoning_content"] = answer["reasoning_content"] = "Look it up."
    messages = [{"role": "user", "content": "What is 2+2?"}, message, *replies, answer]
    whole = talks.conversation.template.render(messages, table.tools)
    ids = [*found.rollout.prompt, *found.rollout.ids]
    text = "".join(talks.conversation.tokenizer.token(token) for token in ids)
    expected = "".join(talks.conversation.tokenizer.token(token) for token in talks.conversation.ids_of(whole))
    assert text == expected.removesuffix("Ċ")  # the newline behind the last turn


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_a_call_that_cannot_be_read_is_malformed(table, family):
    talks = dialogue(family)
    ids = talks.conversation.ids_of(f'{written("calculator", expression="1")}\n<tool_call>{{"name": 3}}</tool_call>')
    said = talks.read([*ids, talks.conversation.ids_of("<|im_end|>")[0]], table.tools)
    assert said.calls[0] == Call("calculator", {"expression": "1"})
    assert isinstance(said.calls[1], Malformed)
    plain = talks.read([*talks.conversation.ids_of("4"), talks.conversation.ids_of("<|im_end|>")[0]], table.tools)
    assert (plain.text, [*plain.calls]) == ("4", [])


def test_a_guide_rewards_a_first_turn_that_is_written_as_the_records_call(table):
    object.__setattr__(table, "guide", 0.6)
    question = Question(0, "2+2=", "4", {"call": "[2+2]"})
    for written, worth in (("[2+2]", 1.0), ("[2+3]", 0.8), ("(2+2)", 0.6), ("", 0.0)):
        session = table.start(question)
        session.step(Said("", [Call("calculator", {"expression": "2+2"})], written=written))
        assert session.reward().value == pytest.approx(0.6 * worth)
        session.step(Said("4", written="4"))
        assert session.reward().value == pytest.approx(worth)
    assert table.start(question).reward().value == 0


@pytest.mark.parametrize("guide", [1, -0.1, "half", True])
def test_a_guide_is_a_share(guide):
    with pytest.raises(EnvironmentFailed) as caught:
        build_environment({"tools": [], "reward": "exact", "guide": guide})
    assert caught.value.where == "rl.environment.guide"
