"""The keys of the towers."""

import re

import pytest

from trainer.config.compose import compose
from trainer.config.errors import ConfigError
from trainer.config.keys import config_hash, defining_values

TOWERS = ["recipe=toy", "model=toy_multimodal", "data=synthetic"]


@pytest.mark.parametrize(
    ("words", "where", "value"),
    [
        (["model.vision=null"], "model.image_token", 4094),
        (["model.image_token=9999"], "model.image_token", 9999),
        (["model.signal_token=null"], "model.signal_token", None),
        (["model.signal_token=4094"], "model.signal_token", 4094),
        (["model.vision.num_heads=3"], "model.vision.num_heads", 3),
        (["model.vision.num_layers=0"], "model.vision.num_layers", 0),
        (["model.signals.patch_heads=5"], "model.signals.patch_heads", 5),
        (["model.vision.out_width=64"], "model.vision.out_width", 64),
        (["model.vision.kind=clip"], "model.vision.kind", "clip"),
        (["model.vision.widht=64"], "model.vision.widht", None),
        (["model.vision=3"], "model.vision", 3),
        (["model=intern_s1", "model.vision.tile_size=450", "model.vocab_size=4096"], "model.vision.tile_size", 450),
    ],
)
def test_towers_that_cannot_be(words, where, value):
    with pytest.raises(ConfigError) as refused:
        compose([word for word in TOWERS if word.partition("=")[0] not in {w.partition("=")[0] for w in words}] + words)
    found = {fault.where: fault for fault in refused.value.faults}
    assert found[where].value == value
    assert found[where].allowed


@pytest.mark.parametrize(
    "words",
    [
        ["model.vision.width=65"],
        ["model.vision.width=3"],
        ["model.vision.num_heads=3"],
        ["model.signals.width=65"],
        ["model.signals.patch_width=1"],
    ],
    ids=" ".join,
)
def test_every_width_that_is_named_for_the_heads_of_a_tower_works(words):
    given = [word for word in TOWERS if word.partition("=")[0] not in {w.partition("=")[0] for w in words}]
    with pytest.raises(ConfigError) as refused:
        compose([*given, *words])
    (fault,) = refused.value.faults
    named = re.findall(r"(model\.\w+\.\w*(?:width|heads))=((?:\d+(?:, | or )?)+)", fault.text.partition("; use ")[2])
    assert named
    for key, values in named:
        for value in re.findall(r"\d+", values):
            kept = [word for word in words if not word.startswith(f"{key}=")]
            assert compose([*given, *kept, f"{key}={value}"])


def test_a_model_without_its_towers_is_the_text_model():
    text = compose(
        [*TOWERS, "model.vision=null", "model.image_token=null", "model.signals=null", "model.signal_token=null"]
    )
    assert text == compose(["recipe=toy", "model=toy", "data=synthetic"])
    assert config_hash(text) != config_hash(compose(TOWERS))
    assert "model.vision.width" in defining_values(compose(TOWERS))
