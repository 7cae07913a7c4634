"""Tokenizing a source: documents, splits, Megatron's readers, workers that fail, and options."""

import json
import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.printed import error_line
from tests.trainer.corpora.tokenize.stored import needs_megatron, written
from tests.trainer.corpora.tokenize.tokenized import (
    DEFAULTS,
    PREFIXES,
    contents,
    documents,
    make,
    save_tokenizer,
    start_dying,
    texts,
    tokenizer,
    write_jsonl,
)
from trainer.corpora.packages import Document
from trainer.corpora.tokenize import tokenize, write
from trainer.corpora.tokenize.tokenize import tokenize_source
from trainer.data.errors import DataError
from trainer.data.shards.megatron_index import IndexedTokens
from trainer.data.shards.megatron_reader import MegatronTokens
from trainer.data.shards.windows import Shards


def test_every_document_is_there_once_with_a_prefix_and_an_end(tmp_path, plain, many_units):
    some = texts(400)
    out = make(tmp_path, [write_jsonl(tmp_path / "a.jsonl", some[:250]), write_jsonl(tmp_path / "b.jsonl", some[250:])])
    train, heldout = written(out, "train"), written(out, "heldout")
    beginnings = [tokenizer().encode(text) for text in PREFIXES["science"]]
    seen, chosen = [], [0, 0, 0]
    for tokens in train + heldout:
        (number,) = [n for n, ids in enumerate(beginnings) if tokens[: len(ids)] == ids]
        chosen[number] += 1
        assert tokens[-1] == tokenizer().eos_id
        seen.append(tokenizer().decode(tokens[len(beginnings[number]) : -1]))
    assert sorted(seen) == sorted(some)
    assert min(chosen) > 100
    assert 0.1 < len(heldout) / len(some) < 0.3
    place = {text: number for number, text in enumerate(some)}
    order = [place[text] for text in seen[: len(train)]]
    assert abs(np.corrcoef(order, np.arange(len(order)))[0, 1]) < 0.2  # shuffled over units, parts and files
    assert 0.42 < np.mean(np.diff(order) > 0) < 0.58  # inside the shards, too
    shards = json.loads((out / "manifest.json").read_text())["shards"]
    assert len(shards) > 5
    assert max(shard["tokens"] for shard in shards) < 1.3 * DEFAULTS["shard_tokens"]


def test_copies_of_a_text_share_their_split(tmp_path, plain):
    out = make(tmp_path, [write_jsonl(tmp_path / "a.jsonl", texts() * 3)], group=None)
    train, heldout = ({tuple(tokens) for tokens in written(out, split)} for split in ("train", "heldout"))
    assert train
    assert heldout
    assert not train & heldout


@pytest.mark.parametrize("kind", ["memory", "jsonl", "parquet"])
def test_texts_of_an_origin_share_their_split(tmp_path, kind, plain):
    some = [tokenize.Document(f"file {n % 7}", text) for n, text in enumerate(texts())]
    origin = {document.text: document.origin for document in some}
    file = tmp_path / f"a.{kind}"
    if kind == "jsonl":
        file.write_text("".join(json.dumps({"from": d.origin, "text": d.text}) + "\n" for d in some))
    elif kind == "parquet":
        pq.write_table(pa.table({"from": list(origin.values()), "text": list(origin)}), file, row_group_size=50)
    changes = {} if kind == "memory" else {"origin": "from"}
    out = make(tmp_path, some if kind == "memory" else [file], group=None, heldout_fraction=0.5, **changes)
    split_of: dict[str, set[str]] = {}
    for split in ("train", "heldout"):
        for tokens in written(out, split):
            split_of.setdefault(origin[tokenizer().decode(tokens[:-1])], set()).add(split)
    assert len(split_of) == 7
    assert all(len(splits) == 1 for splits in split_of.values())


@pytest.mark.parametrize("kind", ["memory", "files"])
def test_something_is_held_out_of_two_origins_or_more(tmp_path, kind, plain, many_units, monkeypatch):
    """Whatever the share and wherever it is interrupted; a share of 0 means 0."""
    some = [Document(f"volume {number % 3}", text) for number, text in enumerate(texts(60))]
    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps({"text": d.text, "volume": d.origin}) + "\n" for d in some))
    how = {"group": None, "heldout_fraction": 1e-9, **({} if kind == "memory" else {"origin": "volume"})}

    def made(name: str, **changes: Any) -> dict[str, bytes]:
        return contents(make(tmp_path, some if kind == "memory" else [file], out=tmp_path / name, **{**how, **changes}))

    whole = made("whole")
    held = {tokenizer().decode(ids[:-1]) for ids in written(tmp_path / "whole", "heldout")}
    assert held in [{d.text for d in some if d.origin == f"volume {number}"} for number in range(3)]
    assert len(written(tmp_path / "whole", "train")) == 40
    original, starts = tokenize.jobs.spool_unit, [0]

    def dies(*args: Any, **kwargs: Any) -> Any:
        starts[0] += 1
        if starts[0] % 5 == 0:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    if kind == "files":
        with monkeypatch.context() as patch:
            patch.setattr(tokenize.jobs, "spool_unit", dies)
            for _ in range(50):
                with suppress(KeyboardInterrupt):
                    assert made("broken") == whole
                    break
        assert starts[0] > 10
    made("none", heldout_fraction=0.0)
    assert written(tmp_path / "none", "heldout") == []
    make(tmp_path, documents(["an atom"]), heldout_fraction=0.001)  # one: it is trained on


def test_empty_texts_are_left_out_and_counted(tmp_path, plain):
    out = make(tmp_path, [write_jsonl(tmp_path / "a.jsonl", ["", "iron", "", " ", "atom"])], heldout_fraction=0.0)
    assert json.loads((out / "manifest.json").read_text())["empty_documents"] == 2
    assert len(written(out, "train")) == 3


@needs_megatron
def test_megatrons_builder_writes_what_ours_does(tmp_path, monkeypatch):
    for vocab in (300, 100_000):
        assert write.token_dtype(vocab) == _megatron_dtype(vocab)
        files = []
        for has_wheel in (True, False):
            monkeypatch.setattr(write, "HAS_WHEEL", has_wheel)
            paths = [str(tmp_path / f"{vocab}-{has_wheel}.{suffix}") for suffix in ("bin", "idx")]
            builder = write.builder(paths[0], write.token_dtype(vocab))
            assert isinstance(builder, write.PlainBuilder) != has_wheel
            for text in texts(20):
                ids = np.array(tokenizer().encode(text), np.int32)
                builder.add_document(ids, [len(ids)])
            builder.finalize(paths[1])
            files.append([Path(path).read_bytes() for path in paths])
        assert files[0] == files[1]


def _megatron_dtype(vocab: int) -> type[np.number]:
    from megatron.core.datasets.indexed_dataset import DType

    return DType.optimal_dtype(vocab)


@needs_megatron
def test_megatrons_reader_gives_the_same_windows(tmp_path):
    out = make(tmp_path, documents(texts()))
    for split in ("train", "heldout"):
        ours, theirs = Shards(out, split), Shards(out, split, reader="megatron")
        assert isinstance(theirs.files(0), MegatronTokens)
        for length in (7, 100):
            order = np.random.default_rng(0).permutation(ours.num_windows(length))
            mine, other = ours.read(order, length), theirs.read(order, length)
            for name in ("tokens_BL", "starts_BL", "context_BL"):
                np.testing.assert_array_equal(getattr(mine, name), getattr(other, name))
            assert mine.faults == other.faults == ()
    os.truncate(out / "train-00000.bin", 100)
    with pytest.raises(DataError) as caught:
        MegatronTokens(out / "train-00000").read_into(np.array([60]), np.array([0]), np.empty((1, 30), np.int64))
    assert Path(caught.value.where).stem == "train-00000"


@needs_megatron
def test_megatrons_gpt_dataset_reads_our_shards(tmp_path):
    from megatron.core.datasets.blended_dataset import BlendedDataset
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
    from megatron.core.datasets.indexed_dataset import IndexedDataset
    from megatron.core.datasets.utils import Split

    class TheirTokenizer:
        eod, pad, vocab_size = tokenizer().eos_id, -1, tokenizer().vocab_size
        unique_identifiers: ClassVar = {"name": "notes"}

    out = make(tmp_path, documents(texts()))
    config = GPTDatasetConfig(
        random_seed=1, sequence_length=32, blend=None, split="100,0,0", path_to_cache=str(tmp_path / "cache"),
        tokenizer=TheirTokenizer(), reset_position_ids=True, reset_attention_mask=False, eod_mask_loss=False,
        create_attention_mask=False, mmap_bin_files=True,
    )  # fmt: skip
    sets = []
    for shard in ("train-00000", "train-00001"):
        stem = out / shard
        low = IndexedDataset(str(stem))
        indices = np.arange(len(low), dtype=np.int32)
        theirs = GPTDataset(low, str(stem), indices, None, Split.train, config)
        sets.append(theirs)
        # Its stream is the shard's documents in an order of its own.
        ours = IndexedTokens(stem)
        order = theirs.document_index.tolist()
        stream = np.concatenate([ours.document(number) for number in order])
        for sample in range(len(theirs)):
            first = int(theirs.shuffle_index[sample]) * 32
            assert theirs[sample]["tokens"].tolist() == stream[first : first + 32].tolist()
    blended = BlendedDataset(sets, [0.5, 0.5], 10, replace(config, path_to_cache=None))
    assert len(blended[3]["tokens"]) == 32


def test_a_worker_that_dies_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(tokenize.jobs, "start_jobs", start_dying)
    with pytest.raises(DataError) as caught:
        make(tmp_path, [write_jsonl(tmp_path / "a.jsonl", texts())], workers=2)
    assert "SIGKILL" in caught.value.value
    assert (caught.value.where, caught.value.allowed) == ("--workers", "use fewer --workers")


def test_a_worker_reports_a_mistake_in_the_input(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "iron"}\n{"text"\n')
    with pytest.raises(DataError) as caught:
        make(tmp_path, [tmp_path / "a.jsonl"], workers=1)
    assert caught.value.where == f"{tmp_path / 'a.jsonl'}, line 2"  # across the process


def test_too_small_a_disk_is_reported_before_work_starts(tmp_path, plain, monkeypatch):
    monkeypatch.setattr(tokenize.shutil, "disk_usage", lambda path: _Usage())
    with pytest.raises(DataError) as caught:
        make(tmp_path, [write_jsonl(tmp_path / "a.jsonl", texts())])
    assert (caught.value.where, caught.value.value) == (str(tmp_path / "source.tmp"), 10)


class _Usage:
    free = 10


@pytest.mark.parametrize(
    ("changes", "where", "value", "allowed"),
    [
        ({"heldout_fraction": 0.9999999}, "--heldout", 0.9999999, "a smaller --heldout"),
        ({"group": "sience"}, "data.prefixes", "sience", ("science", "general")),
        ({"eos": "</s>"}, "--eos", "</s>", "a token of the tokenizer"),
    ],
)
def test_impossible_options_are_reported(tmp_path, plain, changes, where, value, allowed):
    with pytest.raises(DataError) as caught:
        make(tmp_path, documents(texts()), **changes)
    assert (caught.value.where, caught.value.value, caught.value.allowed) == (where, value, allowed)


def test_parts_without_a_rule_for_media_name_the_options(tmp_path, plain):
    (tmp_path / "rows.jsonl").write_text(json.dumps({"text": [{"type": "image", "path": "a.png"}]}) + "\n")
    with pytest.raises(DataError) as error:
        make(tmp_path, [tmp_path / "rows.jsonl"])
    assert error.value.where.endswith("line 1")
    error_line("\n".join(error.value.lines), "--image", "--signal", "--media")


def test_all_texts_empty(tmp_path, plain):
    with pytest.raises(DataError) as caught:
        make(tmp_path, documents(["", ""]))
    assert (caught.value.where, caught.value.value) == ("INPUT", 2)


def test_progress_counts_bytes_then_tokens(tmp_path, plain, many_units):
    heard = []
    source = write_jsonl(tmp_path / "a.jsonl", texts())
    out = tmp_path / "source"
    manifest = tokenize_source([source], save_tokenizer(tmp_path), out, progress=heard.append, **DEFAULTS)
    first, second = ([state for state in heard if state.stage == stage] for stage in ("tokenizing", "writing"))
    assert (first[-1].done, first[-1].total) == (source.stat().st_size,) * 2
    total = manifest["tokens"] + sum(shard["tokens"] for shard in manifest["heldout"])
    assert first[-1].tokens == second[-1].made == second[-1].done == second[-1].total == total
    assert (first[-1].unit, second[-1].unit) == ("bytes", "tokens")
    for stage in (first, second):
        assert [state.done for state in stage] == sorted(state.done for state in stage)
