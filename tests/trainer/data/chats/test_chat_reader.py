"""Reading of chats: counts of what is left out, the cache, splits, order, and chats that are too long."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from parallel.errors import UserError
from tests.trainer.chat.templates import CHATML, QWEN3
from tests.trainer.data.chats.chat_corpus import LINES, VOCAB_SIZE, chat_config, write_corpus
from trainer.config.keys import DataConfig
from trainer.config.mixture import ChatSourceConfig
from trainer.corpora.chats.questions import conversation
from trainer.data.build import build_data
from trainer.data.chats.prepare import Prepared, prepare
from trainer.data.chats.reader import ChatReader
from trainer.data.chats.tokens import open_tokenizer
from trainer.storage.progress import ignore


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


def data_of(corpus: Path, **changed: Any) -> DataConfig:
    return chat_config(corpus / "run", corpus, data=changed).data


def prepared_of(data: DataConfig) -> Prepared:
    return prepare(data, open_tokenizer(data), ignore)


def reader_of(data: DataConfig, seed: int = 3, lines: list[str] | None = None) -> ChatReader:
    warn = None if lines is None else lines.append
    return ChatReader(data, prepared_of(data), seed=seed, padding=2, warn=warn)


def test_records_that_are_left_out_are_counted_and_named(tmp_path):
    empty, without = json.dumps({"messages": []}), json.dumps({"messages": [{"role": "user", "content": "q"}]})
    faulty = json.dumps({"messages": [{"role": "bot", "content": "q"}]})
    lines = [LINES[0], empty, without, empty, LINES[1], *[empty] * 3, faulty, LINES[2]]
    data = data_of(write_corpus(tmp_path, lines), on_fault="skip")
    warnings: list[str] = []
    build_data(data, seed=1, vocab_size=VOCAB_SIZE, warn=warnings.append)
    file = tmp_path / "chats.jsonl"
    assert [line.partition(": ")[2] for line in warnings] == [
        f"5 record(s) left out, empty: {file}:2, {file}:4, {file}:6, ...",
        f"1 record(s) left out, without an assistant's turn: {file}:3",
        f"1 record(s) left out, faulty: {file}:9",
    ]
    facts = prepared_of(data).facts
    assert (facts["read"], facts["records"]) == (10, 3)
    assert facts["left_out"]["mine"] == {"empty": 5, "without an assistant's turn": 1, "faulty": 1}
    # what was made under on_fault=skip is not taken for whole
    with pytest.raises(UserError) as failure:
        prepared_of(data_of(tmp_path, on_fault="fail"))
    assert [fault.where for fault in failure.value.faults] == [f"{file}:9"]
    assert failure.value.allowed


def test_thinking_that_the_template_leaves_out_is_counted(tmp_path):
    data = data_of(
        write_corpus(tmp_path, template=CHATML.replace("{{ m.content }}", "{{ m.content or m.tool_calls }}"))
    )
    (line,) = prepared_of(data).left_out()
    assert "8 turn(s)" in line  # a fifth of 40
    assert [*prepared_of(data_of(write_corpus(tmp_path))).left_out()] == []


def test_all_faults_are_reported_together_and_a_source_needs_a_chat(tmp_path):
    data = data_of(write_corpus(tmp_path, [LINES[0], "{", "3", LINES[1]]))
    with pytest.raises(UserError) as failure:
        prepared_of(data)
    assert [fault.where for fault in failure.value.faults] == [f"{tmp_path}/chats.jsonl:{line}" for line in (2, 3)]
    (tmp_path / "chats.jsonl").write_text('{"messages": []}')
    with pytest.raises(UserError) as failure:
        prepared_of(data)
    assert (failure.value.where, failure.value.value) == ("data.chats.mine", {"empty": 1})


def test_the_cache_is_used_and_made_again_when_anything_changes(tmp_path):
    data = data_of(write_corpus(tmp_path))
    first = prepared_of(data)
    stamp = (first.directory / "tokens.bin").stat().st_mtime_ns
    assert (prepared_of(data).directory / "tokens.bin").stat().st_mtime_ns == stamp
    (tmp_path / "chats.jsonl").write_text("\n".join(LINES[::-1]))
    keys = {first.key, prepared_of(data).key}
    (tmp_path / "chat_template.jinja").write_text(QWEN3 + "\n")
    keys.add(prepared_of(data).key)
    keys.add(prepared_of(data_of(tmp_path, chat_values={"enable_thinking": True})).key)
    keys.add(prepared_of(data_of(tmp_path, holdout_fraction=0.2)).key)
    assert len(keys) == 5
    again = prepared_of(data)
    damaged = again.directory / "tokens.bin"
    damaged.write_bytes(damaged.read_bytes()[:-4])
    assert len(prepared_of(data).tokens) == len(again.tokens)


def test_splits_and_repeats(tmp_path):
    """Equal records are in one split; an epoch has a chat `repeat` times; files of their own can be held out."""
    corpus = write_corpus(tmp_path, [*LINES, *LINES])
    prepared = prepared_of(data_of(corpus, holdout_fraction=0.2))
    sides: dict[bytes, set[int]] = {}
    for record, heldout in enumerate(prepared.records[:, 1].tolist()):
        parts = prepared.examples[prepared.examples[:, 2] == record, :2].tolist()
        text = b"|".join(prepared.tokens[first : first + length].tobytes() for first, length in parts)
        sides.setdefault(text, set()).add(heldout)
    assert all(len(found) == 1 for found in sides.values())
    heldout = int(prepared.records[:, 1].sum())
    assert 12 <= heldout <= 20  # a fifth of 80, and what equals it
    (tmp_path / "other.jsonl").write_text("\n".join(LINES[:5]))
    data = data_of(corpus, chats={"mine": ChatSourceConfig(path="chats.jsonl", heldout="other.jsonl", repeat=3)})
    reader, prepared = reader_of(data), prepared_of(data)
    assert int(prepared.records[:, 1].sum()) == 5
    examples = np.concatenate([reader.members(pack) for pack in range(reader.train.count)])
    assert {*np.bincount(examples)[np.unique(examples)].tolist()} == {3}
    assert {int(prepared.records[prepared.examples[one, 2], 1]) for one in examples} == {0}


def test_a_chat_that_is_held_out_is_trained_on_from_no_source(tmp_path):
    corpus = write_corpus(tmp_path, LINES[:8])
    (tmp_path / "other.jsonl").write_text("\n".join([LINES[20], *LINES[2:5]]))
    # Files of chats that are held out, with some that are trained on, too.
    data = data_of(corpus, chats={"mine": ChatSourceConfig(path="chats.jsonl", heldout="other.jsonl")})
    prepared = prepared_of(data)
    assert prepared.facts["left_out"] == {"mine": {"equal to one that is held out": 3}}
    assert prepared.facts["named"]["mine"]["equal to one that is held out"] == [
        f"{tmp_path}/chats.jsonl:{line}" for line in (3, 4, 5)
    ]
    assert prepared.records[:, 1].tolist() == [0] * 5 + [1] * 4
    assert {*prepared.examples[:, 2].tolist()} == {*range(9)}
    assert prepared.facts["tokens"] == prepared.examples[:, 1].sum()
    # A source of two chats that the other one trains on holds out one of them.
    alone = prepared_of(data_of(corpus, holdout_fraction=0.5))
    two = [LINES[line - 1] for _, held, _, line in alone.records.tolist() if not held][:2]
    (tmp_path / "other.jsonl").write_text("\n".join(two))
    sources = {"mine": ChatSourceConfig(path="chats.jsonl"), "more": ChatSourceConfig(path="other.jsonl")}
    prepared = prepared_of(data_of(corpus, chats=sources, holdout_fraction=0.5))
    assert prepared.facts["left_out"] == {"mine": {"equal to one that is held out": 1}}
    assert np.bincount(prepared.records[:, 0]).tolist() == [7, 2]


def test_an_epoch_has_every_example_once_in_an_order_of_its_own(corpus):
    reader = reader_of(data_of(corpus))
    size = reader.train.count
    first, second = (reader.positions(np.arange(epoch * size, (epoch + 1) * size)).tolist() for epoch in (0, 1))
    assert sorted(first) == sorted(second) == list(range(size))
    assert first != second
    assert reader.positions(np.array([size + 1, 2])).tolist() == [second[1], first[2]]
    assert reader_of(data_of(corpus), seed=4).positions(np.arange(size)).tolist() != first
    members = [example for pack in range(size) for example in reader.members(pack)]
    assert len(members) == len(set(members)) == len(reader.train.examples)


def test_windows_hold_whole_examples_and_padding(corpus):
    data = data_of(corpus)
    reader, prepared = reader_of(data), prepared_of(data)
    windows = reader.read(0, reader.train.count)
    packs = reader.positions(np.arange(reader.train.count))
    for row, pack in enumerate(packs.tolist()):
        at = 0
        for example in reader.members(pack):
            first, length, _, trained = prepared.examples[example].tolist()
            here = slice(at, at + length)
            assert windows.tokens_BL[row, here].tolist() == prepared.tokens[first : first + length].tolist()
            assert windows.starts_BL[row, here].tolist() == [True] + [False] * (length - 1)
            assert windows.supervised_BS[row, at : at + length - 1].sum() == trained
            at += length
        assert windows.starts_BL[row, at]
        assert not windows.supervised_BS[row, at - 1 :].any()
        assert set(windows.tokens_BL[row, at:].tolist()) == {2}


def test_long_chats_are_refused_cut_or_skipped(corpus):
    whole = prepared_of(data_of(corpus))
    lengths = whole.examples[:, 1]
    limit = int(np.median(lengths))
    with pytest.raises(UserError) as failure:
        reader_of(data_of(corpus, seq_len=limit))
    assert failure.value.where == "data.long_chats"
    assert failure.value.value == int((lengths > limit).sum())
    assert failure.value.allowed.startswith(f"data.seq_len={lengths.max()}")
    lines: list[str] = []
    skipped = reader_of(data_of(corpus, seq_len=limit, long_chats="skip"), lines=lines)
    cut = reader_of(data_of(corpus, seq_len=limit, long_chats="cut"), lines=lines)
    assert len(lines) == 2
    assert str(failure.value.value) in lines[0]
    assert len(skipped.train.examples) < len(cut.train.examples) <= len(lengths)
    assert lengths[skipped.train.examples].max() <= limit
    assert cut.lengths.max() == limit
    for row in range(cut.train.count):
        assert cut.read(row, 1).supervised_BS.any()  # a chat whose answers are all behind the cut is left out
    assert len({one.fingerprint for one in (skipped, cut)}) == 2


def test_a_template_that_prints_the_date_needs_one(tmp_path):
    corpus = write_corpus(tmp_path, template="{{ strftime_now('%d %b %Y') }}" + QWEN3)
    with pytest.raises(UserError) as failure:
        prepared_of(data_of(corpus))
    assert (failure.value.where, bool(failure.value.allowed)) == ("data.chat_date", True)
    data = data_of(corpus, chat_date="2026-12-01")
    prepared = prepared_of(data)
    first, length = prepared.examples[0, :2].tolist()
    assert open_tokenizer(data).decode(prepared.tokens[first : first + length].tolist()).startswith("01 Dec 2026")


@pytest.mark.parametrize(
    ("changed", "where"),
    [
        ({"tokenizer": None}, "data.tokenizer"),
        ({"tokenizer": "nowhere"}, "nowhere"),
        ({"chat_template": "nowhere"}, "data.chat_template"),
        ({"chats": {"mine": ChatSourceConfig(path="nothing.jsonl")}}, "data.chats.mine.path"),
        ({"chats": {"mine": ChatSourceConfig(path="chats.jsonl", heldout="nothing")}}, "data.chats.mine.heldout"),
    ],
)
def test_files_that_are_missing(corpus, changed, where):
    with pytest.raises(UserError) as failure:
        prepared_of(data_of(corpus, **changed))
    assert where in failure.value.where
    assert failure.value.allowed


def test_weights_with_another_tokenizer_are_refused(corpus, tmp_path):
    weights = write_corpus(tmp_path / "weights")
    library = json.loads((weights / "tokenizer.json").read_text())
    library["added_tokens"][0]["content"] = "<|other|>"
    (weights / "tokenizer.json").write_text(json.dumps(library))
    with pytest.raises(UserError) as failure:
        build_data(data_of(corpus), seed=1, vocab_size=VOCAB_SIZE, weights=weights)
    assert failure.value.where == "checkpoint.init_from"
    assert "data.tokenizer=null" in failure.value.allowed
    opened = build_data(data_of(corpus, tokenizer=None), seed=1, vocab_size=VOCAB_SIZE, weights=weights)
    assert opened.tokenizer.path == weights / "tokenizer.json"


def test_a_model_needs_the_vocabulary(corpus):
    with pytest.raises(UserError) as failure:
        build_data(data_of(corpus), seed=1, vocab_size=VOCAB_SIZE - 1)
    assert (failure.value.where, failure.value.value) == ("model.vocab_size", VOCAB_SIZE - 1)


def test_the_toys_conversations_are_what_they_say():
    kinds = [conversation(number) for number in range(10)]
    assert sum("tools" in record for record in kinds) == 2
    assert sum(any("reasoning_content" in message for message in record["messages"]) for record in kinds) == 2
