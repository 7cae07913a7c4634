import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.trainer.corpora.tokenize.tokenized import PREFIXES, documents, make, texts, tokenizer
from trainer.corpora.tokenize import write
from trainer.data.errors import DataError
from trainer.data.shards import files as shard_files
from trainer.data.shards import windows as shards
from trainer.data.shards.windows import Shards

EVERYTHING = documents(texts())


@pytest.fixture(autouse=True)
def _without_megatron(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its import takes seconds; test_tokenize.py compares the two writers."""
    monkeypatch.setattr(write, "HAS_WHEEL", False)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(write, "HAS_WHEEL", False)
        return make(tmp_path_factory.mktemp("source"), EVERYTHING)


def streams(directory: Path, key: str) -> list[list[int]]:
    """Tokens of every shard, read from its bytes."""
    listed = shard_files.read_manifest(directory)[key]
    return [np.fromfile(directory / f"{shard['stem']}.bin", "<u2").tolist() for shard in listed]


@pytest.mark.parametrize(("split", "key"), [("train", "shards"), ("heldout", "heldout")])
@pytest.mark.parametrize("seq_len", [7, 64])
def test_windows_are_the_shards_cut_up(source, split, key, seq_len):
    opened = Shards(source, split)
    eos, ids = tokenizer().eos_id, [tokenizer().encode(text) for text in PREFIXES["science"]]
    expected = []
    for stream in streams(source, key):
        starts, prefix = [False] * len(stream), [False] * len(stream)
        for place in range(len(stream)):
            if place == 0 or stream[place - 1] == eos:
                starts[place] = True
                (length,) = [len(some) for some in ids if stream[place : place + len(some)] == some]
                prefix[place : place + length] = [True] * length
        for first in range(0, len(stream) - seq_len, seq_len):
            window = slice(first, first + seq_len + 1)
            expected.append((stream[window], starts[window], prefix[window]))
    assert opened.num_windows(seq_len) == len(expected)
    order = np.random.default_rng(0).permutation(len(expected))
    windows = opened.read(order, seq_len)
    tokens, starts, prefix = windows.tokens_BL, windows.starts_BL, windows.context_BL
    assert (tokens.dtype, tokens.shape) == (np.int64, (len(expected), seq_len + 1))
    for row, place in enumerate(order.tolist()):
        assert (tokens[row].tolist(), starts[row].tolist(), prefix[row].tolist()) == expected[place]
    assert 0 < prefix.sum() < prefix.size
    alone = opened.read(order[3:4], seq_len)
    np.testing.assert_array_equal(alone.tokens_BL[0], tokens[3])
    np.testing.assert_array_equal(alone.context_BL[0], prefix[3])
    assert opened.read(order[:0], seq_len).tokens_BL.shape == (0, seq_len + 1)


def test_a_source_says_what_it_is(source):
    opened = Shards(source)
    assert (opened.name, opened.domain, opened.prefix_group) == ("notes", "science", "science")
    assert opened.vocab_size == tokenizer().vocab_size
    assert opened.num_tokens == sum(map(len, streams(source, "shards")))
    assert opened.num_documents + Shards(source, "heldout").num_documents == len(EVERYTHING)
    assert len(opened.fingerprint) == 64


@pytest.mark.parametrize("window", [-1, 10**6])
def test_a_window_that_is_not_there_is_refused(source, window):
    with pytest.raises(IndexError, match=r"of .*, which has \d+"):
        Shards(source).read(np.array([0, window]), 16)


def test_a_split_shorter_than_a_window_has_none(source):
    assert Shards(source).num_windows(100_000) == 0
    with pytest.raises(IndexError):
        Shards(source).read(np.array([0]), 100_000)


def test_no_prefix_group_means_no_prefix(tmp_path):
    out = make(tmp_path, EVERYTHING, group=None)
    assert not Shards(out).read(np.arange(3), 32).context_BL.any()


def damage(path: Path, at: int, value: int | None = None) -> None:
    content = bytearray(path.read_bytes())
    content[at] = content[at] ^ 1 if value is None else value
    path.unlink()  # a new file: the old one may be mapped
    path.write_bytes(content)


@pytest.mark.parametrize("how", ["sampled", "full"])
@pytest.mark.parametrize("name", ["train-00001.bin", "train-00000.idx", "train-00000.blocks"])
def test_a_flipped_bit_is_found(tmp_path, how, name):
    out = make(tmp_path, EVERYTHING)
    Shards(out).verify(how)
    damage(out / name, 9)
    with pytest.raises(DataError) as caught:
        Shards(out).verify(how)
    assert [(fault.where, fault.allowed) for fault in caught.value.faults] == [(str(out / name), shard_files.REMEDY)]
    assert len(caught.value.lines) == 1
    Shards(out).verify("off")
    Shards(out, "heldout").verify(how)


def test_sampling_finds_a_flipped_bit_as_often_as_it_says(tmp_path, monkeypatch):
    monkeypatch.setattr(shard_files, "HASH_BLOCK", 64)
    monkeypatch.setattr(shards, "SAMPLED_BLOCKS", 16)
    out = make(tmp_path, EVERYTHING)
    total = sum(map(shard_files.num_blocks, shard_files.read_manifest(out)["shards"]))
    damage(out / "train-00001.bin", 700)
    opened = Shards(out)
    found = sum(bool([*opened.faults("sampled", seed=seed)]) for seed in range(400))
    expected = 16 / total
    assert 0.02 < expected < 0.5
    assert abs(found / 400 - expected) < 4 * (expected * (1 - expected) / 400) ** 0.5
    assert [*opened.faults("full")]


def test_every_fault_is_reported_once(tmp_path):
    out = make(tmp_path, EVERYTHING)
    (out / "train-00000.bin").unlink()
    damage(out / "train-00001.idx", 0)
    for how in ("full", "sampled"):
        where = [fault.where for fault in Shards(out).faults(how)]
        assert where == [str(out / "train-00000.bin"), str(out / "train-00001.idx")]


def drop(path: Path) -> None:
    path.unlink()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2])


@pytest.mark.parametrize(
    ("fault", "name", "data"),
    [
        (drop, "train-00000.bin", [os.strerror(errno.ENOENT)]),
        (drop, "train-00000.idx", [os.strerror(errno.ENOENT)]),
        (cut, "train-00000.bin", []),
        (lambda path: damage(path, 41, 255), "train-00000.bin", ["token 20", str(tokenizer().vocab_size)]),
        (lambda path: damage(path, 0), "train-00000.bin", ["token 0", "science"]),
    ],
)
def test_what_cannot_be_read_is_reported_at_reading(tmp_path, fault: Callable[[Path], None], name, data):
    out = make(tmp_path, EVERYTHING)
    fault(out / name)
    with pytest.raises(DataError) as caught:
        Shards(out).read(np.array([0, 1]), 16)
    assert (caught.value.where, caught.value.allowed) == (str(out / name), shard_files.REMEDY)
    if fault is cut:
        assert caught.value.value == (out / name).stat().st_size
    (line,) = caught.value.lines
    assert all(datum in line for datum in [*data, str(out / name)])
    last = Shards(out).num_windows(16) - 1
    Shards(out).read(np.array([last]), 16)  # another shard


@pytest.mark.parametrize("how", ["sampled", "full"])
def test_another_tokenizer_than_the_one_that_made_the_shards_is_reported(tmp_path, how):
    out = make(tmp_path, documents(texts()))
    shards = Shards(out)
    shards.verify(how)
    path = out / "tokenizer.json"
    path.write_bytes(path.read_bytes() + b" ")
    for _ in ("changed", "missing"):
        with pytest.raises(DataError) as caught:
            shards.verify(how)
        assert (caught.value.where, caught.value.allowed) == (str(path), shard_files.REMEDY)
        path.unlink(missing_ok=True)


def test_manifests_that_are_not_as_written_are_refused(tmp_path):
    out = make(tmp_path, EVERYTHING)
    path = out / "manifest.json"
    written = path.read_text()
    path.write_text(written.replace('"science"', '"general"'))
    with pytest.raises(DataError) as error:
        Shards(out)
    assert (error.value.where, error.value.allowed) == (str(path), shard_files.REMEDY)
    assert error.value.value not in (None, json.loads(written)["checksum"])
    for content in (written[:100], "[]", "null"):
        path.write_text(content)
        with pytest.raises(DataError) as error:
            Shards(out)
        assert (error.value.where, error.value.allowed) == (str(path), shard_files.REMEDY)
    path.unlink()
    with pytest.raises(DataError) as error:
        Shards(out)
    assert (error.value.where, error.value.allowed) == (str(path), "give a directory that octavo tokenize wrote")


def test_documents_of_one_token_and_longer_than_the_window(tmp_path):
    long = "iron " * 500
    out = make(tmp_path, documents(["a", "b", long, "c", "d", "e", "f"]), heldout_fraction=0.0)
    opened = Shards(out)
    windows = opened.read(np.arange(opened.num_windows(32)), 32)
    tokens, starts = windows.tokens_BL, windows.starts_BL
    assert tokens.shape[0] > 15
    assert not starts[:, 1:].any(axis=1).all()  # windows inside the long document
    assert starts.sum() <= 7
    assert opened.num_documents == 7
