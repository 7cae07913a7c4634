"""The stage `quality` over the rows of the stage `captions`: rules first, then a classifier, all accounted for."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.trainer.corpora.captions.made_crops import good_answer, made_crop
from trainer.corpora.captions.crops import Crop
from trainer.corpora.captions.describe.rows import Row, read_captions, read_rows, rows_path, write_rows
from trainer.corpora.captions.quality.discriminator import BATCH, Discriminator
from trainer.corpora.captions.quality.rules import Rules
from trainer.corpora.captions.quality.stage import QualityOptions, run_quality
from trainer.corpora.captions.reports import REPORT
from trainer.corpora.captions.tables import part_path, write_part
from trainer.data.errors import DataError

ANSWERS = {3: "A plot.", 5: good_answer(5) + "<|im_end|>", 7: "The blue curve of graphite rises again. " * 9}
SIZES = (6, 0, 6)


def write_both(root: Path) -> list[Crop]:
    """Parts of crops, and of captions; the first one was refused."""
    crops = [made_crop(number, ("figure", "table")[number % 2]) for number in range(sum(SIZES))]
    start = 0
    for directory in (root / "crops", root / "captions"):
        directory.mkdir()
    for part, size in enumerate(SIZES):
        some = range(start, start + size)
        write_part(part_path(root / "crops", part), [crops[number] for number in some])
        rows = [
            Row(crops[n].id, crops[n].kind, "science", "m", "Describe it.", ANSWERS.get(n, good_answer(n)), 300, 100,
                dropped="" if n else "refused")
            for n in some
        ]  # fmt: skip
        write_rows(rows_path(root / "captions", part_path(root, part)), rows)
        start += size
    return crops


def run(root: Path, name: str = "quality", options: QualityOptions | None = None):
    return run_quality(root / name, root / "crops", root / "captions", options or QualityOptions())


def test_captions_are_kept_or_dropped_with_a_reason_each(tmp_path):
    crops = write_both(tmp_path)
    report = run(tmp_path)
    assert report.counts["captions"].to_json() == {
        "in": 11, "out": 8, "dropped": {"garbled": 1, "repetition": 1, "short": 1},
    }  # fmt: skip
    assert report.counts["captions of tables"].to_json()["out"] == 3
    kept = list(read_captions(tmp_path / "crops", tmp_path / "quality"))
    numbers = [n for n in range(1, 12) if n not in ANSWERS]
    assert [(row.id, row.caption) for row in kept] == [(crops[n].id, good_answer(n)) for n in numbers]
    assert [row.tokens_out for row in kept] == [100] * 8
    assert run(tmp_path) == report


def test_a_part_that_is_missing_is_made_again_with_the_same_bytes(tmp_path):
    write_both(tmp_path)
    report = run(tmp_path)
    before = {path.name: path.read_bytes() for path in (tmp_path / "quality").iterdir()}
    (tmp_path / "quality" / "part-00002.jsonl").unlink()
    (tmp_path / "quality" / REPORT).unlink()
    assert run(tmp_path) == report
    assert {path.name: path.read_bytes() for path in (tmp_path / "quality").iterdir()} == before


def test_rows_of_other_crops_are_refused(tmp_path):
    write_both(tmp_path)
    path = tmp_path / "captions" / "part-00002.jsonl"
    rows = list(read_rows(path))
    for others in (rows[:-1], [replace(rows[0], id="0" * 32), *rows[1:]]):
        write_rows(path, others)
        with pytest.raises(DataError) as caught:
            run(tmp_path)
        assert caught.value.where == str(path)
    assert not (tmp_path / "quality" / REPORT).exists()


def test_the_identity_of_options_changes_with_what_decides(tmp_path):
    one = QualityOptions()
    others = [QualityOptions(rules=Rules(min_words=2)), QualityOptions(threshold=0.7), QualityOptions(label="good")]
    assert all(other.identity() != one.identity() for other in others)
    (tmp_path / "config.json").write_text("{}")
    first = QualityOptions(discriminator=tmp_path).identity()
    (tmp_path / "config.json").write_text("{ }")
    assert QualityOptions(discriminator=tmp_path).identity() != first
    assert QualityOptions(device="cuda").identity() == one.identity()


@pytest.mark.parametrize("config", [None, "[]", '{"auto_map": {"AutoConfig": "own.Config"}}', "{"])
def test_a_directory_without_a_classifier_or_with_code_is_refused(tmp_path, config):
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(DataError) as caught:
        Discriminator(tmp_path)
    assert caught.value.where == str(tmp_path)


def save_classifier(directory: Path, labels: int, seed: int = 0):
    """A small BERT with random weights whose words are those of the answers. Returns model and tokenizer."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    words = sorted({word for number in range(12) for word in good_answer(number).lower().replace(".", "").split()})
    vocabulary = {word: place for place, word in enumerate(["[PAD]", "[UNK]", *words])}
    bare = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    bare.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bare, pad_token="[PAD]", unk_token="[UNK]", model_max_length=64
    )
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=64, num_labels=labels, initializer_range=1.0,
    )  # fmt: skip
    model = BertForSequenceClassification(config).eval()
    with torch.inference_mode():  # scores that differ from text to text
        inputs = tokenizer([good_answer(n) for n in range(12)], padding=True, truncation=True, return_tensors="pt")
        logits = model(**inputs).logits
        model.classifier.weight.div_(logits.std(0)[:, None])
        model.classifier.bias.sub_(logits.mean(0)).div_(logits.std(0))
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return model, tokenizer


@pytest.mark.slow
@pytest.mark.parametrize("labels", [1, 2, 3])
def test_a_classifier_scores_what_the_rules_keep(tmp_path, labels):
    import torch

    crops = write_both(tmp_path)
    model, tokenizer = save_classifier(tmp_path / "classifier", labels)
    label = "LABEL_1" if labels == 3 else None
    scorer = Discriminator(tmp_path / "classifier", label=label)
    texts = [good_answer(number) for number in range(12)] * 3
    assert len(texts) > BATCH
    with torch.inference_mode():  # one by one: padding does not change a score
        cut = [tokenizer(text, truncation=True, max_length=64, return_tensors="pt") for text in texts[:12]]
        logits = torch.cat([model(**inputs).logits for inputs in cut]).double()
    wanted = logits[:, 0].sigmoid() if labels == 1 else logits.softmax(1)[:, 1]
    scores = scorer.score(texts)
    assert scores == pytest.approx(wanted.tolist() * 3, abs=1e-5)
    assert max(scores) - min(scores) > 0.01

    kept = [number for number in range(1, 12) if number not in ANSWERS]
    below, above = sorted(scores[number] for number in kept)[3:5]
    threshold = (below + above) / 2
    options = QualityOptions(discriminator=tmp_path / "classifier", threshold=threshold, label=label)
    report = run(tmp_path, options=options)
    good = [number for number in kept if scores[number] >= threshold]
    assert len(good) == len(kept) - 4
    assert report.counts["captions"].dropped["low score"] == len(kept) - len(good)
    rows = list(read_captions(tmp_path / "crops", tmp_path / "quality"))
    assert [row.id for row in rows] == [crops[number].id for number in good]
    assert [row.score for row in rows] == pytest.approx([scores[number] for number in good], abs=1e-6)


@pytest.mark.slow
def test_a_classifier_without_its_head_and_a_label_it_lacks_are_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    save_classifier(tmp_path, 2)
    with pytest.raises(DataError) as caught:
        Discriminator(tmp_path, label="good")
    assert (caught.value.where, caught.value.allowed) == ("label", ("LABEL_0", "LABEL_1"))
    weights = load_file(tmp_path / "model.safetensors")
    save_file(
        {name: value for name, value in weights.items() if "classifier" not in name},
        tmp_path / "model.safetensors",
        metadata={"format": "pt"},
    )
    with pytest.raises(DataError) as caught:
        Discriminator(tmp_path)
    assert "classifier.weight" in caught.value.value


@pytest.mark.slow
@pytest.mark.parametrize("problem", ["multi_label_classification", "regression"])
def test_outputs_are_scored_as_they_were_trained(tmp_path, problem):
    import torch

    model, tokenizer = save_classifier(tmp_path, 3)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "problem_type": problem}))
    with torch.inference_mode():
        outputs = model(**tokenizer(good_answer(1), truncation=True, return_tensors="pt")).logits[0, 1]
    wanted = outputs if problem == "regression" else outputs.sigmoid()
    found = Discriminator(tmp_path, label="LABEL_1").score([good_answer(1)])
    assert found == pytest.approx([wanted.item()], abs=1e-5)


@pytest.mark.slow
def test_a_tokenizer_that_cannot_pad_is_refused_before_captions_are_read(tmp_path):
    _, tokenizer = save_classifier(tmp_path, 2)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(DataError) as caught:
        Discriminator(tmp_path)
    assert caught.value.where == str(tmp_path)
