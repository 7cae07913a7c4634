"""Sources that are one corpus twice, drawn more often than asked, or made with another tokenizer than their weights."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from tests.trainer.data.small_mixture import SEQ_LEN, make_mixture, rewrite_manifest
from trainer.config.checks.data import check_mixture
from trainer.config.keys import DataConfig
from trainer.data.build import build_data, source_directories
from trainer.data.errors import DataError
from trainer.data.mixture.checks import other_vocabulary
from trainer.data.mixture.reader import MixtureReader
from trainer.data.shards.files import read_manifest


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    with pytest.MonkeyPatch.context() as patch:
        return make_mixture(tmp_path_factory.mktemp("mixture"), patch)


def with_path(data: DataConfig, name: str, path: str) -> DataConfig:
    return replace(data, sources={**data.sources, name: replace(data.sources[name], path=path)})


def faults_of(data: DataConfig, samples: int = 0) -> dict[str, object]:
    with pytest.raises(DataError) as error:
        MixtureReader(data, source_directories(data), seed=5, samples=samples)
    return {fault.where: fault.value for fault in error.value.faults}


# ---- one corpus as two sources


@pytest.mark.parametrize("spelling", ["web", "./web", "code/../web", "web/", "x/../web/.", ".//web"])
def test_another_spelling_of_a_path_is_refused_before_anything_starts(data, spelling) -> None:
    found = [fault for fault in check_mixture(with_path(data, "code", spelling)) if fault.where.endswith(".path")]
    assert [(fault.where, fault.value) for fault in found] == [("data.sources.code.path", spelling)]


def test_an_absolute_path_below_the_root_is_refused(data) -> None:
    path = str(Path(data.root, "web"))
    assert [fault.value for fault in check_mixture(with_path(data, "code", path))] == [path]


@pytest.mark.parametrize("how", ["link", "link to the parent", "copy", "another name", "other split"])
def test_the_same_documents_elsewhere_are_refused(data, tmp_path, how) -> None:
    web = Path(data.root, "web")
    path = tmp_path / "same"
    if how == "link":
        os.symlink(web, path)
    elif how == "link to the parent":
        os.symlink(data.root, path)
        path = path / "web"
    else:
        shutil.copytree(web, path)
        if how == "another name":
            rewrite_manifest(path, name="other")
        if how == "other split":  # trains on what the first holds out
            manifest = read_manifest(path)
            rewrite_manifest(path, shards=manifest["heldout"], heldout=manifest["shards"])
    changed = with_path(data, "code", str(path))
    assert not [fault for fault in check_mixture(changed) if fault.where.endswith(".path")]
    found = faults_of(changed)
    assert found["data.sources.code.path"] == str(path)


# ---- epochs


def small_shards(root: Path, patch: pytest.MonkeyPatch, **source: float) -> DataConfig:
    """Shards of about two documents, whose last tokens fill no window."""
    data = make_mixture(root, patch, shard_tokens=60)
    reader = MixtureReader(data, source_directories(data), seed=5)
    fewer = {name: reader.windows[name] * SEQ_LEN for name in reader.names}
    assert all(fewer[name] < 0.9 * reader.train[name].num_tokens for name in fewer)
    tokens = reader.train["records"].num_tokens
    epochs = data.sources["records"].tokens / tokens
    changed = replace(data.sources["records"], unique_tokens=tokens, max_epochs=epochs * source["factor"])
    return replace(data, sources={**data.sources, "records": changed})


def test_epochs_count_windows_and_not_tokens(tmp_path, monkeypatch) -> None:
    data = small_shards(tmp_path, monkeypatch, factor=1.001)
    assert not [fault for fault in check_mixture(data) if fault.where.startswith("data.sources.records")]
    most = data.sources["records"].max_epochs
    with pytest.raises(DataError) as error:
        build_data(data, seed=5, vocab_size=300)
    (fault,) = error.value.faults
    assert (fault.where, fault.value) == ("data.sources.records.max_epochs", most)
    enough = float(fault.allowed.split()[0])  # the remedy, as it is typed
    changed = replace(data, sources={**data.sources, "records": replace(data.sources["records"], max_epochs=enough)})
    reader = MixtureReader(changed, source_directories(changed), seed=5)
    assert most < reader.epochs(reader.index.samples)["records"] <= enough


def test_a_run_longer_than_the_phases_counts_its_own_samples(tmp_path, monkeypatch) -> None:
    data = small_shards(tmp_path, monkeypatch, factor=2.0)
    reader = MixtureReader(data, source_directories(data), seed=5)
    wanted = 3 * reader.index.samples
    with pytest.raises(DataError) as error:
        MixtureReader(data, source_directories(data), seed=5, samples=wanted)
    (fault,) = error.value.faults
    assert (fault.where, fault.value) == ("train.steps", wanted)  # the only key that a started run can change
    fits = int(fault.allowed.split()[0])
    MixtureReader(data, source_directories(data), seed=5, samples=fits)
    assert "train.steps" in faults_of(data, samples=fits + 1)


def test_whole_epochs_are_accepted(data) -> None:
    reader = MixtureReader(data, source_directories(data), seed=5)
    exact = {
        name: replace(source, max_epochs=round(reader.epochs(reader.index.samples)[name], 3))
        for name, source in data.sources.items()
    }
    MixtureReader(replace(data, sources=exact), source_directories(data), seed=5)


# ---- tokenizers


@pytest.mark.parametrize(
    ("key", "value"), [("sha256", "0" * 64), ("eos", "k"), ("before", [1]), ("after", [2])], ids=str
)
def test_sources_of_other_tokenizers_or_ends_are_refused(data, tmp_path, key, value) -> None:
    path = shutil.copytree(Path(data.root, "code"), tmp_path / "code")
    rewrite_manifest(path, tokenizer={**read_manifest(path)["tokenizer"], key: value})
    assert faults_of(with_path(data, "code", str(path))) == {"data.sources.code": value}


def published(data: DataConfig, directory: Path, change) -> Path:
    """A directory of weights with the corpus' tokenizer, after `change` of its vocabulary."""
    state = json.loads(Path(data.root, "web", "tokenizer.json").read_text())
    change(state["model"]["vocab"], state)
    directory.mkdir()
    (directory / "tokenizer.json").write_text(json.dumps(state))
    return directory


def swap(vocab, state) -> None:
    one, other = [token for token in vocab if len(token) == 1][5:7]
    vocab[one], vocab[other] = vocab[other], vocab[one]


def rename(vocab, state) -> None:
    token = next(token for token in vocab if len(token) == 1)
    vocab["§§"] = vocab.pop(token)


@pytest.mark.parametrize("change", [swap, rename])
def test_weights_of_another_vocabulary_are_refused_with_both_files(data, tmp_path, change) -> None:
    weights = published(data, tmp_path / "weights", change)
    with pytest.raises(DataError) as error:
        build_data(data, seed=5, vocab_size=300, weights=weights)
    (fault,) = error.value.faults
    assert (fault.where, fault.value) == ("checkpoint.init_from", str(weights / "tokenizer.json"))
    assert str(source_directories(data)["records"] / "tokenizer.json") in fault.text


def more(vocab, state) -> None:
    vocab["§§"] = max(vocab.values()) + 50


def same_ids(vocab, state) -> None:
    state["truncation"] = {"direction": "Right", "max_length": 16, "strategy": "LongestFirst", "stride": 0}


@pytest.mark.parametrize("change", [more, same_ids])
def test_weights_that_give_the_corpus_the_same_ids_are_accepted(data, tmp_path, change) -> None:
    weights = published(data, tmp_path / "weights", change)
    assert other_vocabulary(Path(data.root, "web"), weights) == ([], None)
    build_data(data, seed=5, vocab_size=300, weights=weights)


def test_tokens_that_the_weights_lack_are_a_warning(data, tmp_path) -> None:
    def fewer(vocab, state) -> None:
        last = max(vocab, key=vocab.get)
        del vocab[last]
        state["model"]["merges"] = [pair for pair in state["model"]["merges"] if "".join(pair) != last]

    said: list[str] = []
    build_data(data, seed=5, vocab_size=300, weights=published(data, tmp_path / "weights", fewer), warn=said.append)
    assert len(said) == 1
    assert "1 token(s)" in said[0]


def test_weights_without_a_tokenizer_are_not_compared(data, tmp_path) -> None:
    assert other_vocabulary(Path(data.root, "web"), tmp_path) == ([], None)
