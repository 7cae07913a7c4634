"""Pairs by number: the same for any number of ranks, splits without a caption in common, and what cannot be read."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tests.trainer.data.pairs.made import data_config, image, write_source, write_tar
from trainer.config.keys import DataConfig
from trainer.config.model import VisionConfig
from trainer.corpora.pairs.index import index_pairs
from trainer.data.errors import DataError
from trainer.data.media.images import PatchRule, decode
from trainer.data.pairs.index import PairIndex
from trainer.data.pairs.reader import PairReader, Pairs
from trainer.data.pairs.stream import open_pairs
from trainer.data.pairs.zero_shot import CLASSES, TEMPLATES

pytest.importorskip("PIL", reason="needs Pillow: pip install -e '.[media]'")

RULE = PatchRule(8, 2, 2, 1024, 2048)
VISION = VisionConfig(width=8, num_layers=1, num_heads=2, mlp_width=8, channels=3, frames=2, patch_size=8, merge=2,
                      position_side=4, out_width=8)  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sources."""
    directory = tmp_path_factory.mktemp("pairs")
    for name, count in (("one", 40), ("two", 60)):
        write_source(directory / name, count)
        index_pairs(directory / name)
    return directory


@pytest.fixture
def config(root: Path) -> DataConfig:
    return data_config(root, {"one": 1, "two": 3})


def alike(a: Pairs, b: Pairs) -> bool:
    same = all(
        np.array_equal(getattr(a, name), getattr(b, name)) for name in ("patches", "tokens", "lengths", "hashes")
    )
    return same and a.grids == b.grids


def test_a_number_gives_the_same_pair_however_it_is_read(config):
    whole = PairReader(config, RULE, seed=3).read(40, 8)
    other = PairReader(config, RULE, seed=3)
    parts = [other.read(first, 2) for first in (44, 40, 46, 42)]
    rows = np.concatenate([parts[place].hashes for place in (1, 3, 0, 2)])
    assert np.array_equal(rows, whole.hashes)
    assert alike(other.read(40, 8), whole)
    assert not np.array_equal(PairReader(config, RULE, seed=4).read(40, 8).hashes, whole.hashes)


def test_a_pair_is_its_image_and_its_caption(config, root):
    reader = PairReader(config, RULE, seed=3)
    pairs = reader.read(0, 6)
    by_hash = {}
    for name in ("one", "two"):
        index = PairIndex(root / name)
        for row in index.rows(range(len(index))):
            by_hash[tuple(np.array([row["caption"], row["image"]], np.uint64).view(np.int64))] = index, row
    patches = np.split(pairs.patches, np.cumsum([rows * columns for rows, columns in pairs.grids])[:-1])
    tokens = np.split(pairs.tokens, np.cumsum(pairs.lengths)[:-1])
    for number, key in enumerate(map(tuple, pairs.hashes)):
        index, row = by_hash[key]
        found, grid = RULE.cut(decode(index.image(row), where="", max_pixels=10**6))
        assert np.array_equal(patches[number], found)
        assert pairs.grids[number] == grid
        assert tokens[number][-1] == reader.tokenizer.eos_id
        assert len(tokens[number]) <= config.seq_len
        assert index.text(row).startswith(reader.tokenizer.decode(tokens[number].tolist())[:5])


def test_no_caption_is_in_both_splits_and_weights_are_shares(config):
    reader = PairReader(config, RULE, seed=1)
    for name in reader.names:
        heldout = reader.read_split("heldout", name, range(reader.count("heldout", name)))
        train = reader.read_split("train", name, range(reader.count("train", name)))
        assert not {*heldout.hashes[:, 0].tolist()} & {*train.hashes[:, 0].tolist()}
        assert len(heldout.hashes) + len(train.hashes) == len(reader.indexes[name])
        assert len(train.hashes) > len({*train.hashes[:, 0].tolist()})  # the duplicates are there, alike in their hash
    sources, _, positions = reader.index.lookup(np.arange(512))
    assert Counter(sources.tolist()) == {0: 128, 1: 384}
    first_epoch = positions[sources == 0][: reader.count("train", "one")]
    assert sorted(first_epoch.tolist()) == list(range(reader.count("train", "one")))


def test_a_source_drawn_too_often_is_refused(config):
    config.pairs["two"].max_epochs = 1.5
    with pytest.raises(DataError) as error:
        PairReader(config, RULE, seed=1, samples=400)
    assert (error.value.where, error.value.value) == ("data.pairs.two.max_epochs", 1.5)
    PairReader(config, RULE, seed=1, samples=40)


def test_what_cannot_be_read_fails_or_is_replaced(tmp_path):
    write_source(tmp_path / "one", 20)
    files = {f"x{number}.{kind}": data for number in range(4) for kind, data in
             (("jpg", b"not an image"), ("txt", f"bad {number}".encode()))}  # fmt: skip
    write_tar(tmp_path / "one" / "00009.tar", files)
    index_pairs(tmp_path / "one")
    config = data_config(tmp_path, {"one": 1}, holdout_fraction=0.2)
    reader = PairReader(config, RULE, seed=1)
    with pytest.raises(DataError) as error:
        reader.read(0, reader.count("train", "one"))
    assert "00009.tar" in error.value.where
    config.on_fault = "skip"
    pairs = PairReader(config, RULE, seed=1).read(0, reader.count("train", "one"))
    assert 1 <= len(pairs.faults) <= 4
    assert all("data.pairs.one" in line for line in pairs.faults)
    assert len(pairs.grids) == reader.count("train", "one")


def test_a_process_that_reads_ahead_gives_the_same(config):
    config.zero_shot = {}
    plain, _ = open_pairs(config, VISION, seed=1, samples=0, warn=print)
    config.workers = 1
    ahead, _ = open_pairs(config, VISION, seed=1, samples=0, warn=print)
    for first in (0, 8, 16):
        one, other = plain.stream.batch(first, 4), ahead.stream.batch(first, 4)
        assert one.inputs["ids"].equal(other.inputs["ids"])
        assert one.media.images.pixels.equal(other.media.images.pixels)
    assert plain.fingerprint == ahead.fingerprint


def test_captions_that_are_cut_are_counted(config):
    assert PairReader(config, RULE, seed=1).cut_captions() == {}
    config.seq_len = 24
    found = []
    open_pairs(config, VISION, seed=1, samples=0, warn=found.append)
    reader = PairReader(config, RULE, seed=1)
    for name, line in zip(reader.names, found, strict=True):
        index, first = reader.indexes[name], reader._first[name]
        texts = [index.text(row) for row in index.rows(range(first, len(index)))]
        count = sum(len(reader.tokenizer.encode(text)) + 1 > 24 for text in texts)
        assert 0 < count < len(texts)
        assert f"data.pairs.{name}: {count} of {len(texts)} " in line


def test_the_fingerprint_follows_what_a_number_gives(config):
    first = PairReader(config, RULE, seed=1).fingerprint
    assert PairReader(config, RULE, seed=2).fingerprint != first
    assert PairReader(config, PatchRule(8, 2, 2, 1024, 4096), seed=1).fingerprint != first
    config.workers = 3
    assert PairReader(config, RULE, seed=1).fingerprint == first


def test_zero_shot_sets_give_every_image_and_every_sentence_once(config, root):
    directory = root / "classes"
    directory.mkdir()
    files = {}
    for number in range(7):
        files |= {f"s{number}.png": image(number, "PNG"), f"s{number}.cls": str(number % 3).encode()}
    write_tar(directory / "0.tar", files)
    (directory / CLASSES).write_text("fox\nsnow\n狐狸\n", encoding="utf-8")
    (directory / TEMPLATES).write_text("a {c}\nthe {c}.\n{c}\n\n", encoding="utf-8")
    index_pairs(directory, texts=("cls",))
    config.zero_shot = {"animals": "classes"}
    data, _ = open_pairs(config, VISION, seed=1, samples=0, warn=print)
    batches = [late.read() for late in data.zero_shot.batches("animals", 3, 4)]
    classes = np.concatenate([batch.inputs["classes"].numpy() for batch in batches])
    assert len(batches) == 3  # nine sentences, seven images
    assert Counter(classes[:, 0].tolist()) == {0: 3, 1: 2, 2: 2, -1: 5}
    assert Counter(classes[:, 1].tolist()) == {0: 3, 1: 3, 2: 3, -1: 3}
    (directory / TEMPLATES).write_text("a thing\n")
    with pytest.raises(DataError) as error:
        open_pairs(config, VISION, seed=1, samples=0, warn=print)
    assert error.value.where == str(directory / TEMPLATES)
