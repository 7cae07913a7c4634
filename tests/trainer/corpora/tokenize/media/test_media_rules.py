"""The rules of images and signals, from words, models and published directories."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from tests.trainer.corpora.tokenize.media.written import CLOSE, OPEN, PAD
from tests.trainer.corpora.tokenize.tokenized import tokenizer
from tests.trainer.data.media.illustrated import ids, with_markers
from trainer.config.compose import compose
from trainer.corpora.tokenize.media import options
from trainer.corpora.tokenize.media.options import check_marks, media_rules, read_words
from trainer.data.errors import DataError
from trainer.data.media.images import PatchRule, TileRule
from trainer.data.media.rules import ImageKind, MediaRules, SignalKind
from trainer.data.media.signals import SignalRule


def test_the_rules_come_from_words():
    tokenizer = with_markers()
    found = media_rules(tokenizer, image=read_words("--image", ["rule=tiles max_tiles=4", "thumbnail=false"]))
    assert found == MediaRules(ImageKind(TileRule(max_tiles=4, thumbnail=False), PAD, (OPEN,), (CLOSE,)))
    words = {
        "min_pixels": "1",
        "max_pixels": "4096",
        "mean": "0,0,0",
        "token": "</img>",
        "before": "",
        "decode_limit": "99",
    }
    found = media_rules(tokenizer, image=words, signal={"long": "cut"})
    assert found.image == ImageKind(PatchRule(min_pixels=1, max_pixels=4096, mean=(0, 0, 0)), CLOSE, (), (CLOSE,), 99)
    before, token, after = ids("<ts>", "<TS_CONTEXT>", "</ts>")
    assert found.signal == SignalKind(SignalRule("cut"), token, (before,), (after,))
    assert media_rules(tokenizer) is None
    named = media_rules(tokenizer, image={"field": "images", "in_text": "<image>"}).image
    assert (named.field, named.in_text) == ("images", "<image>")
    assert MediaRules.from_json(json.loads(json.dumps(found.to_json()))) == found


@pytest.mark.parametrize(
    ("option", "words", "value"),
    [
        ("--image", {"rule": "patch"}, "patch"),
        ("--image", {"patchsize": "3"}, "patchsize"),
        ("--image", {"patch_size": "0"}, "0"),
        ("--image", {"mean": "1,2"}, "1,2"),
        ("--image", {"before": "<image>"}, "<image>"),
        ("--image min_pixels", {"max_pixels": "4096"}, 65_536),
        ("--image min_pixels", {"min_pixels": "9000", "max_pixels": "4096"}, 9000),
        ("--image min_tiles", {"rule": "tiles", "min_tiles": "13"}, 13),
        ("--image std", {"std": "0,1,1"}, (0.0, 1.0, 1.0)),
        ("--image std", {"rule": "tiles", "std": "1,-1,1"}, (1.0, -1.0, 1.0)),
        ("--image mean", {"mean": "inf,1,1"}, (math.inf, 1.0, 1.0)),
        ("--signal", {"long": "cut", "max_tokens": "9"}, 9),
        ("--signal", {"rule": "cut"}, "rule"),
        ("--signal", {"max_tokens": "many"}, "many"),
    ],
)
def test_wrong_words_are_refused(option, words, value):
    with pytest.raises(DataError) as error:
        media_rules(with_markers(), **{option.split()[0].removeprefix("--"): words})
    assert (error.value.where, error.value.value) == (option, value)
    with pytest.raises(DataError) as error:
        read_words(option, ["patches"])
    assert (error.value.where, error.value.value) == (option, "patches")


def test_a_tokenizer_without_placeholders_needs_one(tmp_path):
    with pytest.raises(DataError) as error:
        media_rules(tokenizer(), signal={})
    assert (error.value.where, error.value.allowed) == ("--signal", "token=TOKEN")


def test_a_placeholder_of_ordinary_text_is_refused():
    word = with_markers().token(with_markers().encode("iron")[-1])
    check_marks(media_rules(with_markers(), image={"token": "</ts>"}), with_markers())
    with pytest.raises(DataError) as error:
        check_marks(media_rules(with_markers(), image={"token": word}), with_markers())
    assert (error.value.where, error.value.value) == ("--image", word)
    assert "<IMG_CONTEXT>" in error.value.allowed


def test_the_rules_of_a_model_are_those_of_its_towers():
    model = compose(["recipe=toy", "model=toy_multimodal", f"model.image_token={PAD}"]).model
    found = media_rules(with_markers(), model=model, image={"min_pixels": "1024"})
    assert found.image == ImageKind(PatchRule(min_pixels=1024), PAD, (OPEN,), (CLOSE,))
    assert (found.signal.rule, found.signal.token) == (SignalRule(), 4095)
    assert [*found.image.differences(model), *found.signal.differences(model)] == []
    other = replace(model, vision=replace(model.vision, merge=1), signal_token=3)
    assert [*found.image.differences(other)] == [("model.vision.merge", 1, 2)]
    assert [*found.signal.differences(other)] == [("model.signal_token", 3, 4095)]
    tiles = ImageKind(TileRule(), 4094)
    assert [key for key, *_ in tiles.differences(model)] == ["model.vision.kind"]
    assert [key for key, *_ in found.signal.differences(replace(model, signals=None))] == ["model.signals"]


def test_a_published_directory_gives_its_rules_and_the_sizes_of_its_preprocessor(tmp_path, monkeypatch):
    model = compose(["recipe=toy", "model=toy_multimodal", f"model.image_token={PAD}"]).model
    monkeypatch.setattr(options, "multimodal_config_from_huggingface", lambda config: model)
    (tmp_path / "config.json").write_text("{}")
    sizes = {"size": {"shortest_edge": 1024, "longest_edge": 4096}, "image_mean": [0.1, 0.2, 0.3], "patch_size": 16}
    sizes |= {"image_std": [0.5, 0.5, 0.5]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(sizes))
    found = media_rules(with_markers(), published=tmp_path, image={"max_pixels": "8192"})
    assert found.image.rule == PatchRule(min_pixels=1024, max_pixels=8192, mean=(0.1, 0.2, 0.3))
    assert found.signal.rule == SignalRule("cut")  # all that published weights know
    assert media_rules(with_markers(), published=tmp_path, signal={"long": "adapt"}).signal.rule == SignalRule()
    same = {"resample": 3, "rescale_factor": 1 / 255, "do_normalize": True, "merge_size": 2}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**sizes, **same}))
    assert media_rules(with_markers(), published=tmp_path, image={"max_pixels": "8192"}) == found
    for key, value in (
        ("resample", 2),
        ("do_normalize", False),
        ("rescale_factor", 1),
        ("patch_size", 14),
        ("merge_size", 1),
    ):
        (tmp_path / "preprocessor_config.json").write_text(json.dumps({**sizes, **same, key: value}))
        with pytest.raises(DataError) as error:
            media_rules(with_markers(), published=tmp_path)
        assert (error.value.where, error.value.value) == (f"{tmp_path / 'preprocessor_config.json'}, {key}", value)
    with pytest.raises(DataError) as error:
        media_rules(with_markers(), published=tmp_path / "nowhere")
    assert error.value.where == "--media"
