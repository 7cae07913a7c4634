"""Keys of chats: what contradicts each other, before anything is read."""

from __future__ import annotations

import pytest

from trainer.config.compose import compose
from trainer.config.errors import ConfigError

MISTAKES = [
    (["data.build=none"], "data.tokenizer", None),
    (["data.tokenizer=x"], "data.tokenizer", "x"),
    (["data.chat_template=x"], "data.chat_template", "x"),
    (["data.chat_date=tomorrow"], "data.chat_date", "tomorrow"),
    (["data.chat_values.messages=1"], "data.chat_values.messages", 1),
    (["data.workers=2"], "data.workers", 2),
    (["data.seq_len=1"], "data.seq_len", 1),
    (["data.chats.toy.repeat=0"], "data.chats.toy.repeat", 0),
    (["data.chats.toy.path=''"], "data.chats.toy.path", ""),
    (["data.chats.toy.path=' '"], "data.chats.toy.path", " "),
    (["train.objective=contrastive"], "train.objective", "contrastive"),
    (["train.objective=contrastive", "train.loss_reduction=square"], "train.loss_reduction", "square"),
    (["train.loss_reduction=mean"], "train.loss_reduction", "mean"),
    (["data.long_chats=drop"], "data.long_chats", "drop"),
    (["data.pack_chats=first_fit"], "data.pack_chats", "first_fit"),
]


@pytest.mark.parametrize(("words", "where", "value"), MISTAKES)
def test_mistakes(words, where, value):
    with pytest.raises(ConfigError) as failure:
        compose(["recipe=sft_toy", *words])
    (fault,) = [fault for fault in failure.value.faults if fault.where == where]
    assert fault.value == value
    assert fault.allowed is not None


@pytest.mark.parametrize(
    ("word", "where", "value"),
    [
        ("data.chat_date=2026-12-01", "data.chat_date", "2026-12-01"),
        ("data.chat_values.enable_thinking=false", "data.chat_values", ("enable_thinking",)),
        ("data.long_chats=cut", "data.long_chats", "cut"),
        ("data.pack_chats=none", "data.pack_chats", "none"),
        ("train.loss_reduction=sample", "train.loss_reduction", "sample"),
    ],
)
def test_without_chats(word, where, value):
    with pytest.raises(ConfigError) as failure:
        compose(["recipe=toy", word])
    (fault,) = failure.value.faults
    assert (fault.where, fault.value) == (where, value)


def test_values_of_the_template_keep_their_type():
    words = ["a=true", "b=7", "c=1.5", "d='007'", "e=high"]
    cfg = compose(["recipe=sft_toy", *(f"data.chat_values.{word}" for word in words)])
    assert cfg.data.chat_values == {"a": True, "b": 7, "c": 1.5, "d": "007", "e": "high"}
    assert [type(value) for value in cfg.data.chat_values.values()] == [bool, int, float, str, str]
    with pytest.raises(ConfigError) as failure:
        compose(["recipe=sft_toy", "data.chat_values.a=[1]"])
    assert failure.value.where == "data.chat_values.a"


def test_the_full_size_recipe_composes():
    cfg = compose(["recipe=sft_intern_s1_pro"], world_size=512)
    assert (cfg.data.name, cfg.data.seq_len, cfg.train.loss_reduction) == ("chat", 32_768, "square")
    assert cfg.data.tokenizer is None  # that of checkpoint.init_from
    assert cfg.model.num_params() > 9e11
