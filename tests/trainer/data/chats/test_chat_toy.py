"""recipe=sft_toy learns the format of its chats: answers, thinking and calls, each ended by the turn's own token."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from trainer.chat.template import ChatTemplate
from trainer.config.compose import compose
from trainer.corpora.chats.questions import ELEMENTS, TOOLS
from trainer.engine.engine import Engine
from trainer.engine.load import open_source
from trainer.engine.request import Request, Sampling
from trainer.run.process import train


@pytest.mark.slow
def test_the_toy_answers_in_the_format(tmp_path: Path) -> None:
    words = ["train.steps=120", "logging.console=off", "train.device=cpu", f"data.cache_dir={tmp_path / 'cache'}"]
    assert train(compose(["recipe=sft_toy", f"run.dir={tmp_path / 'run'}", *words])) == 0
    source, template = open_source(tmp_path / "run"), ChatTemplate.load(tmp_path / "run")
    engine = Engine(source.load(torch.device("cpu")), decode=source.tokenizer.decode)

    def answers(texts: list[str], tools: list[object] | None = None) -> list[tuple[str, str]]:
        """The text of each answer, and the token that ended it."""
        prompts = [
            template.render([{"role": "user", "content": text}], tools, add_generation_prompt=True) for text in texts
        ]
        requests = [Request(source.prompt(text), 60, Sampling(temperature=0.0), source.stop_ids) for text in prompts]
        found = engine.generate(requests)
        return [(answer.text, answer.finish) for answer in found]

    names = [*ELEMENTS]
    plain = answers([f"What is the symbol of {name}?" for name in names])
    symbols = [f"The symbol of {name} is {ELEMENTS[name][0]}." for name in names]
    assert sum(text == symbol for symbol, (text, _) in zip(symbols, plain, strict=True)) > 15
    pairs = zip(names, names[3:], strict=False)
    thinking = answers([f"Which has more protons, {one} or {other}?" for one, other in pairs])
    assert all(re.fullmatch(r"<think>\n.*\n</think>\n\nIt is \w+\.", text) for text, _ in thinking)
    calls = answers([f"What is {number} °C in kelvin?" for number in range(20, 90, 7)], TOOLS)
    for text, _ in calls:
        call = re.fullmatch(r"<tool_call>\n(.*)\n</tool_call>", text)
        assert call is not None
        assert json.loads(call.group(1))["name"] == "to_kelvin"
    assert {finish for _, finish in (*plain, *thinking, *calls)} == {"stop"}
