"""The global batches of a mixture: the same for any number of ranks, micro-batches and stops."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.trainer.data.small_mixture import DOCUMENTS, PREFIXES, SAMPLES, SEQ_LEN, make_mixture, rewrite_manifest
from trainer.config.checks.data import check_mixture
from trainer.config.keys import DataConfig
from trainer.data.batch import IGNORE, Batch
from trainer.data.build import build_data, source_directories
from trainer.data.errors import DataError
from trainer.data.mixture.reader import MixtureReader
from trainer.data.protocols import Data
from trainer.data.shards.files import REMEDY, read_manifest
from trainer.data.text import prompts, unigram_nats

GLOBAL_BATCH, STEPS = 24, 15  # 360 samples, all of both phases


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    with pytest.MonkeyPatch.context() as patch:
        return make_mixture(tmp_path_factory.mktemp("mixture"), patch)


def opened(data: DataConfig, seed: int = 5) -> Data:
    return build_data(data, seed=seed, vocab_size=300)


def reader_of(data: DataConfig) -> MixtureReader:
    return MixtureReader(data, source_directories(data), seed=5)


def rank_batches(data: Data, first: int, steps: int, ranks: int, rank: int, micro: int) -> Iterator[Batch]:
    """The batches that `Trainer._next_batches` asks for."""
    for step in range(steps):
        begin = first + step * GLOBAL_BATCH
        for sample in range(begin, begin + GLOBAL_BATCH, micro * ranks):
            yield data.stream.batch(sample + rank * micro, micro)


def run(data: DataConfig, first: int, steps: int, ranks: int, micro: int) -> dict[int, list[int]]:
    """Sample -> its tokens and labels, of all ranks; a sample that comes twice is an error."""
    seen: dict[int, list[int]] = {}
    for rank in range(ranks):
        for batch in rank_batches(opened(data), first, steps, ranks, rank, micro):
            for row, sample in enumerate(batch.samples):
                assert sample not in seen
                seen[sample] = batch.inputs["ids"][row].tolist() + batch.labels[row].tolist()
    return seen


@pytest.fixture(scope="module")
def whole(data: DataConfig) -> dict[int, list[int]]:
    assert check_mixture(data) == []
    return run(data, 0, STEPS, 1, 24)


@pytest.mark.parametrize(
    ("ranks", "micro"), [(1, 1), (1, 8), (2, 12), (2, 3), (3, 8), (4, 2), (6, 4), (6, 1), (12, 2), (12, 1)]
)
def test_any_number_of_ranks_and_any_micro_batch_see_the_same_global_batches(data, whole, ranks, micro) -> None:
    assert run(data, 0, STEPS, ranks, micro) == whole


@pytest.mark.parametrize("workers", [1, 4])
def test_workers_change_nothing(data, whole, workers) -> None:
    assert run(replace(data, workers=workers), 0, STEPS, 1, 4) == whole


def test_megatrons_reader_reads_the_same(data, whole) -> None:
    pytest.importorskip("megatron.core.datasets.indexed_dataset")
    assert run(replace(data, reader="megatron"), 0, STEPS, 1, 24) == whole


def test_stops_lose_and_repeat_nothing_wherever_they_fall(data, whole) -> None:
    """Twice, with other worlds: at an epoch's edge, at a phase's edge, and in between."""
    index = reader_of(data).index
    _, epochs, _ = index.lookup(np.arange(STEPS * GLOBAL_BATCH))
    first_of_second_epoch = int(np.flatnonzero(epochs > 0)[0]) // GLOBAL_BATCH
    assert index.phase_at(240) == "anneal" != index.phase_at(239)
    assert 0 < first_of_second_epoch < 10
    for stops in ((first_of_second_epoch, 10), (first_of_second_epoch + 1, 7), (1, 14)):
        seen: dict[int, list[int]] = {}
        edges = (0, *sorted(stops), STEPS)
        for begin, end, (ranks, micro) in zip(edges, edges[1:], ((2, 4), (3, 2), (12, 1)), strict=False):
            part = run(data, begin * GLOBAL_BATCH, end - begin, ranks, micro)
            assert not set(part) & set(seen)
            seen |= part
        assert seen == whole


def test_every_window_is_drawn_once_in_an_epoch_and_sources_have_their_shares(data) -> None:
    reader = reader_of(data)
    total = sum(sum(draws.values()) for draws in SAMPLES.values())
    sources, epochs, positions = reader.index.lookup(np.arange(total))
    for number, name in enumerate(DOCUMENTS):
        mine = sources == number
        assert abs(int(mine.sum()) - sum(draws[name] for draws in SAMPLES.values())) <= len(SAMPLES)
        drawn = list(zip(epochs[mine].tolist(), positions[mine].tolist(), strict=True))
        assert len(set(drawn)) == len(drawn)
        windows = reader.train[name].num_windows(data.seq_len)
        for epoch in range(int(epochs[mine].max())):
            assert sorted(p for e, p in drawn if e == epoch) == list(range(windows))


def test_prefixes_are_read_and_never_asked_for(data) -> None:
    built = opened(data)
    ids = {group: [built.text.tokenizer.encode(text) for text in texts] for group, texts in PREFIXES.items()}
    prefix_tokens = 0
    reader = reader_of(data)
    for first in range(0, 120, 8):
        batch, windows = built.stream.batch(first, 8), reader.read(first, 8)
        assert (batch.labels[torch.from_numpy(windows.context_BL[:, 1:])] == IGNORE).all()
        prefix_tokens += int(windows.context_BL.sum())
        sources, _, _ = reader.index.lookup(np.arange(first, first + 8))
        for row, start in np.argwhere(windows.starts_BL):
            group = data.sources[reader.names[sources[row]]].prefix
            found = windows.tokens_BL[row, start : start + 20].tolist()
            assert any(found[: len(some)] == some[: len(found)] for some in ids[group])
    assert prefix_tokens > 100


def test_held_out_windows_prompts_and_unigrams(data) -> None:
    built = opened(data)
    nats = unigram_nats(built.text)
    for source in built.heldout.sources:
        batches = [late.read() for late in built.heldout.batches(source, 3, 2)]
        again = [late.read() for late in built.heldout.batches(source, 3, 2)]
        assert [b.inputs["ids"].tolist() for b in batches] == [b.inputs["ids"].tolist() for b in again]
        assert sum(len(b.samples) for b in batches) <= 6
        assert 3.0 < nats[source] < np.log(built.text.vocab_size)
    assert prompts(built.text)["records"].startswith(tuple(PREFIXES["science"]))
    reader, mixture_V = reader_of(data), np.zeros(built.text.vocab_size)
    total = sum(source.tokens for source in data.sources.values())
    for name, source in data.sources.items():
        windows = reader.read_split("train", name, np.arange(reader.train[name].num_windows(SEQ_LEN)))
        counts_V = np.bincount(windows.tokens_BL[~windows.context_BL], minlength=built.text.vocab_size) + 1
        mixture_V += source.tokens / total * counts_V / counts_V.sum()
    assert mixture_V.sum() == pytest.approx(1)
    labels = torch.cat([late.read().labels.flatten() for late in built.heldout.batches("web", 10**6, 5)])
    assert nats["web"] == pytest.approx(-np.log(mixture_V[labels[labels != IGNORE].numpy()]).mean(), rel=1e-12)


def test_the_description_names_the_sources_with_their_shares(data) -> None:
    built = opened(data)
    text = built.describe()
    tokens = {name: source.tokens for name, source in data.sources.items()}
    for name, count in tokens.items():
        assert f"{name} {count / sum(tokens.values()):.1%}" in text
    assert built.fingerprint[:12] in text


# -- faults ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataConfig:
    """A mixture with a token in one source's files that its tokenizer does not have."""
    data = make_mixture(tmp_path, monkeypatch, verify="off")
    path = tmp_path / "web" / "train-00000.bin"
    tokens = np.fromfile(path, "<u2")
    tokens[1000] = 60_000
    tokens.tofile(path)
    return data


def test_a_window_that_cannot_be_read_ends_the_run_or_gives_way_to_another(damaged, data, whole) -> None:
    with pytest.raises(DataError) as error:
        run(damaged, 0, STEPS, 1, 24)
    assert (Path(error.value.where).name, error.value.value) == ("train-00000.bin", 60_000)
    assert re.search(r"sample \d+, window \d+ .*'web'.*data\.on_fault=skip", error.value.lines[0])
    skipping = replace(damaged, on_fault="skip")
    faults = {}
    for ranks, micro, workers in ((1, 24, 0), (3, 2, 0), (1, 4, 2)):
        lines = []
        for rank in range(ranks):
            for batch in rank_batches(opened(replace(skipping, workers=workers)), 0, STEPS, ranks, rank, micro):
                lines += batch.faults
        faults[ranks, micro, workers] = sorted(lines)
    assert len({tuple(lines) for lines in faults.values()}) == 1
    (first, *_) = faults[1, 24, 0]
    assert len(re.findall(r"\bwindow \d+", first)) == 2  # that one, and the one in its place
    replaced, same = run(skipping, 0, STEPS, 4, 3), 0
    for sample, tokens in whole.items():
        same += replaced[sample] == tokens
    assert len(whole) - same == len(faults[1, 24, 0])
    assert replaced == run(skipping, 0, STEPS, 2, 6)


def test_damage_is_found_at_the_start_unless_verify_is_off(damaged) -> None:
    for how in ("sampled", "full"):
        with pytest.raises(DataError) as error:
            opened(replace(damaged, verify=how))
        assert (error.value.where, error.value.allowed) == (str(Path(damaged.root, "web", "train-00000.bin")), REMEDY)
        assert "data.sources.web" in error.value.lines[0]
    for name in ("tokenizer.json", "manifest.json"):
        path = Path(damaged.root, "records", name)
        path.write_text("{")
        with pytest.raises(DataError) as error:
            opened(damaged)
        assert error.value.where == str(path)
        assert error.value.allowed
        assert all(datum in error.value.lines[0] for datum in ("data.sources.records", REMEDY))


def test_sources_that_do_not_fit_the_recipe_are_all_named(tmp_path, monkeypatch) -> None:
    data = make_mixture(tmp_path, monkeypatch)
    before = opened(data).fingerprint
    assert before == opened(data).fingerprint != opened(data, seed=6).fingerprint
    data.sources["code"].unique_tokens = 900_000
    data.prefixes = {**PREFIXES, "science": ["Another text:\n"]}
    rewrite_manifest(tmp_path / "web", tokenizer={**read_manifest(tmp_path / "web")["tokenizer"], "sha256": "0" * 64})
    with pytest.raises(DataError) as error:
        opened(data)
    found = {fault.where: fault.value for fault in error.value.faults}
    assert found == {
        "data.sources.web": "0" * 64,
        "data.sources.records.prefix": "science",
        "data.sources.code.unique_tokens": 900_000,
    }
    path = tmp_path / "web" / "manifest.json"
    path.unlink()
    with pytest.raises(DataError) as error:
        opened(data)
    assert error.value.where == str(path)
    assert "data.sources.web" in error.value.lines[0]


def test_a_source_with_nothing_held_out_is_reported_at_the_start(tmp_path, monkeypatch) -> None:
    data = make_mixture(tmp_path, monkeypatch)
    rewrite_manifest(tmp_path / "web", heldout=[])
    with pytest.raises(DataError) as error:
        opened(data)
    assert (error.value.where, error.value.value) == ("data.sources.web", 0)
    assert "data.sources.web" in error.value.lines[0]


def test_a_model_with_fewer_tokens_is_refused(data) -> None:
    with pytest.raises(DataError) as error:
        build_data(data, seed=0, vocab_size=256)
    assert (error.value.where, error.value.value) == ("model.vocab_size", 256)


def skipped(data: DataConfig, ranks: int, micro: int, workers: int = 0) -> tuple[dict[int, list[int]], list[str]]:
    """Sample -> tokens, and the faults, of all ranks."""
    tokens, lines = {}, []
    for rank in range(ranks):
        built = opened(replace(data, workers=workers))
        for batch in rank_batches(built, 0, STEPS, ranks, rank, micro):
            lines += batch.faults
            tokens |= dict(zip(batch.samples, batch.inputs["ids"].tolist(), strict=True))
    return tokens, sorted(lines)


@pytest.mark.parametrize(
    ("fault", "reader"),
    [("missing", "octavo"), ("truncated", "octavo"), ("empty", "octavo"), ("truncated", "megatron")],
)
def test_a_shard_that_cannot_be_read_gives_way_to_the_next(tmp_path, monkeypatch, fault: str, reader: str) -> None:
    if reader == "megatron":
        pytest.importorskip("megatron.core.datasets.indexed_dataset")
    data = make_mixture(tmp_path, monkeypatch, shard_tokens=2000, verify="off", on_fault="skip", reader=reader)
    before = reader_of(data).train["web"]
    windows = before.num_windows(SEQ_LEN)
    assert len(before.manifest["shards"]) >= 2
    in_first = (before.manifest["shards"][0]["tokens"] - 1) // SEQ_LEN
    whole_tokens, none = skipped(data, 1, 24)
    assert none == []
    path = tmp_path / "web" / "train-00000.bin"
    kept = {"missing": 0, "truncated": 20, "empty": 0}[fault]  # windows
    if fault == "missing":
        path.unlink()
    else:
        os.truncate(path, 2 * (kept * SEQ_LEN + 1) + 1 if kept else 0)  # in the middle of a token
    tokens, lines = skipped(data, 1, 24)
    assert lines
    for line in lines:
        lost, instead = map(int, re.findall(r"window (\d+)", line))
        assert kept <= lost < in_first == instead < windows
    assert sum(tokens[sample] != whole_tokens[sample] for sample in whole_tokens) == len(lines)
    assert skipped(data, 3, 2) == (tokens, lines)
    if fault == "missing":
        assert skipped(data, 1, 4, workers=2) == (tokens, lines)


def test_the_only_shard_is_read_up_to_where_it_is_cut(tmp_path, monkeypatch) -> None:
    data = make_mixture(tmp_path, monkeypatch, verify="off", on_fault="skip")
    shards = reader_of(data).train["records"]
    assert len(shards.manifest["shards"]) == 1
    path = tmp_path / "records" / "train-00000.bin"
    os.truncate(path, 2 * (10 * SEQ_LEN + 1))  # 10 windows
    _, lines = skipped(data, 1, 24)
    replaced = [tuple(map(int, re.findall(r"window (\d+)", line))) for line in lines]
    assert {lost for lost, _ in replaced} == set(range(10, shards.num_windows(SEQ_LEN)))
    assert {instead for _, instead in replaced} == {0}
    with pytest.raises(DataError) as error:
        run(replace(data, on_fault="fail"), 0, STEPS, 1, 24)
    assert (error.value.where, error.value.value) == (str(path), path.stat().st_size)
    assert "data.on_fault=skip" in error.value.lines[0]
    os.truncate(path, 0)
    with pytest.raises(DataError) as error:
        skipped(data, 1, 24)
    (line,) = error.value.lines
    assert error.value.where == str(path)
    assert all(datum in line for datum in ("'records'", "64 windows", str(path)))


@pytest.mark.parametrize("how", ["sampled", "full"])
def test_what_skipping_would_pass_over_is_a_warning_at_the_start(damaged, how: str) -> None:
    said: list[str] = []
    with pytest.raises(DataError) as error:
        build_data(replace(damaged, verify=how), seed=5, vocab_size=300)
    assert "data.on_fault=skip" in error.value.lines[0]
    skipping = replace(damaged, verify=how, on_fault="skip")
    built = build_data(skipping, seed=5, vocab_size=300, warn=said.append)
    assert len(said) == 1
    assert "data.sources.web" in said[0]
    assert "train-00000.bin" in said[0]
    assert built.stream.batch(0, 8).samples == list(range(8))
    Path(damaged.root, "web", "tokenizer.json").write_text("{}")  # nothing could stand in for it
    with pytest.raises(DataError) as error:
        build_data(skipping, seed=5, vocab_size=300)
    assert error.value.where == str(Path(damaged.root, "web", "tokenizer.json"))
