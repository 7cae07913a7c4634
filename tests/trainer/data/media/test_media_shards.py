"""Sources of documents with images as packs, batches of a mixture, and what is done about damaged ones."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.trainer.corpora.tokenize.tokenized import PREFIXES, texts
from tests.trainer.data.media.illustrated import (
    SAMPLES,
    SEQ_LEN,
    SIDE,
    ids,
    image,
    make,
    make_mixture,
    rows,
    rules,
    wave,
    with_markers,
    write_rows,
)
from trainer.config.compose import compose
from trainer.config.keys import DataConfig
from trainer.corpora.packages import Document
from trainer.corpora.tokenize import write
from trainer.corpora.tokenize.tokenize import tokenize_source
from trainer.data.batch import IGNORE, Batch, make_batch
from trainer.data.build import build_data, source_directories
from trainer.data.errors import DataError
from trainer.data.media.images import TileRule
from trainer.data.media.readers.recording import Recording
from trainer.data.media.rules import WITH_SIGNALS, ImageKind, MediaRules
from trainer.data.media.shards import MediaShards
from trainer.data.media.signals import SignalRule
from trainer.data.media.store import PlaceTable
from trainer.data.mixture.checks import other_towers, without_position
from trainer.data.mixture.reader import MixtureReader
from trainer.data.protocols import Data
from trainer.data.shards.files import write_manifest
from trainer.data.text import unigram_nats
from trainer.data.windows import Windows
from trainer.model.towers.signal_patches import token_count
from trainer.model.towers.vision import Images

PAD, OPEN, CLOSE = ids("<IMG_CONTEXT>", "<img>", "</img>")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    with pytest.MonkeyPatch.context() as patch:
        return make_mixture(tmp_path_factory.mktemp("media"), patch)


def opened(data: DataConfig) -> Data:
    return build_data(data, seed=5, vocab_size=310)


def shards_of(data: DataConfig) -> MediaShards:
    return MediaShards(source_directories(data)["figures"], cache=Path(data.cache_dir))


def test_every_document_of_the_split_is_in_one_pack_with_its_images(data):
    shards = shards_of(data)
    windows = shards.read(np.arange(shards.num_windows(SEQ_LEN)), SEQ_LEN)
    manifest = shards.manifest
    tokens = sum(shard["tokens"] for shard in manifest["shards"])
    padding = shards.packs(SEQ_LEN).total("padding")
    assert windows.tokens_BL[:, :-1].size == tokens + padding
    assert windows.starts_BL[:, :-1].sum() >= manifest["documents"]
    assert len(windows.media) == sum(shard["images"] for shard in manifest["shards"])
    for medium in windows.media:
        inside = slice(medium.first, medium.first + medium.tokens)
        assert (windows.tokens_BL[medium.row, inside] == PAD).all()
        assert windows.tokens_BL[medium.row, medium.first - 1] == OPEN
        patches, grid = medium.value
        assert (patches.shape, grid[0] * grid[1] // 4) == ((grid[0] * grid[1], 3, 256), medium.tokens)
    marks = np.isin(windows.tokens_BL, [PAD, OPEN, CLOSE])
    assert windows.context_BL[marks].all()
    assert sum(medium.tokens for medium in windows.media) == (windows.tokens_BL == PAD).sum()


def test_text_alone_is_trained_on_and_images_are_in_the_order_of_their_placeholders(data):
    stream = opened(data).stream
    batch = stream.batch(0, 16)
    labels, following = batch.labels, batch.inputs["ids"][:, 1:]
    trained = labels[:, :-1] != IGNORE
    assert not torch.isin(following[trained], torch.tensor([PAD, OPEN, CLOSE])).any()
    assert (labels[:, :-1][trained] == following[trained]).all()
    assert 0 < batch.num_tokens == int((labels != IGNORE).sum())
    after_image = (batch.inputs["ids"] == CLOSE) & (labels != IGNORE)
    assert after_image.any()  # the text behind an image is predicted from it
    images = batch.media.images
    assert isinstance(images, Images)
    ends = (batch.inputs["ids"].flatten()[:-1] == PAD) & (batch.inputs["ids"].flatten()[1:] != PAD)
    per_image = [rows * columns // 4 for rows, columns in images.grids]
    runs = torch.diff(torch.cat([torch.tensor([0]), torch.cumsum(batch.inputs["ids"].flatten() == PAD, 0)[:-1][ends]]))
    assert runs.tolist() == per_image
    assert len(images.pixels) == 4 * sum(per_image)


def test_every_pixel_is_that_of_the_file_in_its_place(data):
    shards = shards_of(data)
    windows = shards.read(np.arange(4), SEQ_LEN)
    directory = Path(data.root) / "images"
    known = {}
    for path in directory.iterdir():
        patches, _ = rules().image.prepare(path.read_bytes(), "image")
        known[patches.tobytes()] = path.name
    names = [known[medium.value[0].tobytes()] for medium in windows.media]
    for name, medium in zip(names, windows.media, strict=True):
        number, place = (int(part) for part in name.removesuffix(".png").split("-"))
        row, at = windows.tokens_BL[medium.row], medium.first
        start = int(np.flatnonzero(windows.starts_BL[medium.row, : at + 1])[-1])
        end = at + int(windows.starts_BL[medium.row, at:].argmax())
        document = with_markers().decode(row[start:end].tolist())
        assert f"note {number}:" in document or "note" not in document  # a piece may lack the document's first words
        assert f"Figure {place}." in with_markers().decode(row[at:end].tolist())


def run(data: DataConfig, ranks: int, micro: int) -> dict[int, tuple[list[int], list[int]]]:
    """Sample -> its ids and labels, and the pixels of its images."""
    seen: dict[int, tuple[list[int], list[int]]] = {}
    for rank in range(ranks):
        stream = opened(data).stream
        for first in range(rank * micro, SAMPLES, micro * ranks):
            batch = stream.batch(first, micro)
            for row, sample in enumerate(batch.samples):
                seen[sample] = (batch.inputs["ids"][row].tolist() + batch.labels[row].tolist(), images_of(batch, row))
    return seen


def images_of(batch: Batch, row: int) -> list[int]:
    """The sums of the pixels of a window's images."""
    if batch.media is None:
        return []
    counts = torch.cumsum((batch.inputs["ids"] == PAD).sum(1), 0).tolist()
    first, last = 4 * (counts[row - 1] if row else 0), 4 * counts[row]
    return batch.media.images.pixels[first:last].sum(1).tolist()


@pytest.fixture(scope="module")
def whole(data: DataConfig) -> dict[int, tuple[list[int], list[int]]]:
    return run(data, 1, 16)


@pytest.mark.parametrize(("ranks", "micro", "workers"), [(1, 1, 0), (2, 8, 0), (4, 3, 0), (1, 4, 2)])
def test_ranks_micro_batches_and_workers_change_nothing(data, whole, ranks, micro, workers):
    found = run(replace(data, workers=workers), ranks, micro)
    assert found == whole
    assert any(images for _, images in whole.values())


@pytest.mark.slow
def test_megatrons_reader_reads_the_same(data, whole):
    pytest.importorskip("megatron.core.datasets.indexed_dataset")
    assert run(replace(data, reader="megatron"), 1, 16) == whole


def test_measures_of_the_text_read_no_image(data, monkeypatch):
    monkeypatch.setattr(ImageKind, "prepare", lambda *_: pytest.fail("an image was prepared"))
    found = opened(data)
    nats = unigram_nats(found.text)
    assert set(nats) == {"figures", "notes"}
    assert all(value > 0 for value in nats.values())


def test_held_out_packs_have_their_images(data):
    batches = [late.read() for late in opened(data).heldout.batches("figures", 2, 1)]
    assert all(batch.media is not None for batch in batches)


def test_tiles_are_joined_as_one_tensor(tmp_path, monkeypatch):
    monkeypatch.setattr(write, "HAS_WHEEL", False)
    kind = ImageKind(TileRule(tile_size=56, max_tiles=4), PAD)
    out = make(tmp_path, [write_rows(tmp_path, rows(8))], media=MediaRules(kind), group=None)
    windows = MediaShards(out, cache=tmp_path).read(np.arange(2), 100)
    batch = make_batch(windows, [0, 1])
    assert batch.media.images.shape[1:] == (3, 56, 56)
    assert 4 * len(batch.media.images) == (batch.inputs["ids"] == PAD).sum()


def test_signals_are_in_the_order_of_their_placeholders(tmp_path, monkeypatch):
    monkeypatch.setattr(write, "HAS_WHEEL", False)
    signal = {"type": "signal", "rate": 100.0}
    rows = [[f"wave {n}", *({**signal, "values": wave(n + k).tolist()} for k in (0, 9))] for n in range(20)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"content": row}) + "\n" for row in rows))
    shards = MediaShards(make(tmp_path, [tmp_path / "rows.jsonl"], group=None, heldout_fraction=0), cache=tmp_path)
    windows = shards.read(np.arange(shards.num_windows(64)), 64)
    batch = make_batch(windows, range(len(windows.tokens_BL)))
    signals = batch.media.signals
    assert batch.media.images is None
    assert len(signals) == 40
    assert all((signal.rate, signal.values.dtype) == (100.0, torch.float32) for signal in signals)
    tokens = sum(token_count(len(s.values), s.rate, s.stride) for s in signals)
    assert tokens == int((batch.inputs["ids"] == ids("<TS_CONTEXT>")[0]).sum())
    texts = with_markers().decode(batch.inputs["ids"].flatten().tolist())
    order = [int(number) for number in re.findall(r"wave (\d+)", texts)]
    expected = [
        SignalRule(max_tokens=4).prepare(Recording(wave(n + k), 100.0, ("0", "1"), ("", "")))
        for n in order
        for k in (0, 9)
    ]
    assert all((signal.values.numpy() == one.values).all() for signal, one in zip(signals, expected, strict=True))


def test_the_towers_of_a_run_must_be_those_of_its_corpora(data):
    model = compose(["recipe=toy", "model=toy_multimodal", f"model.image_token={PAD}"]).model
    directories = source_directories(data)
    assert [*other_towers(data, directories, model)] == []
    for change, where, value, allowed in (
        ({"image_token": 3}, "model.image_token", 3, (PAD,)),
        ({"vision": replace(model.vision, patch_size=14)}, "model.vision.patch_size", 14, (16,)),
        ({"vision": None}, "model.vision.kind", None, ("native",)),
    ):
        with pytest.raises(DataError) as error:
            build_data(data, seed=0, vocab_size=310, model=replace(model, **change))
        (fault,) = error.value.faults
        assert (fault.where, fault.value, fault.allowed) == (where, value, allowed)
    for name, modality, allowed in (("figures", "text", ("image",)), ("notes", "time_series", ("text",))):
        sources = {**data.sources, name: replace(data.sources[name], modality=modality)}
        (fault,) = other_towers(replace(data, sources=sources), directories, model)
        assert (fault.where, fault.value, fault.allowed) == (f"data.sources.{name}.modality", modality, allowed)


def test_signals_beyond_the_tables_of_the_tower(data, tmp_path, monkeypatch):
    monkeypatch.setattr(write, "HAS_WHEEL", False)
    rows = [[f"wave {n}", {"type": "signal", "rate": 100.0, "values": wave(n, 3000).tolist()}] for n in range(3)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"content": row}) + "\n" for row in rows))
    source = make(tmp_path, [tmp_path / "rows.jsonl"], heldout_fraction=0, group=None)
    sources = {"waves": replace(data.sources["figures"], modality="time_series")}
    model = compose(["recipe=toy", "model=toy_multimodal"]).model
    model = replace(model, signal_token=ids("<TS_CONTEXT>")[0])
    needed = 2 * SignalRule(max_tokens=4).stride(3000, 100.0)
    for patch_positions, faults in (
        (needed, []),
        (needed - 2, [("model.signals.patch_positions", f"{needed} or more")]),
    ):
        changed = replace(model, signals=replace(model.signals, patch_positions=patch_positions))
        found = [*other_towers(replace(data, sources=sources), {"waves": source}, changed)]
        assert [(fault.where, fault.allowed) for fault in found] == faults
    for positions, lines in ((4, 0), (3, 1)):
        changed = replace(model, signals=replace(model.signals, positions=positions))
        assert len([*without_position({"waves": source}, changed)]) == lines
    towerless = replace(model, signals=None, signal_token=None)
    (fault,) = other_towers(replace(data, sources=sources), {"waves": source}, towerless)
    assert (fault.where, fault.value, fault.allowed) == ("model.signals", None, (WITH_SIGNALS,))
    for recipe in WITH_SIGNALS.split(" or "):
        assert compose(["recipe=toy", recipe]).model.signals is not None


def test_a_split_without_a_window_names_its_cause(data, tmp_path, monkeypatch):
    monkeypatch.setattr(write, "HAS_WHEEL", False)
    directories = source_directories(data)
    sources = {**data.sources, "figures": replace(data.sources["figures"], unique_tokens=1)}
    some = [
        [{"type": "image", "image": f"images/{n}.png"}, {"type": "text", "text": text}]
        for n, text in enumerate(texts(9))
    ]
    (tmp_path / "images").mkdir()
    for n in range(9):
        (tmp_path / f"images/{n}.png").write_bytes(image(n, 8, 8))
    source = make(tmp_path, [write_rows(tmp_path, some)], name="figures", heldout_fraction=0)
    for seq_len, expected in (
        (64, [("data.seq_len", 64, "66 or more"), ("data.sources.figures", 0, "a larger --heldout")]),
        (66, [("data.sources.figures", 0, "a larger --heldout")]),
    ):
        changed = replace(data, seq_len=seq_len, sources=sources)
        with pytest.raises(DataError) as error:
            MixtureReader(changed, {**directories, "figures": source}, seed=0)
        found = [(fault.where, fault.value, fault.allowed) for fault in error.value.faults]
        assert found == expected


def test_placeholders_without_an_image_are_reported_with_their_source(data, tmp_path, monkeypatch):
    monkeypatch.setattr(write, "HAS_WHEEL", False)
    some = [Document(f"file {n}", text + "<IMG_CONTEXT>" * (n == 50)) for n, text in enumerate(texts(120))]
    (tmp_path / "tokenizer.json").write_bytes((Path(data.root) / "tokenizer.json").read_bytes())
    tokenize_source(
        some, tmp_path, tmp_path / "notes", name="notes", domain="general", group="general", prefixes=PREFIXES,
        heldout_fraction=0.2, workers=0, special_text="encode",
    )  # fmt: skip
    notes = replace(data.sources["notes"], path=str(tmp_path / "notes"))
    figures = replace(data.sources["figures"], path=f"{data.root}/figures")
    changed = replace(data, sources={"notes": notes, "figures": figures}, on_fault="skip")
    lines, _ = damaged(changed)
    assert 0 < len(lines) < 4
    with pytest.raises(DataError) as error:
        damaged(replace(changed, on_fault="fail"))
    assert (error.value.where, error.value.value) == (str(tmp_path / "notes"), 1)


def test_an_image_longer_than_a_window_is_reported_or_its_document_left_out(data, tmp_path):
    short = replace(data, seq_len=6, cache_dir=str(tmp_path), sources={"figures": data.sources["figures"]})
    with pytest.raises(DataError) as error:
        MixtureReader(short, source_directories(short), seed=0)
    fault = error.value.faults[0]
    assert (fault.where, fault.value, fault.allowed) == ("data.seq_len", 6, "8 or more")
    reader = MixtureReader(replace(short, on_fault="skip"), source_directories(short), seed=0)
    assert reader.train["figures"].packs(6).dropped > 0
    assert reader.read(0, 8).tokens_BL.shape == (8, 7)
    said: list[str] = []
    build_data(replace(short, on_fault="skip"), seed=5, vocab_size=310, warn=said.append)
    assert len(said) == 2  # of both splits


@pytest.fixture
def copy(data: DataConfig, tmp_path: Path) -> tuple[DataConfig, Path]:
    """The source of images alone, in a directory that may be damaged."""
    source = Path(data.root) / "figures"
    for path in source.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    only = replace(data.sources["figures"], path=str(tmp_path), tokens=SEQ_LEN * SAMPLES)
    return replace(data, sources={"figures": only}, verify="off"), tmp_path


def damaged(data: DataConfig) -> tuple[list[str], int]:
    """The lines of replaced packs over an epoch, and how many packs have images."""
    reader = MixtureReader(data, source_directories(data), seed=5)
    windows = [reader.read(sample, 1) for sample in range(SAMPLES)]
    return [line for one in windows for line in one.faults], sum(bool(one.media) for one in windows)


@pytest.mark.parametrize("damage", ["flipped", "cut short", "another image", "missing"])
def test_damaged_images_are_reported_with_their_document_or_another_pack_is_read(copy, damage):
    data, directory = copy
    path = directory / "train-00000.media"
    whole = path.read_bytes()
    if damage == "flipped":
        path.write_bytes(whole[:300] + bytes([whole[300] ^ 1]) + whole[301:])
    elif damage == "cut short":
        path.write_bytes(whole[: len(whole) // 2])
    elif damage == "missing":
        path.unlink()
    else:  # the placeholders of another rule
        manifest = json.loads((directory / "manifest.json").read_text())
        manifest["media"]["image"]["options"]["min_pixels"] = 64 * SIDE**2
        del manifest["checksum"], manifest["format"]
        write_manifest(directory, manifest)
    if damage != "another image":
        assert [fault.where for fault in shards_of_directory(directory, data).faults("full")] == [str(path)]
    with pytest.raises(DataError) as error:
        damaged(replace(data, on_fault="fail"))
    if damage == "another image":
        assert re.fullmatch(r"train-0000\d\.media", Path(error.value.where).name)
    else:
        assert error.value.where == str(path)
    assert len(error.value.faults) == 1
    if damage != "another image":
        lines, with_images = damaged(replace(data, on_fault="skip"))
        assert with_images > 10
        assert lines
        assert all("source 'figures'" in line for line in lines)
        assert all(re.search(r"document \d+ of ", line) for line in lines)


def epoch(data: DataConfig) -> list[Windows]:
    reader = MixtureReader(data, source_directories(data), seed=5)
    return [reader.read(sample, 1) for sample in range(SAMPLES)]


def spoil(directory: Path, number: int) -> None:
    """Change a byte of the image with this number in the order of the shard's tokens."""
    manifest = json.loads((directory / "manifest.json").read_text())
    table = PlaceTable(directory / "train-00000.places", manifest["shards"][0]["records"])
    offset = int(table.between(0, 1 << 30)[number]["offset"])
    path = directory / "train-00000.media"
    whole = bytearray(path.read_bytes())
    whole[offset + 40] ^= 1
    path.write_bytes(whole)


def test_a_document_with_a_bad_image_is_left_out_and_nothing_else_of_its_pack(copy):
    data, directory = copy
    sound = epoch(data)
    spoil(directory, 7)
    found = epoch(replace(data, on_fault="skip"))
    changed = [place for place, (a, b) in enumerate(zip(sound, found, strict=True)) if b.faults]
    assert changed
    shorter = 0
    for place, (before, after) in enumerate(zip(sound, found, strict=True)):
        if place not in changed:
            np.testing.assert_array_equal(after.tokens_BL, before.tokens_BL)
            np.testing.assert_array_equal(after.supervised_BS, before.supervised_BS)
            continue
        (line,) = after.faults
        assert re.search(r"^the train split of source 'figures', document \d+ of .*train-00000", line)
        starts = [*np.flatnonzero(before.starts_BL[0]), before.starts_BL.shape[1]]
        differing = np.flatnonzero(before.tokens_BL[0] != after.tokens_BL[0])
        first, end = next((a, b) for a, b in pairwise(starts) if a <= differing[0] < b)  # the document
        assert differing[-1] < end
        assert not after.supervised_BS[0, max(first - 1, 0) : end - 1].any()
        elsewhere = np.ones(len(after.supervised_BS[0]), bool)
        elsewhere[max(first - 1, 0) : end - 1] = False
        np.testing.assert_array_equal(after.supervised_BS[0, elsewhere], before.supervised_BS[0, elsewhere])
        assert after.supervised_BS.any()
        np.testing.assert_array_equal(after.starts_BL, before.starts_BL)
        kept = [one for one in before.media if not first <= one.first < end]
        assert [(one.first, one.tokens) for one in after.media] == [(one.first, one.tokens) for one in kept]
        for one, other in zip(after.media, kept, strict=True):
            np.testing.assert_array_equal(one.value[0], other.value[0])
        batch = make_batch(after, [place])
        assert int(np.isin(after.tokens_BL, PAD).sum()) == sum(one.tokens for one in after.media)
        shorter += make_batch(before, [place]).num_tokens - batch.num_tokens
    assert shorter > 0


def test_where_nothing_of_a_pack_remains_another_is_read(copy):
    data, directory = copy
    for path in directory.glob("train-*.media"):
        path.unlink()
    found = epoch(replace(data, on_fault="skip"))
    for one in found:
        assert one.supervised_BS.any()
        assert not one.media
        assert not np.isin(one.tokens_BL, PAD).any()
    assert any("is replaced by window" in line for one in found for line in one.faults)


def shards_of_directory(directory: Path, data: DataConfig) -> MediaShards:
    return MediaShards(directory, cache=Path(data.cache_dir))
