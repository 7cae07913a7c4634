"""A tiny classifier, untrained, made here with transformers and read back from its directory."""

import json

import pytest

from tests.trainer.corpora.captions.routing.made import TEXTS, crop
from trainer.corpora.captions.routing.hugging_face import HuggingFaceModel
from trainer.corpora.captions.routing.stage import Options, read_routes, run_routing
from trainer.corpora.captions.routing.subjects import SUBJECTS
from trainer.corpora.captions.tables import part_path, write_part
from trainer.data.errors import DataError

pytestmark = pytest.mark.slow  # imports transformers
LABELS = ("physics", "other", "life")


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    import torch
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

    path = tmp_path_factory.mktemp("classifier")
    words = sorted({word for _, caption, context in TEXTS for word in f"{caption} {context}".lower().split()})
    (path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]))
    BertTokenizerFast(vocab=str(path / "vocab.txt"), model_max_length=32).save_pretrained(path)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words) + 5, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=32, id2label=dict(enumerate(LABELS)),
        label2id={name: n for n, name in enumerate(LABELS)},
        initializer_range=1.0,
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(path)
    return path


def test_a_classifier_of_a_directory_routes_crops_by_its_labels(directory, tmp_path):
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForSequenceClassification.from_pretrained(directory).eval()
    (tmp_path / "crops").mkdir()
    write_part(part_path(tmp_path / "crops", 0), [crop(number) for number in range(len(TEXTS))])
    run_routing(tmp_path / "out", tmp_path / "crops", Options(classifier=directory))
    for row, (_, caption, context) in zip(read_routes(tmp_path / "out"), TEXTS, strict=True):
        tokens = tokenizer(caption, context, truncation=True, max_length=32, return_tensors="pt")
        with torch.inference_mode():
            wanted = torch.softmax(model(**tokens).logits[0].double(), 0)
        assert [row.probabilities[SUBJECTS.index(label)] for label in LABELS] == pytest.approx(
            wanted.tolist(), abs=2e-6
        )
        assert row.probabilities[SUBJECTS.index("earth")] == 0


def test_labels_that_are_not_subjects_are_reported(directory, tmp_path):
    for path in directory.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((directory / "config.json").read_text())
    config["id2label"] = {"0": "physics", "1": "art", "2": "life"}
    config["label2id"] = {"physics": 0, "art": 1, "life": 2}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(DataError) as caught:
        HuggingFaceModel(tmp_path)
    assert "art" in caught.value.value


def test_a_directory_without_a_classifier_is_reported(tmp_path):
    with pytest.raises(DataError) as caught:
        HuggingFaceModel(tmp_path)
    assert caught.value.where == str(tmp_path)


def changed(directory, path, weights=None, **facts):
    """A copy of a classifier's directory with other facts in its config.json, and without some weights."""
    from safetensors.torch import load_file, save_file

    for one in directory.iterdir():
        (path / one.name).write_bytes(one.read_bytes())
    config = json.loads((directory / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, **facts}))
    kept = {name: value for name, value in load_file(directory / "model.safetensors").items() if name != weights}
    save_file(kept, path / "model.safetensors", {"format": "pt"})
    return path


def test_a_classifier_without_its_head_is_refused_as_its_routes_would_be_random(directory, tmp_path):
    with pytest.raises(DataError) as caught:
        HuggingFaceModel(changed(directory, tmp_path, "classifier.weight"))
    assert caught.value.value == ("classifier.weight",)


@pytest.mark.parametrize("problem", ["multi_label_classification", "regression"])
def test_outputs_that_are_not_shares_of_one_are_refused(directory, tmp_path, problem):
    with pytest.raises(DataError) as caught:
        HuggingFaceModel(changed(directory, tmp_path, problem_type=problem))
    assert caught.value.value == problem


@pytest.mark.parametrize("names", [["physics", "other", "life"], {"1": "physics", "2": "other", "3": "life"}])
def test_labels_in_another_form_are_reported(directory, tmp_path, names):
    with pytest.raises(DataError) as caught:
        HuggingFaceModel(changed(directory, tmp_path, id2label=names))
    assert caught.value.where == str(tmp_path)


def test_one_label_is_refused_as_it_would_be_sure_of_everything(tmp_path, directory):
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig.from_pretrained(directory)
    config.id2label, config.label2id = {0: "physics"}, {"physics": 0}
    changed(directory, tmp_path)
    BertForSequenceClassification(config).save_pretrained(tmp_path)
    with pytest.raises(DataError) as caught:
        HuggingFaceModel(tmp_path)
    assert caught.value.value == ("physics",)


def test_a_text_is_cut_to_the_positions_of_the_model_where_the_tokenizer_does_not_say(directory, tmp_path):
    changed(directory, tmp_path)
    said = json.loads((directory / "tokenizer_config.json").read_text())
    del said["model_max_length"]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(said))
    texts = [TEXTS[0][1] * 20], [TEXTS[0][2]]
    found = [HuggingFaceModel(one).probabilities(*texts).tolist() for one in (directory, tmp_path)]
    assert found[0] == found[1]
