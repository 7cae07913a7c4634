"""The rules of a run's images and signals in its exports: transformers prepares the same pixels by them."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoImageProcessor

from tests.trainer.data.media import illustrated
from tests.trainer.data.media.image_files import ordinary
from tests.trainer.illustrated_run import train_illustrated
from trainer.checkpoint.errors import CheckpointError
from trainer.corpora.tokenize.media.options import media_rules
from trainer.data.errors import DataError
from trainer.data.media.images import PatchRule, TileRule, decode
from trainer.data.media.processors import PREPROCESSOR, PROCESSOR
from trainer.data.media.signals import SignalRule
from trainer.data.media.statements import statements
from trainer.weights.beside.media import RULES_FILE, exported_media, keep_media
from trainer.weights.export import export
from trainer.weights.hf_files import HuggingFaceError

PATCHES = PatchRule(min_pixels=4096, max_pixels=65536, mean=(0.4, 0.5, 0.6))
TILES = TileRule(max_tiles=4)
FILES = dict([*ordinary()][::7])


def written(directory: Path, rules: dict[str, dict[str, Any]], source: dict[str, Any] | None = None) -> Any:
    """`exported_media` of a run with these rules by source, its files written to `directory/out`."""
    kept, out = directory / "source", directory / "out"
    for folder in (kept, out):
        folder.mkdir()
    for name, facts in (source or {}).items():
        (kept / name).write_text(json.dumps(facts))
        (out / name).write_text(json.dumps(facts))
    keep_media(directory / "run", rules, {name: 1.0 + place for place, name in enumerate(rules)})
    found = exported_media(directory / "run", kept if source is not None else None)
    for name, content in found.files.items():
        (out / name).write_bytes(content)
    return found


def assert_prepares_alike(directory: Path, rule: PatchRule | TileRule) -> None:
    from PIL import Image

    processor = AutoImageProcessor.from_pretrained(directory)
    for name, data in FILES.items():
        theirs = processor(Image.open(io.BytesIO(data)), return_tensors="np")["pixel_values"]
        ours = rule.prepare(decode(data, where=name, max_pixels=1 << 24))
        np.testing.assert_array_equal(theirs, ours[0] if isinstance(ours, tuple) else ours)


@pytest.mark.parametrize("rule", [PATCHES, PatchRule(), TILES], ids=["patches", "published", "tiles"])
def test_transformers_prepares_the_pixels_of_the_rule(tmp_path, rule):
    found = written(tmp_path, {"figures": {"image": rule}})
    assert (sorted(found.files), found.warnings) == ([RULES_FILE, PREPROCESSOR], [])
    assert_prepares_alike(tmp_path / "out", rule)


OF_PUBLISHED = {"image_processor_type": "Qwen2VLImageProcessorFast", "patch_size": 16, "merge_size": 2,
                "temporal_patch_size": 2, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
                "size": {"shortest_edge": 65_536, "longest_edge": 16_777_216}, "processor_class": "X"}  # fmt: skip


def test_a_processor_that_does_what_the_rule_says_stays_as_it_is(tmp_path):
    found = written(tmp_path, {"figures": {"image": PatchRule()}}, {PREPROCESSOR: OF_PUBLISHED})
    assert (list(found.files), found.warnings) == ([RULES_FILE], [])


@pytest.mark.parametrize(
    "source",
    [
        {PREPROCESSOR: OF_PUBLISHED},
        {PROCESSOR: {"processor_class": "Y", "image_processor": OF_PUBLISHED}},
        {PROCESSOR: {"image_processor": OF_PUBLISHED}, PREPROCESSOR: OF_PUBLISHED},
        {PREPROCESSOR: {**OF_PUBLISHED, "min_pixels": 4096, "max_pixels": 8192}},
        {PREPROCESSOR: {**OF_PUBLISHED, "image_processor_type": "CLIPImageProcessor", "resample": 2}},
    ],
    ids=["plain", "nested", "both", "old", "another"],
)
def test_one_that_does_something_else_is_changed_and_reported(tmp_path, source):
    found = written(tmp_path, {"figures": {"image": PATCHES}}, source)
    assert sorted(found.files) == sorted([*source, RULES_FILE])
    assert [all(name in line for name in source) for line in found.warnings] == [True]
    assert_prepares_alike(tmp_path / "out", PATCHES)
    kept = json.loads(found.files[next(iter(source))])
    assert kept.get("processor_class") in ("X", "Y", None)
    assert kept.get("processor_class") or "processor_class" not in next(iter(source.values()))


def test_of_several_rules_that_of_the_most_samples_is_stated(tmp_path):
    found = written(tmp_path, {"a": {"image": PATCHES}, "b": {"image": PatchRule()}, "c": {"image": PATCHES}})
    assert json.loads(found.files[RULES_FILE])["image"]["options"]["min_pixels"] == PATCHES.min_pixels
    (line,) = found.warnings
    assert "images of b" in line


@pytest.mark.parametrize("long", ["adapt", "cut"])
def test_signals_state_their_rule_and_what_serving_does(tmp_path, long):
    rule = SignalRule(long, 99)
    found = written(tmp_path, {"heart": {"signal": rule}})
    facts = json.loads(found.files[RULES_FILE])["signal"]
    assert facts["options"] == {"long": long, "max_tokens": 99}
    assert facts["stated"] == statements(rule)
    assert len(found.warnings) == (long == "adapt")
    card = "\n".join(found.card)
    assert all(line in card for line in statements(rule))


def test_a_record_that_is_damaged_is_named(tmp_path):
    keep_media(tmp_path, {"a": {"image": PATCHES}}, {"a": 1.0})
    file = tmp_path / "media" / "manifest.json"
    file.write_text(file.read_text().replace("4096", "4097"))
    with pytest.raises(HuggingFaceError) as refused:
        exported_media(tmp_path, None)
    assert refused.value.where == str(file)
    with pytest.raises(HuggingFaceError) as refused:  # it may be another program's
        keep_media(tmp_path, {"a": {"image": PATCHES}}, {"a": 1.0})
    assert refused.value.where == str(tmp_path / "media")
    file.unlink()
    file.parent.rmdir()
    keep_media(tmp_path, {"a": {"image": PATCHES}}, {"a": 1.0})
    assert exported_media(tmp_path, None).warnings == []


def test_the_export_of_a_run_states_the_rules_that_it_trained_with(tmp_path):
    done = export(train_illustrated(tmp_path), tmp_path / "out")
    rule = illustrated.rules().image.rule
    assert_prepares_alike(tmp_path / "out", rule)
    card = (tmp_path / "out" / "README.md").read_text()
    assert all(line in card for line in statements(rule))
    assert RULES_FILE in done.side_files
    assert RULES_FILE in done.media
    published = media_rules(illustrated.with_markers(), published=tmp_path / "out")
    assert published.image.rule == rule
    assert published.signal.rule.long == "cut"  # the run had no signals
    facts = json.loads((tmp_path / "out" / RULES_FILE).read_text())
    facts["signal"] = {"rule": "signals", "options": {"long": "adapt", "max_tokens": 7}}
    (tmp_path / "out" / RULES_FILE).write_text(json.dumps(facts))
    published = media_rules(illustrated.with_markers(), published=tmp_path / "out")
    assert published.signal.rule == SignalRule("adapt", 7)
    (tmp_path / "out" / RULES_FILE).write_text("[]")
    with pytest.raises(DataError) as refused:
        media_rules(illustrated.with_markers(), published=tmp_path / "out")
    assert refused.value.where == str(tmp_path / "out" / RULES_FILE)

    without = export(tmp_path / "run", tmp_path / "text", text_only=True)
    assert (without.media, RULES_FILE in without.side_files) == ("", False)
    (tmp_path / "run" / "media" / "manifest.json").write_text("{}")
    with pytest.raises(CheckpointError) as damaged:
        export(tmp_path / "run", tmp_path / "again")
    assert damaged.value.where == str(tmp_path / "run" / "media" / "manifest.json")
