"""The tokenizer of a run's corpora: kept by the run, exported, and read by transformers with the corpora's ids."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, GenerationConfig

from tests.trainer.data.small_mixture import make_mixture, texts
from tests.trainer.tiny_run import MODEL, tiny_config
from trainer.checkpoint.errors import CheckpointError
from trainer.config.compose import compose
from trainer.config.keys import Config, DataConfig
from trainer.data.protocols import TokenizerFile
from trainer.data.shards.tokenizer import Tokenizer
from trainer.run.process import train
from trainer.weights.beside.remote_code import FILES
from trainer.weights.beside.side_files import CARD
from trainer.weights.beside.tokenizer import find_tokenizer, keep_tokenizer
from trainer.weights.export import export
from trainer.weights.hf_files import HuggingFaceError

OURS = ["README.md", "config.json", "generation_config.json", "model-00001-of-00001.safetensors",
        "model.safetensors.index.json", "tokenizer.json", "tokenizer_config.json"]  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    """Three corpora of one tokenizer."""
    with pytest.MonkeyPatch.context() as patch:
        return make_mixture(tmp_path_factory.mktemp("mixture"), patch)


def config(directory: Path, data: DataConfig, steps: int = 1) -> Config:
    cfg = tiny_config(directory, model={"vocab_size": 320, "router_groups": 1, "positions": "rope"}, steps=steps)
    cfg.data = data
    return cfg


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, data: DataConfig) -> Path:
    directory = tmp_path_factory.mktemp("runs") / "run"
    assert train(config(directory, data)) == 0
    return directory


@pytest.fixture
def corpora(data: DataConfig) -> Tokenizer:
    return Tokenizer.load(Path(data.root, "web"))


def assert_encodes_alike(directory: Path, corpora: Tokenizer) -> None:
    theirs = AutoTokenizer.from_pretrained(directory)
    for text in [*texts("web", 5), "of all kinds: αβ\n\n  x", ""]:
        assert theirs(text)["input_ids"] == corpora.encode(text)
        assert theirs.decode(theirs(text)["input_ids"]) == text
    assert theirs.eos_token == corpora.end_of_document
    assert theirs.eos_token_id == theirs.bos_token_id == theirs.pad_token_id == corpora.eos_id


def test_an_export_of_random_weights_is_whole(run, tmp_path, corpora, monkeypatch):
    done = export(run, tmp_path / "out")
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == OURS
    assert done.side_files == ["generation_config.json", "tokenizer.json", "tokenizer_config.json"]
    assert done.warnings == []
    assert_encodes_alike(tmp_path / "out", corpora)
    ids = {"bos_token_id": corpora.eos_id, "eos_token_id": corpora.eos_id, "pad_token_id": corpora.eos_id}
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config | ids == config
    generation = GenerationConfig.from_pretrained(tmp_path / "out")
    assert {key: getattr(generation, key) for key in ids} == ids
    assert AutoTokenizer.from_pretrained(tmp_path / "out").model_max_length == config["max_position_embeddings"]
    monkeypatch.chdir(tmp_path / "out")
    card = Path(CARD).read_text()
    assert "| chat template | none |" in card
    assert "| stored in | BF16 |" in card
    loaded: dict[str, Any] = {}
    exec(card.partition("```python\n")[2].partition("```")[0], loaded)
    assert type(loaded["model"]).__name__ == "Qwen3MoeForCausalLM"
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (run / "tokenizer" / "tokenizer.json").read_bytes()


def test_the_run_needs_its_corpora_no_longer(run, data, tmp_path, corpora):
    """Its own copy is a tokenizer too, for transformers and for `octavo tokenize`."""
    moved = shutil.copytree(run, tmp_path / "run")
    text = (moved / "config.yaml").read_text()
    (moved / "config.yaml").write_text(text.replace(str(data.root), str(tmp_path / "gone")))
    export(moved, tmp_path / "out")
    assert_encodes_alike(tmp_path / "out", corpora)
    assert_encodes_alike(moved / "tokenizer", corpora)
    assert Tokenizer.load(moved / "tokenizer").eos_id == corpora.eos_id


def test_a_run_from_before_tokenizers_were_kept(run, data, tmp_path, corpora):
    """Takes that of its corpora, or says that there is none; a resumed one keeps it."""
    old = shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(old / "tokenizer")
    assert export(old, tmp_path / "out").warnings == []
    assert_encodes_alike(tmp_path / "out", corpora)
    config_file = old / "config.yaml"
    text = config_file.read_text()
    config_file.write_text(text.replace(str(data.root), str(tmp_path / "gone")))
    done = export(old, tmp_path / "without")
    assert done.side_files == []
    assert str(tmp_path / "gone" / "web") in done.warnings[0]
    assert "eos_token_id" in json.loads((tmp_path / "without" / "config.json").read_text())
    config_file.write_text(text)
    assert train(config(old, data, steps=2)) == 0
    assert (old / "tokenizer" / "tokenizer.json").is_file()


def test_a_damaged_tokenizer_is_not_exported(run, tmp_path):
    broken = shutil.copytree(run, tmp_path / "run")
    file = broken / "tokenizer" / "tokenizer.json"
    file.write_text(file.read_text() + " ")
    with pytest.raises(CheckpointError) as refused:
        export(broken, tmp_path / "out")
    assert refused.value.where == str(file)
    assert not (tmp_path / "out").exists()


def test_a_directory_of_the_user_is_not_replaced(data, tmp_path):
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "notes").write_text("mine")
    with pytest.raises(HuggingFaceError) as refused:
        keep_tokenizer(tmp_path, TokenizerFile(Path(data.root, "web", "tokenizer.json"), "<|endofdocument|>"))
    assert (refused.value.where, refused.value.allowed) == (str(tmp_path / "tokenizer"), "another run.dir")
    assert [file.name for file in (tmp_path / "tokenizer").iterdir()] == ["notes"]


def with_template(file: Path) -> tokenizers.Tokenizer:
    """One that opens every text with <s> and closes it with </s>, and that was last used to cut and pad."""
    found = tokenizers.Tokenizer(models.BPE())
    found.pre_tokenizer, found.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special: Any = ["<s>", "</s>", "<pad>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    how: Any = {"special_tokens": special, "initial_alphabet": alphabet, "show_progress": False}
    trainer = trainers.BpeTrainer(vocab_size=300, **how)
    found.train_from_iterator(texts("web", 40), trainer)
    found.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)])
    found.enable_truncation(4)
    found.enable_padding(pad_id=2, pad_token="<pad>", length=9)
    found.save(str(file))
    return found


@pytest.mark.parametrize("before", [(), (0,)])
def test_transformers_puts_around_a_text_what_the_corpora_have(tmp_path, before):
    """Without the template where the corpora are without it; what was stored of the last call never counts."""
    with_template(tmp_path / "tokenizer.json")
    keep_tokenizer(tmp_path / "run", TokenizerFile(tmp_path / "tokenizer.json", "</s>", before))
    found, why = find_tokenizer(tmp_path / "run")
    assert found is not None
    assert why is None
    (tmp_path / "out").mkdir()
    for name, content in found.side_files(64).items():
        (tmp_path / "out" / name).write_bytes(content if isinstance(content, bytes) else content.read_bytes())
    theirs = AutoTokenizer.from_pretrained(tmp_path / "out")
    plain = Tokenizer.load(tmp_path / "tokenizer.json", "</s>", before=before)
    text = " ".join(texts("web", 2))
    after = [1] if before else []
    assert theirs(text)["input_ids"] == [*plain.encode(text), *after]
    assert (theirs.bos_token, theirs.eos_token, theirs.pad_token) == ("<s>" if before else "</s>", "</s>", "</s>")
    assert found.token_ids() == {"bos_token_id": 0 if before else 1, "eos_token_id": 1, "pad_token_id": 1}


def test_synthetic_data_have_no_tokenizer_and_that_is_no_warning(tmp_path):
    assert train(tiny_config(tmp_path / "run", steps=1)) == 0
    done = export(tmp_path / "run", tmp_path / "out")
    assert (done.side_files, done.warnings) == ([*FILES], [])
    assert ("synthetic" in done.tokenizer, done.media) == (True, "")


def test_the_card_of_synthetic_data_and_towers_has_their_parameters_and_no_rules_is_said(tmp_path):
    signals = compose(["recipe=toy", "model=toy_multimodal", "data=synthetic"]).model.signals
    assert signals is not None
    towers = {"signals": replace(signals, out_width=MODEL["hidden_size"]), "signal_token": 7}
    cfg = tiny_config(tmp_path / "run", model=towers, steps=1)
    assert train(cfg) == 0
    done = export(tmp_path / "run", tmp_path / "out")
    assert "synthetic" in done.media
    count = f"{cfg.model.tower_params():,} of the signal tower"
    assert count in (tmp_path / "out" / CARD).read_text()
    without = export(tmp_path / "run", tmp_path / "text", text_only=True)
    assert without.media == ""
    assert count not in (tmp_path / "text" / CARD).read_text()
